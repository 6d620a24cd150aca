// What later launches read, asked for ahead: it is then in the cache, and memory does not rest while launches end and
// begin, or wait for something else.
#pragma once

#include "gpu.h"

// The bytes that are asked for at once.
#define LINE 128

// Ranges of memory: their number, and in the upper half the blocks of the launch that asks for them; the number of
// lines in all of them; and for each its address and its lines.
typedef u64 Ahead;

// Asks for the line that starts at `address`. Machines without an instruction for it load a word.
DEVICE void ask_for_line(u64 address) {
#if GPU_NVIDIA
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#elif GPU_AMD
  u32 word = *(const __attribute__((address_space(1))) u32 *)address;
  asm volatile("" ::"v"(word));
#else
  sim::ask(address);
#endif
}

// Asks for the lines of number `first`, `first` + `step` and so on.
DEVICE void ask_ahead(const Ahead *ahead, u32 first, u32 step) {
  u32 ranges = (u32)ahead[0], lines = (u32)ahead[1];
  UNROLL_BY(1) for (u32 before = 0; before < lines; before += step) {
    u32 at = before + first;
    u64 address = 0;
    UNROLL_BY(1) for (u32 range = 0; range < ranges; range++) {
      u32 length = (u32)ahead[3 + 2 * range];
      bool is_here = at < length && !address;
      address = is_here ? ahead[2 + 2 * range] + (u64)at * LINE : address;
      at -= length;
    }
    if (before + first < lines) ask_for_line(address);
  }
}

// Asks for a line per thread, if so many are left, in the last blocks of the launch: at its end.
template <u32 THREADS> DEVICE void ask_at_end(const Ahead *ahead) {
  if (!ahead) return;
  u32 blocks = (u32)(ahead[0] >> 32);
  ask_ahead(ahead, (blocks - 1 - block_x()) * THREADS + thread_x(), blocks * THREADS);
}
