// The quantized formats: how device memory holds them, and how kernels read them.
//
// Weights are *planar*: the upload permutes the bytes of a GGUF tensor without loss. The blocks of
// a format are cut into fields. Plane i holds field i of all blocks, in the order of the file, and
// each plane starts at a multiple of 256 bytes (the gap before it is not read). So neighbouring
// lanes load neighbouring, aligned bytes. The fields, as (offset in the GGUF block, length), in the
// order of the planes:
//
//   F32, F16, BF16   one plane: the tensor as it is
//   Q4_0   qs (2, 16)     d (0, 2)
//   Q4_1   qs (4, 16)     d, m (0, 4)
//   Q5_0   qs (6, 16)     qh (2, 4)      d (0, 2)
//   Q5_1   qs (8, 16)     qh (4, 4)      d, m (0, 4)
//   Q8_0   qs (2, 32)     d (0, 2)
//   Q2_K   qs (16, 64)    scales (0, 16)      d, dmin (80, 4)
//   Q3_K   qs (32, 64)    hmask (0, 32)       scales (96, 12)    d (108, 2)
//   Q4_K   qs (16, 128)   d, dmin, scales (0, 16)
//   Q5_K   qs (48, 128)   qh (16, 32)         d, dmin, scales (0, 16)
//   Q6_K   ql (0, 128)    qh (128, 64)        scales (192, 16)   d (208, 2)
//
// Kernels work on *units* of 32 weights: two runs of 16, each with a scale and, in some formats, a
// minimum. In formats of 256 weights a block, 16 consecutive bytes hold two runs that are not
// neighbours: `first` and `second` are their places in the block. A weight is scale * (q - ZERO) -
// min.
#pragma once

#include "common/gpu.h"

// Weights in a unit.
#define UNIT_WEIGHTS 32

// The bytes of a plane, with the gap behind it.
DEVICE u64 plane_bytes(u64 blocks, u32 field) { return (blocks * field + 255) & ~(u64)255; }

struct Unit {
  // The q of each run, four signed bytes a word, in order.
  u32 a[4], b[4];
  f32 scale_a, scale_b;
  // Only in formats with minima.
  f32 min_a, min_b;
};

DEVICE u32x4 load16(const u8 *p) { return *(const u32x4 *)p; }
DEVICE u16 load_u16(const u8 *p) { return *(const u16_alias *)p; }
DEVICE u32 load_u32(const u8 *p) { return *(const u32_alias *)p; }

#define NIBBLES 0x0f0f0f0fu
#define PAIRS 0x03030303u
#define ONES 0x01010101u

// The four low bits of `bits`, one in the lowest bit of each byte.
DEVICE u32 spread_bits(u32 bits) { return ((bits & 15) * 0x00204081u) & ONES; }

// The low nibbles of 16 bytes are one run, the high ones the other.
DEVICE void split_nibbles(u32x4 q, Unit &unit) {
  UNROLL for (u32 i = 0; i < 4; i++) {
    unit.a[i] = q[i] & NIBBLES;
    unit.b[i] = q[i] >> 4 & NIBBLES;
  }
}

// Bit i of `high` is the fifth of weight i.
DEVICE void add_fifth_bits(u32 high, Unit &unit) {
  UNROLL for (u32 i = 0; i < 4; i++) {
    unit.a[i] |= spread_bits(high >> (4 * i)) << 4;
    unit.b[i] |= spread_bits(high >> (16 + 4 * i)) << 4;
  }
}

// A format fetches the stored form of a unit (Raw), and decodes it. Kernels that wait for memory
// fetch several units before they decode the first.
template <class F> struct Format {
  // Makes the data that units of one block share the same variable, since a compiler cannot know
  // that it is equal.
  template <class Raw> static MEMBER void share(Raw &, const Raw &) {}
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const {
    F::decode(static_cast<const F *>(this)->fetch(block, u), u, unit);
  }
};

// Formats of 32 weights a block: a block is a unit, and its two runs share scale and minimum.
struct Block32 {
  static constexpr u32 BLOCK = 32;
  // Whether the runs are neighbours in a group of 32 activations, and share scale and minimum.
  static constexpr bool ONE_SCALE = true;
  static constexpr bool MINS = false;
  // Whether the q are signed bytes.
  static constexpr bool SIGNED = false;
  static MEMBER u32 first(u32) { return 0; }
  static MEMBER u32 second(u32) { return 16; }
};

struct Q4_0 : Block32, Format<Q4_0> {
  static constexpr i32 ZERO = 8;
  const u8 *qs, *d;
  MEMBER Q4_0(const u8 *w, u64 blocks) : qs(w), d(w + plane_bytes(blocks, 16)) {}
  struct Raw {
    u32x4 q;
    u16 d;
  };
  MEMBER Raw fetch(u64 block, u32) const { return {load16(qs + block * 16), load_u16(d + block * 2)}; }
  static MEMBER void decode(const Raw &raw, u32, Unit &unit) {
    split_nibbles(raw.q, unit);
    unit.scale_a = unit.scale_b = f16_to_f32(raw.d);
  }
};

struct Q4_1 : Block32, Format<Q4_1> {
  static constexpr i32 ZERO = 0;
  static constexpr bool MINS = true;
  const u8 *qs, *dm;
  MEMBER Q4_1(const u8 *w, u64 blocks) : qs(w), dm(w + plane_bytes(blocks, 16)) {}
  struct Raw {
    u32x4 q;
    u32 dm;
  };
  MEMBER Raw fetch(u64 block, u32) const { return {load16(qs + block * 16), load_u32(dm + block * 4)}; }
  static MEMBER void decode(const Raw &raw, u32, Unit &unit) {
    split_nibbles(raw.q, unit);
    unit.scale_a = unit.scale_b = f16_to_f32((u16)raw.dm);
    unit.min_a = unit.min_b = -f16_to_f32((u16)(raw.dm >> 16));
  }
};

struct Q5_0 : Block32, Format<Q5_0> {
  static constexpr i32 ZERO = 16;
  const u8 *qs, *qh, *d;
  MEMBER Q5_0(const u8 *w, u64 blocks)
      : qs(w), qh(qs + plane_bytes(blocks, 16)), d(qh + plane_bytes(blocks, 4)) {}
  struct Raw {
    u32x4 q;
    u32 high;
    u16 d;
  };
  MEMBER Raw fetch(u64 block, u32) const {
    return {load16(qs + block * 16), load_u32(qh + block * 4), load_u16(d + block * 2)};
  }
  static MEMBER void decode(const Raw &raw, u32, Unit &unit) {
    split_nibbles(raw.q, unit);
    add_fifth_bits(raw.high, unit);
    unit.scale_a = unit.scale_b = f16_to_f32(raw.d);
  }
};

struct Q5_1 : Block32, Format<Q5_1> {
  static constexpr i32 ZERO = 0;
  static constexpr bool MINS = true;
  const u8 *qs, *qh, *dm;
  MEMBER Q5_1(const u8 *w, u64 blocks)
      : qs(w), qh(qs + plane_bytes(blocks, 16)), dm(qh + plane_bytes(blocks, 4)) {}
  struct Raw {
    u32x4 q;
    u32 high, dm;
  };
  MEMBER Raw fetch(u64 block, u32) const {
    return {load16(qs + block * 16), load_u32(qh + block * 4), load_u32(dm + block * 4)};
  }
  static MEMBER void decode(const Raw &raw, u32, Unit &unit) {
    split_nibbles(raw.q, unit);
    add_fifth_bits(raw.high, unit);
    unit.scale_a = unit.scale_b = f16_to_f32((u16)raw.dm);
    unit.min_a = unit.min_b = -f16_to_f32((u16)(raw.dm >> 16));
  }
};

struct Q8_0 : Block32, Format<Q8_0> {
  static constexpr i32 ZERO = 0;
  static constexpr bool SIGNED = true;
  const u8 *qs, *d;
  MEMBER Q8_0(const u8 *w, u64 blocks) : qs(w), d(w + plane_bytes(blocks, 32)) {}
  struct Raw {
    u32x4 low, high;
    u16 d;
  };
  MEMBER Raw fetch(u64 block, u32) const {
    return {load16(qs + block * 32), load16(qs + block * 32 + 16), load_u16(d + block * 2)};
  }
  static MEMBER void decode(const Raw &raw, u32, Unit &unit) {
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = raw.low[i];
      unit.b[i] = raw.high[i];
    }
    unit.scale_a = unit.scale_b = f16_to_f32(raw.d);
  }
};

// Formats of 256 weights: 8 units a block.
struct Block256 {
  static constexpr u32 BLOCK = 256;
  static constexpr bool ONE_SCALE = false;
  static constexpr bool MINS = false;
  static constexpr bool SIGNED = false;
};

// Their scales and minima are integers, times numbers for the whole block.
struct Factors {
  f32 d, dmin;
  i32 scale_a, scale_b, min_a, min_b;
};

// A format with factors decodes the q of a unit and its factors apart.
template <class F> struct FormatOfFactors : Format<F> {
  template <class Raw> static MEMBER void decode(const Raw &raw, u32 u, Unit &unit) {
    F::quants(raw, u, unit);
    Factors factors = F::factors(raw, u);
    unit.scale_a = factors.d * (f32)factors.scale_a;
    unit.scale_b = factors.d * (f32)factors.scale_b;
    unit.min_a = factors.dmin * (f32)factors.min_a;
    unit.min_b = factors.dmin * (f32)factors.min_b;
  }
};

// Q2_K and Q3_K: bits 2j and 2j + 1 of byte 32h + l hold weight 128h + 32j + l. A unit is 16 bytes
// and two neighbouring j.
struct Pairs : Block256 {
  static MEMBER u32 half(u32 unit) { return unit / 4; }
  static MEMBER u32 j(u32 unit) { return unit / 2 % 2 * 2; }
  static MEMBER u32 l(u32 unit) { return unit % 2 * 16; }
  static MEMBER u32 first(u32 unit) { return 128 * half(unit) + 32 * j(unit) + l(unit); }
  static MEMBER u32 second(u32 unit) { return first(unit) + 32; }
};

struct Q2_K : Pairs, FormatOfFactors<Q2_K> {
  static constexpr i32 ZERO = 0;
  static constexpr bool MINS = true;
  const u8 *qs, *scales, *d;
  MEMBER Q2_K(const u8 *w, u64 blocks)
      : qs(w), scales(qs + plane_bytes(blocks, 64)), d(scales + plane_bytes(blocks, 16)) {}
  struct Raw {
    u32x4 q;
    u32 dm;
    u8 a, b;
  };
  MEMBER Raw fetch(u64 block, u32 u) const {
    const u8 *factors = scales + block * 16;
    return {load16(qs + block * 64 + 32 * half(u) + l(u)), load_u32(d + block * 4), factors[first(u) / 16],
            factors[second(u) / 16]};
  }
  static MEMBER void quants(const Raw &raw, u32 u, Unit &unit) {
    u32 shift = 2 * j(u);
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = raw.q[i] >> shift & PAIRS;
      unit.b[i] = raw.q[i] >> (shift + 2) & PAIRS;
    }
  }
  static MEMBER Factors factors(const Raw &raw, u32) {
    return {f16_to_f32((u16)raw.dm), f16_to_f32((u16)(raw.dm >> 16)), raw.a & 15, raw.b & 15, raw.a >> 4, raw.b >> 4};
  }
};

struct Q3_K : Pairs, FormatOfFactors<Q3_K> {
  static constexpr i32 ZERO = 4;
  const u8 *qs, *hmask, *scales, *d;
  MEMBER Q3_K(const u8 *w, u64 blocks)
      : qs(w), hmask(qs + plane_bytes(blocks, 64)), scales(hmask + plane_bytes(blocks, 32)),
        d(scales + plane_bytes(blocks, 12)) {}
  // Group g of 16, plus 32. Its low 4 bits are a nibble of byte g % 8, the other two are in byte 8
  // + g % 4.
  static MEMBER i32 scale(u32 low, u32 high, u32 g) {
    return (i32)((low >> (g / 8 * 4) & 15) | (high >> (g / 4 * 2) & 3) << 4) - 32;
  }
  struct Raw {
    u32x4 q, high;
    u16 d;
    u8 low_a, high_a, low_b, high_b;
  };
  MEMBER Raw fetch(u64 block, u32 u) const {
    const u8 *packed = scales + block * 12;
    u32 a = first(u) / 16, b = second(u) / 16;
    return {load16(qs + block * 64 + 32 * half(u) + l(u)), load16(hmask + block * 32 + l(u)), load_u16(d + block * 2),
            packed[a % 8], packed[8 + a % 4], packed[b % 8], packed[8 + b % 4]};
  }
  static MEMBER void quants(const Raw &raw, u32 u, Unit &unit) {
    u32 shift = 2 * j(u), bit = 4 * half(u) + j(u);
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = (raw.q[i] >> shift & PAIRS) | (raw.high[i] >> bit & ONES) << 2;
      unit.b[i] = (raw.q[i] >> (shift + 2) & PAIRS) | (raw.high[i] >> (bit + 1) & ONES) << 2;
    }
  }
  static MEMBER Factors factors(const Raw &raw, u32 u) {
    i32 a = scale(raw.low_a, raw.high_a, first(u) / 16), b = scale(raw.low_b, raw.high_b, second(u) / 16);
    return {f16_to_f32(raw.d), 0.0f, a, b, 0, 0};
  }
};

// Q4_K and Q5_K: byte 32p + l holds weight 64p + l in the low nibble and 64p + 32 + l in the high
// one.
struct NibblePairs : Block256 {
  static constexpr i32 ZERO = 0;
  static constexpr bool MINS = true;
  static MEMBER u32 first(u32 unit) { return unit / 2 * 64 + unit % 2 * 16; }
  static MEMBER u32 second(u32 unit) { return first(unit) + 32; }
  // The 6-bit factors of groups 2p and 2p + 1, which are packed in the last three words of the
  // header.
  static MEMBER Factors factors_of(u32x4 header, u32 p) {
    // Groups 0 to 3 have all 6 bits in the second and third word. Groups 4 to 7 have their low 4
    // bits in the last word, and the high two on top of the others. Masks choose between the two,
    // because branches would keep compilers from fetching ahead. Both groups are in neighbouring
    // bytes.
    u32 early = p / 2 - 1, shift = p % 2 * 16, own = 0x0f0f | (0x3030 & early), borrowed = 0x3030 & ~early;
    u32 low_scales = header[3] ^ ((header[3] ^ header[1]) & early);
    u32 low_mins = header[3] >> 4 ^ ((header[3] >> 4 ^ header[2]) & early);
    u32 scales = (low_scales >> shift & own) | (header[1] >> (shift + 2) & borrowed);
    u32 mins = (low_mins >> shift & own) | (header[2] >> (shift + 2) & borrowed);
    return {f16_to_f32((u16)header[0]), f16_to_f32((u16)(header[0] >> 16)), (i32)(scales & 255), (i32)(scales >> 8),
            (i32)(mins & 255), (i32)(mins >> 8)};
  }
};

struct Q4_K : NibblePairs, FormatOfFactors<Q4_K> {
  const u8 *qs, *header;
  MEMBER Q4_K(const u8 *w, u64 blocks) : qs(w), header(w + plane_bytes(blocks, 128)) {}
  struct Raw {
    u32x4 q, header;
  };
  MEMBER Raw fetch(u64 block, u32 u) const {
    return {load16(qs + block * 128 + u * 16), load16(header + block * 16)};
  }
  static MEMBER void share(Raw &raw, const Raw &other) { raw.header = other.header; }
  static MEMBER void quants(const Raw &raw, u32, Unit &unit) { split_nibbles(raw.q, unit); }
  static MEMBER Factors factors(const Raw &raw, u32 u) { return factors_of(raw.header, u / 2); }
};

struct Q5_K : NibblePairs, FormatOfFactors<Q5_K> {
  const u8 *qs, *qh, *header;
  MEMBER Q5_K(const u8 *w, u64 blocks)
      : qs(w), qh(qs + plane_bytes(blocks, 128)), header(qh + plane_bytes(blocks, 32)) {}
  struct Raw {
    u32x4 q, high, header;
  };
  MEMBER Raw fetch(u64 block, u32 u) const {
    return {load16(qs + block * 128 + u * 16), load16(qh + block * 32 + u % 2 * 16), load16(header + block * 16)};
  }
  static MEMBER void share(Raw &raw, const Raw &other) { raw.header = other.header; }
  static MEMBER void quants(const Raw &raw, u32 u, Unit &unit) {
    split_nibbles(raw.q, unit);
    u32 bit = u / 2 * 2;
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] |= (raw.high[i] >> bit & ONES) << 4;
      unit.b[i] |= (raw.high[i] >> (bit + 1) & ONES) << 4;
    }
  }
  static MEMBER Factors factors(const Raw &raw, u32 u) { return factors_of(raw.header, u / 2); }
};

// The low 4 bits of weight 128h + 32j + l are a nibble (the low one for j < 2) of byte 64h + 32(j %
// 2) + l of ql. The other two are the bits from 2j on of byte 32h + l of qh. A unit is 16 bytes of
// ql.
struct Q6_K : Block256, FormatOfFactors<Q6_K> {
  static constexpr i32 ZERO = 32;
  const u8 *ql, *qh, *scales, *d;
  MEMBER Q6_K(const u8 *w, u64 blocks)
      : ql(w), qh(ql + plane_bytes(blocks, 128)), scales(qh + plane_bytes(blocks, 64)),
        d(scales + plane_bytes(blocks, 16)) {}
  static MEMBER u32 first(u32 unit) { return unit / 4 * 128 + unit / 2 % 2 * 32 + unit % 2 * 16; }
  static MEMBER u32 second(u32 unit) { return first(unit) + 64; }
  struct Raw {
    u32x4 low, high;
    u16 d;
    i8 a, b;
  };
  MEMBER Raw fetch(u64 block, u32 u) const {
    const i8 *factors = (const i8 *)scales + block * 16;
    return {load16(ql + block * 128 + u * 16), load16(qh + block * 64 + u / 4 * 32 + u % 2 * 16),
            load_u16(d + block * 2), factors[first(u) / 16], factors[second(u) / 16]};
  }
  static MEMBER void quants(const Raw &raw, u32 u, Unit &unit) {
    split_nibbles(raw.low, unit);
    u32 shift = u / 2 % 2 * 2;
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] |= (raw.high[i] >> shift & PAIRS) << 4;
      unit.b[i] |= (raw.high[i] >> (shift + 4) & PAIRS) << 4;
    }
  }
  static MEMBER Factors factors(const Raw &raw, u32) { return {f16_to_f32(raw.d), 0.0f, raw.a, raw.b, 0, 0}; }
};

// STAMP(name in kernels, format) for every quantized format. The lists also say which products on
// matrix cores are built: the builder reads them, one format a line (hip/builder/sources.rs).
#define QUANTIZED_FORMATS(STAMP)                                                                                       \
  STAMP(q4_0, Q4_0)                                                                                                    \
  STAMP(q4_1, Q4_1)                                                                                                    \
  STAMP(q5_0, Q5_0)                                                                                                    \
  STAMP(q5_1, Q5_1)                                                                                                    \
  STAMP(q8_0, Q8_0)                                                                                                    \
  STAMP(q2_k, Q2_K)                                                                                                    \
  STAMP(q3_k, Q3_K)                                                                                                    \
  STAMP(q4_k, Q4_K)                                                                                                    \
  STAMP(q5_k, Q5_K)                                                                                                    \
  STAMP(q6_k, Q6_K)

// Formats of plain numbers.
struct F32 {
  typedef f32 Element;
  static MEMBER f32 load(const u8 *w, u64 i) { return ((const f32 *)w)[i]; }
  // Eight elements that start at a multiple of 8.
  static MEMBER void load8(const u8 *w, u64 i, f32 *out) {
    f32x4 low = *(const f32x4 *)(w + i * 4), high = *(const f32x4 *)(w + i * 4 + 16);
    UNROLL for (u32 k = 0; k < 4; k++) out[k] = low[k], out[k + 4] = high[k];
  }
};

struct F16 {
  typedef u16 Element;
  static MEMBER f32 load(const u8 *w, u64 i) { return f16_to_f32(((const u16_alias *)w)[i]); }
  static MEMBER void load8(const u8 *w, u64 i, f32 *out) {
    u32x4 all = load16(w + i * 2);
    UNROLL for (u32 k = 0; k < 4; k++) {
      out[2 * k] = f16_to_f32((u16)all[k]);
      out[2 * k + 1] = f16_to_f32((u16)(all[k] >> 16));
    }
  }
};

struct BF16 {
  typedef u16 Element;
  static MEMBER f32 load(const u8 *w, u64 i) { return bf16_to_f32(((const u16_alias *)w)[i]); }
  static MEMBER void load8(const u8 *w, u64 i, f32 *out) {
    u32x4 all = load16(w + i * 2);
    UNROLL for (u32 k = 0; k < 4; k++) {
      out[2 * k] = f32_of(all[k] << 16);
      out[2 * k + 1] = f32_of(all[k] & 0xffff0000u);
    }
  }
};

// Formats of plain numbers that have products on matrix cores.
#define HALF_FORMATS(STAMP)                                                                                            \
  STAMP(f16, F16)                                                                                                      \
  STAMP(bf16, BF16)
#define FLOAT_FORMATS(STAMP)                                                                                           \
  STAMP(f32, F32)                                                                                                      \
  HALF_FORMATS(STAMP)
