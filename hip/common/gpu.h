// What the kernels need from the machine. There are three kinds of machine:
//
// - AMD GPUs: clang alone (`-x hip`, without ROCm's headers and device libraries), hipcc and
//   hipRTC;
// - NVIDIA GPUs: clang to PTX (`-x cuda`, without CUDA's headers);
// - the host: any C++17 compiler, for the simulator in sim/, which runs the threads of a block as
//   fibers.
//
// Blocks are one-dimensional, and the source fixes their size (see KERNEL), so that no kernel
// depends on hidden arguments. WAVE is the number of lanes that run in lockstep: 32 on RDNA and
// NVIDIA, 64 on CDNA and GCN.
#pragma once

#if defined(__AMDGCN__)
#define GPU_AMD 1
#elif defined(__NVPTX__)
#define GPU_NVIDIA 1
#else
#define GPU_HOST 1
#endif

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef short i16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;
typedef double f64;

// For loads and stores of 8 and 16 bytes of any type. Addresses are multiples of the size.
typedef u32 u32x2 __attribute__((vector_size(8), may_alias));
typedef u32 u32x4 __attribute__((vector_size(16), may_alias));
typedef f32 f32x4 __attribute__((vector_size(16), may_alias));
typedef u16 u16_alias __attribute__((may_alias));
typedef u32 u32_alias __attribute__((may_alias));

// Products and sums are fused only where the source says so (mul_add). Results are then the same on
// all machines, and the sampler draws the same tokens as on the CPU.
#if defined(__clang__)
#pragma clang fp contract(off)
#endif

#if GPU_AMD
#if defined(__GFX9__)
#define WAVE 64
#else
#define WAVE 32
#endif
#elif GPU_NVIDIA
#define WAVE 32
#elif !defined(WAVE)
#error "the simulator's wave size is missing: -DWAVE=32 or -DWAVE=64"
#endif

// Whether kernels issue all their loads before they wait for the first, and keep the compiler from
// moving them apart. On NVIDIA GPUs the kernels stay as they were measured (docs/lab/gpu.md). The
// simulator runs the code for AMD.
#if GPU_NVIDIA
#define READS_EARLY false
#else
#define READS_EARLY true
#endif

#if GPU_AMD
// The registers of a SIMD unit for each lane. Its waves share them, and a wave has at most 256 of
// them here.
#if defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__) || defined(__gfx950__) || \
    defined(__gfx9_4_generic__)
#define REGISTERS 512
#elif defined(__GFX9__)
#define REGISTERS 256
#elif defined(__gfx1100__) || defined(__gfx1101__) || defined(__gfx1151__) || defined(__GFX12__)
#define REGISTERS 1536
#else
#define REGISTERS 1024
#endif
#endif

// ------------------------------------------------------------------------------------------------ keywords

#if GPU_HOST
#include "sim/simulator.h"

#define DEVICE static inline
#define MEMBER inline
#define SHARED static
#define UNROLL
#define UNROLL_BY(n)
// KERNEL(name, threads of a block, (parameters)) { body }
// KERNEL_FOR_BLOCKS(name, threads of a block, blocks, (parameters)) { body }
//
// The second tells the compiler how many blocks share a compute unit: registers need not suffice
// for more. Without it, compilers save registers and wait for each load.
#define KERNEL(name, threads, parameters)                                                                              \
  extern "C" void name parameters;                                                                                     \
  static sim::Registration registration_of_##name(#name, threads, &name);                                              \
  extern "C" void name parameters
#define KERNEL_FOR_BLOCKS(name, threads, blocks, parameters) KERNEL(name, threads, parameters)
#else
#define DEVICE static __attribute__((device, always_inline)) inline
#define MEMBER __attribute__((device, always_inline)) inline
#define SHARED static __attribute__((shared))
#define UNROLL _Pragma("unroll")
#define PRAGMA(text) _Pragma(#text)
// For long loops, which compilers would otherwise unroll until they run out of registers.
#define UNROLL_BY(n) PRAGMA(unroll n)
#if GPU_AMD
#define KERNEL(name, threads, parameters)                                                                              \
  extern "C" __attribute__((global, amdgpu_flat_work_group_size(threads, threads))) void name parameters
// `waves` is how many waves share a SIMD unit: registers need not suffice for more. A compute unit
// has four SIMD units (on RDNA two compute units share memory and have four together).
#define KERNEL_FOR_WAVES(name, threads, waves, parameters)                                                             \
  extern "C" __attribute__((global, amdgpu_flat_work_group_size(threads, threads),                                     \
                            amdgpu_waves_per_eu(waves, waves))) void name parameters
// As few waves as give each of them all the registers that it may have. With 1536 registers, which
// are allocated 24 at a time, six waves would have 240 each.
#define KERNEL_FOR_BLOCKS(name, threads, blocks, parameters)                                                           \
  KERNEL_FOR_WAVES(name, threads, (REGISTERS == 1536 ? 5 : REGISTERS / 256), parameters)
#else
#define KERNEL(name, threads, parameters)                                                                              \
  extern "C" __attribute__((global, launch_bounds(threads))) void name parameters
#define KERNEL_FOR_BLOCKS(name, threads, blocks, parameters)                                                           \
  extern "C" __attribute__((global, launch_bounds(threads, blocks))) void name parameters
#endif
#endif

// ------------------------------------------------------------------------------------------------ threads

#if GPU_AMD
DEVICE u32 thread_x() { return __builtin_amdgcn_workitem_id_x(); }
DEVICE u32 block_x() { return __builtin_amdgcn_workgroup_id_x(); }
DEVICE u32 block_y() { return __builtin_amdgcn_workgroup_id_y(); }
DEVICE u32 block_z() { return __builtin_amdgcn_workgroup_id_z(); }

// Waits until all threads of the block are here. Each then sees what the others wrote.
DEVICE void barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
}

// The same for shared memory alone: the caches for device memory stay as they are.
DEVICE void shared_barrier() {
#if __clang_major__ >= 20 || (__clang_major__ == 19 && __clang_minor__ >= 1)
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup", "local");
  __builtin_amdgcn_s_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup", "local");
#else
  barrier();
#endif
}

// The same for the lanes of a wave.
DEVICE void wave_barrier() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

DEVICE u32 shuffle_from(u32 value, u32 lane) { return (u32)__builtin_amdgcn_ds_bpermute((int)(lane * 4), (int)value); }
#elif GPU_NVIDIA
DEVICE u32 thread_x() { return __nvvm_read_ptx_sreg_tid_x(); }
DEVICE u32 block_x() { return __nvvm_read_ptx_sreg_ctaid_x(); }
DEVICE u32 block_y() { return __nvvm_read_ptx_sreg_ctaid_y(); }
DEVICE u32 block_z() { return __nvvm_read_ptx_sreg_ctaid_z(); }

DEVICE void barrier() { __syncthreads(); }
DEVICE void shared_barrier() { __syncthreads(); }
DEVICE void wave_barrier() { __nvvm_bar_warp_sync(0xffffffffu); }

DEVICE u32 shuffle_from(u32 value, u32 lane) {
  return (u32)__nvvm_shfl_sync_idx_i32(0xffffffffu, (int)value, (int)lane, 31);
}
#else
DEVICE u32 thread_x() { return sim::thread; }
DEVICE u32 block_x() { return sim::block[0]; }
DEVICE u32 block_y() { return sim::block[1]; }
DEVICE u32 block_z() { return sim::block[2]; }
DEVICE void barrier() { sim::barrier(); }
DEVICE void shared_barrier() { sim::barrier(); }
DEVICE void wave_barrier() { sim::exchange(nullptr, 0); }
DEVICE u32 shuffle_from(u32 value, u32 lane) { return sim::shuffle(value, lane); }
#endif

DEVICE u32 lane_id() { return thread_x() % WAVE; }
DEVICE u32 wave_id() { return thread_x() / WAVE; }

// ------------------------------------------------------------------------------------------------ launches

// NVIDIA GPUs from sm_90 on can begin a launch while the one before it still runs, if the host asks
// for it ("programmatic dependent launch", CUDA C++ Programming Guide). Elsewhere these functions
// do nothing. All threads call both.

// Lets the next launch begin as soon as there is room for its blocks.
DEVICE void let_next_begin() {
#if GPU_NVIDIA && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until all launches before this one are done. Until then a kernel writes nothing, and reads
// nothing that they may write.
DEVICE void wait_for_launches() {
#if GPU_NVIDIA && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// For kernels that have nothing to do before the wait.
DEVICE void begin_launch() {
  let_next_begin();
  wait_for_launches();
}

// Prefetches a part of device memory that is read after the wait.
DEVICE void prefetch([[maybe_unused]] const u8 *from) {
#if GPU_NVIDIA && __CUDA_ARCH__ >= 900
  asm volatile("prefetch.global.L2 [%0];" : : "l"(from));
#endif
}

// ------------------------------------------------------------------------------------------------ bits

DEVICE u32 bits_of(f32 value) { return __builtin_bit_cast(u32, value); }
DEVICE f32 f32_of(u32 bits) { return __builtin_bit_cast(f32, bits); }
DEVICE u64 bits_of(f64 value) { return __builtin_bit_cast(u64, value); }
DEVICE f64 f64_of(u64 bits) { return __builtin_bit_cast(f64, bits); }

template <class T> DEVICE T smaller(T a, T b) { return a < b ? a : b; }
template <class T> DEVICE T larger(T a, T b) { return a > b ? a : b; }

DEVICE u32 ceil_div(u32 a, u32 b) { return (a + b - 1) / b; }
DEVICE u32 round_up(u32 a, u32 b) { return ceil_div(a, b) * b; }

#if GPU_HOST
DEVICE f32 f16_to_f32(u16 bits) { return sim::f16_to_f32(bits); }
DEVICE u16 f32_to_f16(f32 value) { return sim::f32_to_f16(value); }
#else
DEVICE f32 f16_to_f32(u16 bits) { return (f32) __builtin_bit_cast(_Float16, bits); }
// Rounds to the nearest half, ties to even. Values that are too large become infinite.
DEVICE u16 f32_to_f16(f32 value) { return __builtin_bit_cast(u16, (_Float16)value); }
#endif
DEVICE f32 bf16_to_f32(u16 bits) { return f32_of((u32)bits << 16); }

// Hides a value from the compiler, so that it does not keep results of the value in registers from
// one round of a loop to the next.
DEVICE u32 opaque(u32 value) {
#if GPU_AMD
  asm volatile("" : "+v"(value));
#elif GPU_NVIDIA
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// The same for a structure, on AMD. Otherwise the compiler starts on several similar structures at
// once, and runs out of registers.
template <class T> DEVICE void keep_apart([[maybe_unused]] T &value) {
#if GPU_AMD
  struct Words {
    u32 words[sizeof(T) / 4];
  };
  Words all = __builtin_bit_cast(Words, value);
  UNROLL for (u32 i = 0; i < sizeof(T) / 4; i++) all.words[i] = opaque(all.words[i]);
  value = __builtin_bit_cast(T, all);
#endif
}

// Keeps loads after this behind what comes before it.
DEVICE void keep_order() {
#if !GPU_HOST
  asm volatile("" ::: "memory");
#endif
}

// Issues the loads before this before anything after it begins.
DEVICE void begin_loads() {
#if GPU_AMD
  asm volatile("" ::: "memory");
#if __has_builtin(__builtin_amdgcn_sched_barrier)
  __builtin_amdgcn_sched_barrier(0);
#endif
#endif
}

// ------------------------------------------------------------------------------------------------ arithmetic

DEVICE f32 mul_add(f32 a, f32 b, f32 c) { return __builtin_fmaf(a, b, c); }
DEVICE f32 absolute(f32 x) { return f32_of(bits_of(x) & 0x7fffffffu); }
DEVICE f32 square_root(f32 x) { return __builtin_sqrtf(x); }
DEVICE f64 round_toward_infinity(f64 x) { return __builtin_ceil(x); }

// 2^x with a relative error of about 1e-7. A result below the normal range may be 0.
#if GPU_AMD
#if __has_builtin(__builtin_amdgcn_exp2f)
DEVICE f32 exp2_fast(f32 x) { return __builtin_amdgcn_exp2f(x); }
#else
DEVICE f32 exp2_fast(f32 x) { return __builtin_exp2f(x); } // hipRTC before ROCm 6
#endif
#elif GPU_NVIDIA
DEVICE f32 exp2_fast(f32 x) { return __nvvm_ex2_approx_ftz_f(x); }
#else
DEVICE f32 exp2_fast(f32 x) { return x < -126.0f ? 0.0f : __builtin_exp2f(x); }
#endif

DEVICE f32 exp_fast(f32 x) { return exp2_fast(x * 1.44269504f); }
DEVICE f32 sigmoid(f32 x) { return 1.0f / (1.0f + exp_fast(-x)); }
DEVICE f32 tanh_fast(f32 x) {
  if (absolute(x) < 0.25f) {
    // The difference below would cancel. Five terms of the series leave an error of 1e-8.
    f32 y = x * x;
    f32 sum = mul_add(mul_add(mul_add(62.0f / 2835.0f, y, -17.0f / 315.0f), y, 2.0f / 15.0f), y, -1.0f / 3.0f);
    return mul_add(x * y, sum, x);
  }
  return 1.0f - 2.0f / (exp_fast(2.0f * x) + 1.0f);
}

// sum + the dot product of four pairs of signed bytes
#if GPU_AMD && (defined(__GFX11__) || defined(__GFX12__))
DEVICE i32 dot4(u32 a, u32 b, i32 sum) { return __builtin_amdgcn_sudot4(true, (int)a, true, (int)b, sum, false); }
#elif GPU_AMD && (defined(__gfx906__) || defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx940__) ||         \
                  defined(__gfx941__) || defined(__gfx942__) || defined(__gfx950__) || defined(__gfx1011__) ||         \
                  defined(__gfx1012__) || defined(__gfx1030__) || defined(__gfx1031__) || defined(__gfx1032__) ||      \
                  defined(__gfx1033__) || defined(__gfx1034__) || defined(__gfx1035__) || defined(__gfx1036__) ||      \
                  defined(__gfx10_3_generic__) || defined(__gfx9_4_generic__))
DEVICE i32 dot4(u32 a, u32 b, i32 sum) { return __builtin_amdgcn_sdot4((int)a, (int)b, sum, false); }
#elif GPU_NVIDIA
DEVICE i32 dot4(u32 a, u32 b, i32 sum) {
  i32 result;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(sum));
  return result;
}
#else
DEVICE i32 dot4(u32 a, u32 b, i32 sum) {
  for (u32 i = 0; i < 32; i += 8) sum += (i32)(i8)(a >> i) * (i32)(i8)(b >> i);
  return sum;
}
#endif

// a * b, where both fit in 24 bits with their signs: AMD GPUs multiply these four times as fast.
DEVICE i32 short_product(i32 a, i32 b) {
#if GPU_AMD
  return (a << 8 >> 8) * (b << 8 >> 8);
#else
  return a * b;
#endif
}

// The dot product of 16 pairs of signed bytes.
DEVICE i32 dot16(const u32 *a, u32x4 b) {
  return dot4(a[0], b[0], dot4(a[1], b[1], dot4(a[2], b[2], dot4(a[3], b[3], 0))));
}

// ------------------------------------------------------------------------------------------------ pairs of halves

// Two f16 in a word, the first in the low half, as packed instructions take them.
#if GPU_HOST
DEVICE u32 pack_halves(f32 low, f32 high) { return f32_to_f16(low) | (u32)f32_to_f16(high) << 16; }
DEVICE u32 half2_sub(u32 a, u32 b) {
  return pack_halves(f16_to_f32((u16)a) - f16_to_f32((u16)b), f16_to_f32((u16)(a >> 16)) - f16_to_f32((u16)(b >> 16)));
}
// Products of halves are exact in f32, so only the sum is rounded twice.
DEVICE u32 half2_mul_add(u32 a, u32 b, u32 c) {
  return pack_halves(f16_to_f32((u16)a) * f16_to_f32((u16)b) + f16_to_f32((u16)c),
               f16_to_f32((u16)(a >> 16)) * f16_to_f32((u16)(b >> 16)) + f16_to_f32((u16)(c >> 16)));
}
#else
typedef _Float16 f16x2 __attribute__((ext_vector_type(2)));
DEVICE u32 pack_halves(f32 low, f32 high) {
  f16x2 pair = {(_Float16)low, (_Float16)high};
  return __builtin_bit_cast(u32, pair);
}
DEVICE u32 half2_sub(u32 a, u32 b) {
  return __builtin_bit_cast(u32, __builtin_bit_cast(f16x2, a) - __builtin_bit_cast(f16x2, b));
}
DEVICE u32 half2_mul_add(u32 a, u32 b, u32 c) {
  f16x2 x = __builtin_bit_cast(f16x2, a), y = __builtin_bit_cast(f16x2, b), z = __builtin_bit_cast(f16x2, c);
#if __has_builtin(__builtin_elementwise_fma)
  return __builtin_bit_cast(u32, __builtin_elementwise_fma(x, y, z));
#else
  return __builtin_bit_cast(u32, x * y + z); // compilers that old know no GPU with matrix cores that uses this
#endif
}
#endif

// The low halves of two words (which 0) or the high ones (1).
DEVICE u32 pair_of_halves(u32 a, u32 b, u32 which) {
  return which ? a >> 16 | (b & 0xffff0000u) : (a & 0xffffu) | b << 16;
}

// The power of two by which a row is multiplied before it becomes f16. It brings the largest
// magnitude of the row, whose bits are `max`, to 2^14..2^15. Returns its exponent as f32 stores it;
// 254 minus that is the exponent of the reciprocal. Both are normal numbers, and both are 1 where
// an element is not finite.
DEVICE u32 halving_exponent(u32 max) {
  u32 exponent = max >> 23;
  return exponent == 255 ? 127 : smaller(127u + 14 + 127 - exponent, 253u);
}

// Where the halves of 8 columns of a row lie, from `column` on. Eight neighbours of each of 16 rows
// follow each other, then the next eight columns. So lanes with a row each load one contiguous
// piece.
DEVICE u64 halves_at(u32 row, u32 column, u32 columns) {
  return ((u64)(row / 16) * (columns / 8) + column / 8) * 128 + row % 16 * 8;
}

// 1024 plus the first two bytes (PAIR 0) of a word, or the last two (PAIR 1), as halves: the bits
// of 1024 + q are 0x6400 + q.
template <u32 PAIR> DEVICE u32 halves_of_bytes(u32 q) {
#if GPU_AMD
  return __builtin_amdgcn_perm(0x64646464u, q, PAIR ? 0x04030402u : 0x04010400u);
#elif GPU_NVIDIA
  return __nvvm_prmt(q, 0x64646464u, PAIR ? 0x4342u : 0x4140u);
#else
  q >>= 16 * PAIR;
  return (q & 0xffu) | (q & 0xff00u) << 8 | 0x64006400u;
#endif
}

// ------------------------------------------------------------------------------------------------ waves and blocks

// All lanes of a wave call these together. `width` is a power of two up to WAVE: the lanes of an
// aligned group of that size get the same result.

#if GPU_AMD && WAVE == 32
DEVICE u32 shuffle_xor(u32 value, u32 mask) {
  if (mask != 16) return shuffle_from(value, lane_id() ^ mask);
  // Swaps two rows of 16 lanes. The operands are in registers, because the emulator that proves the
  // kernels knows no other form of this instruction. The result is opaque, because compilers would
  // move it behind a branch that only some lanes take.
  i32 low = 0x76543210, high = (i32)0xfedcba98;
  asm("" : "+s"(low), "+s"(high));
  return opaque((u32)__builtin_amdgcn_permlanex16((int)value, (int)value, low, high, true, false));
}
#else
DEVICE u32 shuffle_xor(u32 value, u32 mask) { return shuffle_from(value, lane_id() ^ mask); }
#endif
DEVICE f32 shuffle_xor(f32 value, u32 mask) { return f32_of(shuffle_xor(bits_of(value), mask)); }
DEVICE i32 shuffle_xor(i32 value, u32 mask) { return (i32)shuffle_xor((u32)value, mask); }
DEVICE u64 shuffle_xor(u64 value, u32 mask) {
  return (u64)shuffle_xor((u32)(value >> 32), mask) << 32 | shuffle_xor((u32)value, mask);
}

#if GPU_AMD
// AMD GPUs move values within a row of 16 lanes as fast as they add. Through shared memory, each
// step of a sum costs the latency of a load.
template <u32 CONTROL> DEVICE u32 moved(u32 value) {
  u32 result = (u32)__builtin_amdgcn_mov_dpp((int)value, CONTROL, 0xf, 0xf, true);
  // Both have registers of their own. The emulator that proves the kernels executes lane by lane,
  // and later lanes would see a result that replaces its operand.
  asm volatile("" : "+v"(result) : "v"(value));
  return result;
}

// The value of a lane in the other half of the same group of 2 * mask lanes. That suffices where
// all lanes of a half have the same value.
DEVICE u32 from_other_half(u32 value, u32 mask) {
  if (mask == 1) return moved<0xb1>(value);  // quad_perm:[1,0,3,2]
  if (mask == 2) return moved<0x4e>(value);  // quad_perm:[2,3,0,1]
  if (mask == 4) return moved<0x141>(value); // row_half_mirror
  if (mask == 8) return moved<0x128>(value); // row_ror:8
  return shuffle_xor(value, mask);
}
DEVICE f32 from_other_half(f32 value, u32 mask) { return f32_of(from_other_half(bits_of(value), mask)); }
DEVICE i32 from_other_half(i32 value, u32 mask) { return (i32)from_other_half((u32)value, mask); }
DEVICE u64 from_other_half(u64 value, u32 mask) {
  return (u64)from_other_half((u32)(value >> 32), mask) << 32 | from_other_half((u32)value, mask);
}

// The value of one lane, for all lanes.
DEVICE u32 from_lane(u32 value, u32 lane) { return (u32)__builtin_amdgcn_readlane((int)value, (int)lane); }
DEVICE f32 from_lane(f32 value, u32 lane) { return f32_of(from_lane(bits_of(value), lane)); }
DEVICE i32 from_lane(i32 value, u32 lane) { return (i32)from_lane((u32)value, lane); }
DEVICE u64 from_lane(u64 value, u32 lane) {
  return (u64)from_lane((u32)(value >> 32), lane) << 32 | from_lane((u32)value, lane);
}

// Combines the values of `width` lanes with `both`, two at a time.
template <class T, class Both> DEVICE T wave_fold(T value, u32 width, const Both &both) {
  UNROLL for (u32 mask = 1; mask < width; mask *= 2) {
    if (mask == 16 && width == 64) {
      // The lanes of each row of 16 now have the same value. Rows are combined through scalar
      // registers.
      T rows[4];
      UNROLL for (u32 i = 0; i < 4; i++) rows[i] = from_lane(value, 16 * i);
      return both(both(rows[0], rows[1]), both(rows[2], rows[3]));
    }
    value = both(value, from_other_half(value, mask));
  }
  return value;
}
template <class T> DEVICE T wave_sum(T value, u32 width = WAVE) {
  return wave_fold(value, width, [](T a, T b) __attribute__((always_inline)) { return a + b; });
}
template <class T> DEVICE T wave_max(T value, u32 width = WAVE) {
  return wave_fold(value, width, [](T a, T b) __attribute__((always_inline)) { return larger(b, a); });
}
#else
template <class T> DEVICE T wave_sum(T value, u32 width = WAVE) {
  UNROLL for (u32 mask = width / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}
template <class T> DEVICE T wave_max(T value, u32 width = WAVE) {
  UNROLL for (u32 mask = width / 2; mask > 0; mask /= 2) value = larger(shuffle_xor(value, mask), value);
  return value;
}
#endif

// All threads of the block call these together. `scratch` is shared memory for THREADS / WAVE
// values, which is free again after the next barrier.
template <u32 THREADS, class T> DEVICE T block_sum(T value, T *scratch) {
  value = wave_sum(value);
  if (lane_id() == 0) scratch[wave_id()] = value;
  barrier();
  value = scratch[0];
  UNROLL for (u32 wave = 1; wave < THREADS / WAVE; wave++) value += scratch[wave];
  return value;
}
template <u32 THREADS, class T> DEVICE T block_max(T value, T *scratch) {
  value = wave_max(value);
  if (lane_id() == 0) scratch[wave_id()] = value;
  barrier();
  value = scratch[0];
  UNROLL for (u32 wave = 1; wave < THREADS / WAVE; wave++) value = larger(value, scratch[wave]);
  return value;
}

// Adds to a number in shared memory and returns its old value.
template <class T> DEVICE T shared_add(T *sum, T value) {
#if GPU_AMD
  return __hip_atomic_fetch_add(sum, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_WORKGROUP);
#elif GPU_NVIDIA
  return __atomic_fetch_add(sum, value, __ATOMIC_RELAXED);
#else
  T before = *sum;
  *sum += value;
  return before;
#endif
}

// For blocks of a launch that work together. A block that calls `acquired` sees everything that
// another block wrote before it called `released`, if it learned of that by `device_add`, which
// adds to a number in device memory and returns its old value.
DEVICE void released() {
#if GPU_AMD
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "agent");
#elif GPU_NVIDIA
  __nvvm_membar_gl();
#endif
}
DEVICE void acquired() {
#if GPU_AMD
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "agent");
#elif GPU_NVIDIA
  __nvvm_membar_gl();
#endif
}
DEVICE u32 device_add(u32 *sum, u32 value) {
#if GPU_AMD
  return __hip_atomic_fetch_add(sum, value, __ATOMIC_RELAXED, __HIP_MEMORY_SCOPE_AGENT);
#elif GPU_NVIDIA
  return __atomic_fetch_add(sum, value, __ATOMIC_RELAXED);
#else
  u32 before = *sum;
  *sum += value;
  return before;
#endif
}
