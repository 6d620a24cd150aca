// Matrix cores: products of 16 x 16 x 16 halves with sums in f32, behind one interface for NVIDIA's
// mma, RDNA's WMMA, CDNA's MFMA and the simulator. MATRIX_CORES says whether the target has them.
//
// An operand lies in shared memory as rows of K halves. The rows of the first operand are the rows
// of the product, the rows of the second are its columns. Rows are cut into chunks of 16 bytes,
// which `swizzled` permutes, so that neither writing rows nor loading fragments has bank conflicts.
// A Fragment is 16 rows and 16 of K, spread over the lanes of a wave. An Accumulator holds the
// sums: element i of a lane belongs to row(i) and column(i).
//
// An operand may also come from registers. A lane then has LANE_ROWS of the rows of a fragment,
// number lane_row(i), and LANE_HALVES halves of K of each, those of part lane_part(). The caller
// chooses which elements of K these are, as long as both operands agree.
#pragma once

#include "common/gpu.h"

#if GPU_NVIDIA || GPU_HOST || defined(__GFX11__) || defined(__GFX12__) || defined(__gfx908__) ||                       \
    defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__) || defined(__gfx950__) || \
    defined(__gfx9_4_generic__)
#define MATRIX_CORES 1
#endif

#if MATRIX_CORES

// The rows and columns of a fragment's product, and how much of K it takes.
#define FRAGMENT 16

// Halves in a chunk.
#define CHUNK_HALVES 8

// The place of a chunk of a row, in chunks from the start of a tile. Rows of the tile have K
// halves.
template <u32 K> DEVICE u32 swizzled(u32 row, u32 chunk) {
  static_assert(K == 32 || K == 64 || K == 128, "rows of 4, 8 or 16 chunks");
  if (K == 32) return row * 4 + (chunk ^ (row / 2 % 4));
  return row * (K / CHUNK_HALVES) + (chunk ^ (row % 8) ^ (chunk / 8 * 2));
}

#if GPU_NVIDIA

#define LANE_ROWS 2
#define LANE_HALVES 4
DEVICE u32 lane_row(u32 i) { return lane_id() / 4 + i * 8; }
DEVICE u32 lane_part() { return lane_id() % 4; }

struct Fragment {
  u32 words[4];
};

// Fragment number `f` of a lane's rows, which are given as words.
template <u32 WORDS> DEVICE Fragment first_of(const u32 (&rows)[LANE_ROWS][WORDS], u32 f) {
  return {{rows[0][2 * f], rows[1][2 * f], rows[0][2 * f + 1], rows[1][2 * f + 1]}};
}
template <u32 WORDS> DEVICE Fragment second_of(const u32 (&rows)[LANE_ROWS][WORDS], u32 f) {
  return {{rows[0][2 * f], rows[0][2 * f + 1], rows[1][2 * f], rows[1][2 * f + 1]}};
}

// Four tiles of 8 rows and half of K. Lane i gives the address of row i % 8 of tile i / 8.
DEVICE Fragment load_four(const u32x4 *from) {
  u32 address = (u32)(u64)(__attribute__((address_space(3))) const void *)from;
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.words[0]), "=r"(f.words[1]), "=r"(f.words[2]), "=r"(f.words[3])
               : "r"(address)
               : "memory");
  return f;
}

// Rows `row` (a multiple of 16) to row + 15 of the first operand, and part `part` of 16 of K.
template <u32 K> DEVICE Fragment load_first(const u32x4 *tile, u32 row, u32 part) {
  return load_four(tile + swizzled<K>(row + lane_id() % 16, part * 2 + lane_id() / 16));
}

// The same of the second operand: the words of 8 rows lie next to each other.
template <u32 K> DEVICE Fragment load_second(const u32x4 *tile, u32 row, u32 part) {
  return load_four(tile + swizzled<K>(row + lane_id() / 16 * 8 + lane_id() % 8, part * 2 + lane_id() / 8 % 2));
}

struct Accumulator {
  static constexpr u32 ELEMENTS = 8;
  // How many lanes share a row, how many rows a lane has, and which of them an element is in.
  static constexpr u32 LANES = 4, ROWS = 2;
  static MEMBER u32 row_of_lane(u32 i) { return i / 2 % 2; }
  f32 sums[ELEMENTS];
  static MEMBER u32 row(u32 i) { return lane_id() / 4 + i / 2 % 2 * 8; }
  static MEMBER u32 column(u32 i) { return i / 4 * 8 + lane_id() % 4 * 2 + i % 2; }
};

DEVICE void multiply_add(const Fragment &a, const Fragment &b, Accumulator &c) {
  UNROLL for (u32 half = 0; half < 2; half++) {
    f32 *s = c.sums + half * 4;
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
        : "r"(a.words[0]), "r"(a.words[1]), "r"(a.words[2]), "r"(a.words[3]), "r"(b.words[half * 2]),
          "r"(b.words[half * 2 + 1]));
  }
}

#elif GPU_AMD && defined(__GFX11__)

typedef _Float16 f16x16 __attribute__((ext_vector_type(16)));
typedef f32 f32x8 __attribute__((ext_vector_type(8)));

#define LANE_HALVES 16
DEVICE u32 lane_part() { return 0; }

struct Fragment {
  // A row for each lane, twice.
  u32x4 words[2];
};

template <u32 K> DEVICE Fragment load_first(const u32x4 *tile, u32 row, u32 part) {
  row += lane_id() % 16;
  return {{tile[swizzled<K>(row, part * 2)], tile[swizzled<K>(row, part * 2 + 1)]}};
}

struct Accumulator {
  static constexpr u32 ELEMENTS = 8;
  static constexpr u32 LANES = 16, ROWS = ELEMENTS;
  static MEMBER u32 row_of_lane(u32 i) { return i; }
  f32x8 sums;
  static MEMBER u32 row(u32 i) { return i * 2 + lane_id() / 16; }
  static MEMBER u32 column(u32) { return lane_id() % 16; }
};

DEVICE void multiply_add(const Fragment &a, const Fragment &b, Accumulator &c) {
  c.sums = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32(__builtin_bit_cast(f16x16, a), __builtin_bit_cast(f16x16, b),
                                                      c.sums);
}

#elif GPU_AMD && defined(__GFX12__)

typedef _Float16 f16x8 __attribute__((ext_vector_type(8)));
typedef f32 f32x8 __attribute__((ext_vector_type(8)));

#define LANE_HALVES 8
DEVICE u32 lane_part() { return lane_id() / 16; }

struct Fragment {
  // A row and one half of K for each lane.
  u32x4 words;
};

template <u32 K> DEVICE Fragment load_first(const u32x4 *tile, u32 row, u32 part) {
  return {tile[swizzled<K>(row + lane_id() % 16, part * 2 + lane_id() / 16)]};
}

struct Accumulator {
  static constexpr u32 ELEMENTS = 8;
  static constexpr u32 LANES = 16, ROWS = ELEMENTS;
  static MEMBER u32 row_of_lane(u32 i) { return i; }
  f32x8 sums;
  static MEMBER u32 row(u32 i) { return lane_id() / 16 * 8 + i; }
  static MEMBER u32 column(u32) { return lane_id() % 16; }
};

DEVICE void multiply_add(const Fragment &a, const Fragment &b, Accumulator &c) {
  c.sums = __builtin_amdgcn_wmma_f32_16x16x16_f16_w32_gfx12(__builtin_bit_cast(f16x8, a),
                                                            __builtin_bit_cast(f16x8, b), c.sums);
}

#else

// CDNA and the simulator. Each 16 lanes have 4 of K and a row each in a wave of 64, 8 in a wave of
// 32.
#define LANE_HALVES (256 / WAVE)
DEVICE u32 lane_part() { return lane_id() / 16; }

struct Fragment {
  u32 words[LANE_HALVES / 2];
};

template <u32 K> DEVICE Fragment load_first(const u32x4 *tile, u32 row, u32 part) {
  u32 first = lane_id() / 16 * LANE_HALVES;
  const u32x2 *from = (const u32x2 *)(tile + swizzled<K>(row + lane_id() % 16, part * 2 + first / 8)) + first % 8 / 4;
  Fragment f;
  UNROLL for (u32 i = 0; i < LANE_HALVES / 2; i++) f.words[i] = from[i / 2][i % 2];
  return f;
}

#if GPU_AMD
typedef _Float16 f16x4 __attribute__((ext_vector_type(4)));
typedef f32 f32x4_sums __attribute__((ext_vector_type(4)));
#endif

struct Accumulator {
  static constexpr u32 ELEMENTS = LANE_HALVES;
  static constexpr u32 LANES = 16, ROWS = ELEMENTS;
  static MEMBER u32 row_of_lane(u32 i) { return i; }
#if GPU_AMD
  f32x4_sums sums;
#else
  f32 sums[ELEMENTS];
#endif
  static MEMBER u32 row(u32 i) { return lane_id() / 16 * ELEMENTS + i; }
  static MEMBER u32 column(u32) { return lane_id() % 16; }
};

DEVICE void multiply_add(const Fragment &a, const Fragment &b, Accumulator &c) {
#if GPU_AMD
  c.sums = __builtin_amdgcn_mfma_f32_16x16x16f16(__builtin_bit_cast(f16x4, a), __builtin_bit_cast(f16x4, b), c.sums, 0,
                                                 0, 0);
#else
  // Lane i has row i % 16 and the part i / 16 of K.
  f32 row_of_a[16], row_of_b[16];
  u32 both[LANE_HALVES];
  for (u32 i = 0; i < LANE_HALVES / 2; i++) both[i] = a.words[i], both[LANE_HALVES / 2 + i] = b.words[i];
  const u32 *all = sim::exchange(both, LANE_HALVES);
  for (u32 i = 0; i < Accumulator::ELEMENTS; i++) {
    for (u32 k = 0; k < 16; k++) {
      u32 word = k % LANE_HALVES / 2, shift = k % 2 * 16, lane = k / LANE_HALVES * 16;
      const u32 *of_a = all + (lane + Accumulator::row(i)) * sim::EXCHANGED;
      const u32 *of_b = all + (lane + Accumulator::column(i)) * sim::EXCHANGED + LANE_HALVES / 2;
      row_of_a[k] = f16_to_f32(sim::operand((u16)(of_a[word] >> shift)));
      row_of_b[k] = f16_to_f32(sim::operand((u16)(of_b[word] >> shift)));
    }
    for (u32 k = 0; k < 16; k++) c.sums[i] += row_of_a[k] * row_of_b[k];
  }
#endif
}

#endif

// Delays loads from `place` until the sums are there. Otherwise compilers load everything at once.
DEVICE void keep_behind([[maybe_unused]] u32 &place, [[maybe_unused]] Accumulator &sums) {
#if GPU_AMD && (defined(__GFX11__) || defined(__GFX12__))
  asm volatile("" : "+v"(place), "+v"(sums.sums));
#endif
}

#if !GPU_NVIDIA
#define LANE_ROWS 1
DEVICE u32 lane_row(u32) { return lane_id() % 16; }

template <u32 WORDS> DEVICE Fragment first_of(const u32 (&rows)[LANE_ROWS][WORDS], u32 f) {
  struct {
    u32 words[LANE_HALVES / 2];
  } fragment;
  UNROLL for (u32 i = 0; i < LANE_HALVES / 2; i++) fragment.words[i] = rows[0][f * (LANE_HALVES / 2) + i];
  return __builtin_bit_cast(Fragment, fragment);
}
template <u32 WORDS> DEVICE Fragment second_of(const u32 (&rows)[LANE_ROWS][WORDS], u32 f) {
  return first_of<WORDS>(rows, f);
}

template <u32 K> DEVICE Fragment load_second(const u32x4 *tile, u32 row, u32 part) {
  return load_first<K>(tile, row, part);
}
#endif

#endif
