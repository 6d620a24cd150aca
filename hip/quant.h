// The quantized formats, as device memory holds them and as kernels read them.
//
// Weights are *planar*: a lossless permutation of the bytes of a GGUF tensor, made when it is uploaded. The blocks of a
// format are cut into fields; plane i is the field i of all blocks of the tensor, one after the other in the order of
// the file, and each plane starts at a multiple of 256 bytes (the gap before it is not read). Neighbouring lanes then
// load neighbouring, aligned bytes. The fields, as (offset in the GGUF block, length), in the order of the planes:
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
// Kernels work on *units* of 32 weights: two runs of 16, each with a scale and, in some formats, a minimum. In the
// formats of 256 weights a block, 16 consecutive bytes hold two runs that are not neighbours: `first` and `second` say
// where in the block they are. A weight is scale * (q - ZERO) - min.
#pragma once

#include "gpu.h"

// Weights in a unit.
#define UNIT_WEIGHTS 32

// Bytes of a plane with the gap behind it.
DEVICE u64 plane_bytes(u64 blocks, u32 field) { return (blocks * field + 255) & ~(u64)255; }

// A unit as memory holds it: what `load` of a format reads, and `expand` makes a Unit of. Kernels that load ahead keep
// it in registers.
struct RawUnit {
  u32x4 q, high, scales;
};

struct Unit {
  // The q of each run, four signed bytes a word, in order.
  u32 a[4], b[4];
  f32 scale_a, scale_b;
  // Only in formats with minima.
  f32 min_a, min_b;
};

DEVICE u32x4 load16(const u8 *p) { return *(const u32x4 *)p; }
DEVICE u32 load_u16(const u8 *p) { return *(const u16_alias *)p; }
DEVICE u32 load_u32(const u8 *p) { return *(const u32_alias *)p; }

#define NIBBLES 0x0f0f0f0fu
#define PAIRS 0x03030303u
#define ONES 0x01010101u

// The four low bits of `bits`, one in the lowest bit of each byte.
DEVICE u32 spread_bits(u32 bits) { return ((bits & 15) * 0x00204081u) & ONES; }

// What the formats of 32 weights a block have in common: a block is a unit, whose two runs share scale and minimum.
struct Block32 {
  static constexpr u32 BLOCK = 32;
  // Whether the runs are neighbours within a group of 32 activations, and share scale and minimum.
  static constexpr bool ONE_SCALE = true;
  static constexpr bool MINS = false;
  // Whether the q are signed bytes.
  static constexpr bool SIGNED = false;
  static MEMBER u32 first(u32) { return 0; }
  static MEMBER u32 second(u32) { return 16; }
};

struct Q4_0 : Block32 {
  static constexpr i32 ZERO = 8;
  const u8 *qs, *d;
  MEMBER Q4_0(const u8 *w, u64 blocks) : qs(w), d(w + plane_bytes(blocks, 16)) {}
  MEMBER RawUnit load(u64 block, u32) const {
    return {load16(qs + block * 16), u32x4{}, u32x4{load_u16(d + block * 2)}};
  }
  static MEMBER void expand(const RawUnit &raw, u32, Unit &unit) {
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = raw.q[i] & NIBBLES;
      unit.b[i] = raw.q[i] >> 4 & NIBBLES;
    }
    unit.scale_a = unit.scale_b = f16_to_f32((u16)raw.scales[0]);
  }
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const { expand(load(block, u), u, unit); }
};

struct Q4_1 : Block32 {
  static constexpr i32 ZERO = 0;
  static constexpr bool MINS = true;
  const u8 *qs, *dm;
  MEMBER Q4_1(const u8 *w, u64 blocks) : qs(w), dm(w + plane_bytes(blocks, 16)) {}
  MEMBER RawUnit load(u64 block, u32) const {
    return {load16(qs + block * 16), u32x4{}, u32x4{load_u32(dm + block * 4)}};
  }
  static MEMBER void expand(const RawUnit &raw, u32, Unit &unit) {
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = raw.q[i] & NIBBLES;
      unit.b[i] = raw.q[i] >> 4 & NIBBLES;
    }
    u32 scales = raw.scales[0];
    unit.scale_a = unit.scale_b = f16_to_f32((u16)scales);
    unit.min_a = unit.min_b = -f16_to_f32((u16)(scales >> 16));
  }
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const { expand(load(block, u), u, unit); }
};

// Words of nibbles, and a word of fifth bits.
DEVICE void expand_5_bits(const RawUnit &raw, Unit &unit) {
  u32 high = raw.high[0];
  UNROLL for (u32 i = 0; i < 4; i++) {
    unit.a[i] = (raw.q[i] & NIBBLES) | spread_bits(high >> (4 * i)) << 4;
    unit.b[i] = (raw.q[i] >> 4 & NIBBLES) | spread_bits(high >> (16 + 4 * i)) << 4;
  }
}

struct Q5_0 : Block32 {
  static constexpr i32 ZERO = 16;
  const u8 *qs, *qh, *d;
  MEMBER Q5_0(const u8 *w, u64 blocks)
      : qs(w), qh(qs + plane_bytes(blocks, 16)), d(qh + plane_bytes(blocks, 4)) {}
  MEMBER RawUnit load(u64 block, u32) const {
    return {load16(qs + block * 16), u32x4{load_u32(qh + block * 4)}, u32x4{load_u16(d + block * 2)}};
  }
  static MEMBER void expand(const RawUnit &raw, u32, Unit &unit) {
    expand_5_bits(raw, unit);
    unit.scale_a = unit.scale_b = f16_to_f32((u16)raw.scales[0]);
  }
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const { expand(load(block, u), u, unit); }
};

struct Q5_1 : Block32 {
  static constexpr i32 ZERO = 0;
  static constexpr bool MINS = true;
  const u8 *qs, *qh, *dm;
  MEMBER Q5_1(const u8 *w, u64 blocks)
      : qs(w), qh(qs + plane_bytes(blocks, 16)), dm(qh + plane_bytes(blocks, 4)) {}
  MEMBER RawUnit load(u64 block, u32) const {
    return {load16(qs + block * 16), u32x4{load_u32(qh + block * 4)}, u32x4{load_u32(dm + block * 4)}};
  }
  static MEMBER void expand(const RawUnit &raw, u32, Unit &unit) {
    expand_5_bits(raw, unit);
    u32 scales = raw.scales[0];
    unit.scale_a = unit.scale_b = f16_to_f32((u16)scales);
    unit.min_a = unit.min_b = -f16_to_f32((u16)(scales >> 16));
  }
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const { expand(load(block, u), u, unit); }
};

struct Q8_0 : Block32 {
  static constexpr i32 ZERO = 0;
  static constexpr bool SIGNED = true;
  const u8 *qs, *d;
  MEMBER Q8_0(const u8 *w, u64 blocks) : qs(w), d(w + plane_bytes(blocks, 32)) {}
  MEMBER RawUnit load(u64 block, u32) const {
    return {load16(qs + block * 32), load16(qs + block * 32 + 16), u32x4{load_u16(d + block * 2)}};
  }
  static MEMBER void expand(const RawUnit &raw, u32, Unit &unit) {
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = raw.q[i];
      unit.b[i] = raw.high[i];
    }
    unit.scale_a = unit.scale_b = f16_to_f32((u16)raw.scales[0]);
  }
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const { expand(load(block, u), u, unit); }
};

// Formats of 256 weights: 8 units a block.
struct Block256 {
  static constexpr u32 BLOCK = 256;
  static constexpr bool ONE_SCALE = false;
  static constexpr bool MINS = false;
  static constexpr bool SIGNED = false;
};

// Q2_K and Q3_K: weights 128h + 32j + l are the two bits from bit 2j on of byte 32h + l. A unit is 16 bytes and two
// neighbouring j.
struct Pairs : Block256 {
  static MEMBER u32 half(u32 unit) { return unit / 4; }
  static MEMBER u32 j(u32 unit) { return unit / 2 % 2 * 2; }
  static MEMBER u32 l(u32 unit) { return unit % 2 * 16; }
  static MEMBER u32 first(u32 unit) { return 128 * half(unit) + 32 * j(unit) + l(unit); }
  static MEMBER u32 second(u32 unit) { return first(unit) + 32; }
};

struct Q2_K : Pairs {
  static constexpr i32 ZERO = 0;
  static constexpr bool MINS = true;
  const u8 *qs, *scales, *d;
  MEMBER Q2_K(const u8 *w, u64 blocks)
      : qs(w), scales(qs + plane_bytes(blocks, 64)), d(scales + plane_bytes(blocks, 16)) {}
  MEMBER RawUnit load(u64 block, u32 u) const {
    u32 a = scales[block * 16 + first(u) / 16], b = scales[block * 16 + second(u) / 16];
    return {load16(qs + block * 64 + 32 * half(u) + l(u)), u32x4{}, u32x4{load_u32(d + block * 4), a, b}};
  }
  static MEMBER void expand(const RawUnit &raw, u32 u, Unit &unit) {
    u32 shift = 2 * j(u);
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = raw.q[i] >> shift & PAIRS;
      unit.b[i] = raw.q[i] >> (shift + 2) & PAIRS;
    }
    u32 dm = raw.scales[0], a = raw.scales[1], b = raw.scales[2];
    f32 scale = f16_to_f32((u16)dm), min = f16_to_f32((u16)(dm >> 16));
    unit.scale_a = scale * (f32)(a & 15);
    unit.scale_b = scale * (f32)(b & 15);
    unit.min_a = min * (f32)(a >> 4);
    unit.min_b = min * (f32)(b >> 4);
  }
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const { expand(load(block, u), u, unit); }
};

struct Q3_K : Pairs {
  static constexpr i32 ZERO = 4;
  const u8 *qs, *hmask, *scales, *d;
  MEMBER Q3_K(const u8 *w, u64 blocks)
      : qs(w), hmask(qs + plane_bytes(blocks, 64)), scales(hmask + plane_bytes(blocks, 32)),
        d(scales + plane_bytes(blocks, 12)) {}
  // Group g of 16, plus 32: its low 4 bits are a nibble of byte g % 8, the other two in byte 8 + g % 4.
  static MEMBER i32 scale(u32x4 packed, u32 g) {
    u32 low = (g % 8 < 4 ? packed[0] : packed[1]) >> (g % 4 * 8 + g / 8 * 4) & 15;
    u32 high = packed[2] >> (g % 4 * 8 + g / 4 * 2) & 3;
    return (i32)(low | high << 4) - 32;
  }
  MEMBER RawUnit load(u64 block, u32 u) const {
    const u8 *packed = scales + block * 12;
    return {load16(qs + block * 64 + 32 * half(u) + l(u)), load16(hmask + block * 32 + l(u)),
            u32x4{load_u32(packed), load_u32(packed + 4), load_u32(packed + 8), load_u16(d + block * 2)}};
  }
  static MEMBER void expand(const RawUnit &raw, u32 u, Unit &unit) {
    u32 shift = 2 * j(u), bit = 4 * half(u) + j(u);
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = (raw.q[i] >> shift & PAIRS) | (raw.high[i] >> bit & ONES) << 2;
      unit.b[i] = (raw.q[i] >> (shift + 2) & PAIRS) | (raw.high[i] >> (bit + 1) & ONES) << 2;
    }
    f32 all = f16_to_f32((u16)raw.scales[3]);
    unit.scale_a = all * (f32)scale(raw.scales, first(u) / 16);
    unit.scale_b = all * (f32)scale(raw.scales, second(u) / 16);
  }
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const { expand(load(block, u), u, unit); }
};

// Q4_K and Q5_K: byte 32p + l has weight 64p + l in the low nibble and 64p + 32 + l in the high one.
struct NibblePairs : Block256 {
  static constexpr i32 ZERO = 0;
  static constexpr bool MINS = true;
  static MEMBER u32 first(u32 unit) { return unit / 2 * 64 + unit % 2 * 16; }
  static MEMBER u32 second(u32 unit) { return first(unit) + 32; }
  // Scale and minimum of groups 2p and 2p + 1, whose 6-bit factors are packed in the last three words of the header.
  static MEMBER void set_scales(u32x4 header, u32 p, Unit &unit) {
    f32 d = f16_to_f32((u16)header[0]), dmin = f16_to_f32((u16)(header[0] >> 16));
    // Groups 4 to 7 have their low 4 bits in the last word and the high two on top of the factors of groups 0 to 3.
    u32 shift = p % 2 * 16;
    u32 low = header[1] >> shift, min = header[2] >> shift, rest = header[3] >> shift;
    u32 scale_a, scale_b, min_a, min_b;
    if (p < 2) {
      scale_a = low & 63, scale_b = low >> 8 & 63;
      min_a = min & 63, min_b = min >> 8 & 63;
    } else {
      scale_a = (rest & 15) | (low >> 6 & 3) << 4, scale_b = (rest >> 8 & 15) | (low >> 14 & 3) << 4;
      min_a = (rest >> 4 & 15) | (min >> 6 & 3) << 4, min_b = (rest >> 12 & 15) | (min >> 14 & 3) << 4;
    }
    unit.scale_a = d * (f32)scale_a;
    unit.scale_b = d * (f32)scale_b;
    unit.min_a = dmin * (f32)min_a;
    unit.min_b = dmin * (f32)min_b;
  }
};

struct Q4_K : NibblePairs {
  const u8 *qs, *header;
  MEMBER Q4_K(const u8 *w, u64 blocks) : qs(w), header(w + plane_bytes(blocks, 128)) {}
  MEMBER RawUnit load(u64 block, u32 u) const {
    return {load16(qs + block * 128 + u * 16), u32x4{}, load16(header + block * 16)};
  }
  static MEMBER void expand(const RawUnit &raw, u32 u, Unit &unit) {
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = raw.q[i] & NIBBLES;
      unit.b[i] = raw.q[i] >> 4 & NIBBLES;
    }
    set_scales(raw.scales, u / 2, unit);
  }
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const { expand(load(block, u), u, unit); }
};

struct Q5_K : NibblePairs {
  const u8 *qs, *qh, *header;
  MEMBER Q5_K(const u8 *w, u64 blocks)
      : qs(w), qh(qs + plane_bytes(blocks, 128)), header(qh + plane_bytes(blocks, 32)) {}
  MEMBER RawUnit load(u64 block, u32 u) const {
    return {load16(qs + block * 128 + u * 16), load16(qh + block * 32 + u % 2 * 16), load16(header + block * 16)};
  }
  static MEMBER void expand(const RawUnit &raw, u32 u, Unit &unit) {
    u32 bit = u / 2 * 2;
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = (raw.q[i] & NIBBLES) | (raw.high[i] >> bit & ONES) << 4;
      unit.b[i] = (raw.q[i] >> 4 & NIBBLES) | (raw.high[i] >> (bit + 1) & ONES) << 4;
    }
    set_scales(raw.scales, u / 2, unit);
  }
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const { expand(load(block, u), u, unit); }
};

// Weights 128h + 32j + l have their low 4 bits in a nibble (low for j < 2) of byte 64h + 32(j % 2) + l of ql, and the
// other two in the bits from 2j on of byte 32h + l of qh. A unit is 16 bytes of ql.
struct Q6_K : Block256 {
  static constexpr i32 ZERO = 32;
  const u8 *ql, *qh, *scales, *d;
  MEMBER Q6_K(const u8 *w, u64 blocks)
      : ql(w), qh(ql + plane_bytes(blocks, 128)), scales(qh + plane_bytes(blocks, 64)),
        d(scales + plane_bytes(blocks, 16)) {}
  static MEMBER u32 first(u32 unit) { return unit / 4 * 128 + unit / 2 % 2 * 32 + unit % 2 * 16; }
  static MEMBER u32 second(u32 unit) { return first(unit) + 64; }
  MEMBER RawUnit load(u64 block, u32 u) const {
    u32 a = scales[block * 16 + first(u) / 16], b = scales[block * 16 + second(u) / 16];
    return {load16(ql + block * 128 + u * 16), load16(qh + block * 64 + u / 4 * 32 + u % 2 * 16),
            u32x4{load_u16(d + block * 2), a, b}};
  }
  static MEMBER void expand(const RawUnit &raw, u32 u, Unit &unit) {
    u32 shift = u / 2 % 2 * 2;
    UNROLL for (u32 i = 0; i < 4; i++) {
      unit.a[i] = (raw.q[i] & NIBBLES) | (raw.high[i] >> shift & PAIRS) << 4;
      unit.b[i] = (raw.q[i] >> 4 & NIBBLES) | (raw.high[i] >> (shift + 4) & PAIRS) << 4;
    }
    f32 all = f16_to_f32((u16)raw.scales[0]);
    unit.scale_a = all * (f32)(i8)raw.scales[1];
    unit.scale_b = all * (f32)(i8)raw.scales[2];
  }
  MEMBER void unpack(u64 block, u32 u, Unit &unit) const { expand(load(block, u), u, unit); }
};

// STAMP(name in kernels, format) for every quantized format.
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

#define FLOAT_FORMATS(STAMP)                                                                                           \
  STAMP(f32, F32)                                                                                                      \
  STAMP(f16, F16)                                                                                                      \
  STAMP(bf16, BF16)
