// The host side of common/gpu.h: the threads of a block as fibers, and barriers and wave operations
// between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace sim {

// The running thread within its block, and the running block.
extern unsigned int thread;
extern unsigned int block[3];

// As on a GPU, all threads of the block have to call it. A launch in which some do not ends with an
// error.
void barrier();

// The value that lane `lane` of the wave passes. All lanes of the wave call it together.
unsigned int shuffle(unsigned int value, unsigned int lane);

// The words that all lanes of the wave pass, `count` (up to EXCHANGED) each: those of lane i begin
// at EXCHANGED * i. They may be read until the lane's next operation. All lanes call it together.
const unsigned int EXCHANGED = 16;
const unsigned int *exchange(const unsigned int *words, unsigned int count);

// The value that matrix cores read from a half: the half itself, or zero where it is subnormal and
// the thread that launched the kernel asked for that by wavelm_sim_flush. gfx90a (MI200) reads
// zero.
unsigned short operand(unsigned short bits);

float f16_to_f32(unsigned short bits);
unsigned short f32_to_f16(float value);

typedef void (*Thunk)(void *function, void **arguments);

struct Kernel {
  const char *name;
  unsigned int threads;
  unsigned int parameters;
  void *function;
  Thunk thunk;
};

void add_kernel(const Kernel &kernel);

template <class... P, size_t... I>
void call(void (*function)(P...), void **arguments, std::index_sequence<I...>) {
  function(*static_cast<P *>(arguments[I])...);
}

struct Registration {
  template <class... P> Registration(const char *name, unsigned int threads, void (*function)(P...)) {
    Thunk thunk = [](void *function, void **arguments) {
      call(reinterpret_cast<void (*)(P...)>(function), arguments, std::index_sequence_for<P...>());
    };
    add_kernel({name, threads, sizeof...(P), reinterpret_cast<void *>(function), thunk});
  }
};

} // namespace sim
