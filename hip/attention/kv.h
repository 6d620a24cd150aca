// The paged cache of keys and values. A page holds 64 consecutive positions of one sequence for all
// layers. Pages lie in one pool, and each sequence has a table of its page numbers.
//
// In a page, the host gives each layer an offset. There are its keys and then its values: 64 rows
// of elements for each key-value head and, for q8_0, 64 rows of scales (f16), one for each block of
// 32. Rows are padded with zeros to a multiple of 16 elements (32 for q8_0), heads to a multiple of
// 64 bytes. The host computes the same layout in src/backend/hip/kv.rs. The CPU's cache has another
// one.
#pragma once

#include "common/gpu.h"

#define PAGE_LEN 64
#define KV_BLOCK 32

struct KvF32 {
  static constexpr u32 PADDING = 16, BYTES = 4;
  static constexpr bool SCALES = false;
};
struct KvF16 {
  static constexpr u32 PADDING = 16, BYTES = 2;
  static constexpr bool SCALES = false;
};
struct KvQ8 {
  static constexpr u32 PADDING = KV_BLOCK, BYTES = 1;
  static constexpr bool SCALES = true;
};

#define KV_TYPES(STAMP)                                                                                                \
  STAMP(f32, KvF32)                                                                                                    \
  STAMP(f16, KvF16)                                                                                                    \
  STAMP(q8_0, KvQ8)

// The elements of a row as stored.
template <class T> DEVICE u32 kv_padded(u32 dim) { return round_up(dim, T::PADDING); }

// The bytes from one head to the next.
template <class T> DEVICE u32 kv_head_bytes(u32 dim) {
  u32 padded = kv_padded<T>(dim), row = padded * T::BYTES + (T::SCALES ? padded / KV_BLOCK * 2 : 0);
  return round_up(PAGE_LEN * row, 64);
}

// Eight elements of row `slot` of a head that starts at `head`, from element `i` on, a multiple of
// 8. They can be read as numbers and, except those of f32, as f16.
template <class T> struct Eight;

template <> struct Eight<KvF32> {
  f32x4 low, high;
  static MEMBER Eight load(const u8 *head, u32 padded, u32 slot, u32 i) {
    const u8 *from = head + (slot * padded + i) * 4;
    return {*(const f32x4 *)from, *(const f32x4 *)(from + 16)};
  }
  MEMBER f32 operator[](u32 k) const { return k < 4 ? low[k] : high[k - 4]; }
};

template <> struct Eight<KvF16> {
  u32x4 words;
  static MEMBER Eight load(const u8 *head, u32 padded, u32 slot, u32 i) {
    return {*(const u32x4 *)(head + (slot * padded + i) * 2)};
  }
  MEMBER f32 operator[](u32 k) const { return f16_to_f32((u16)(words[k / 2] >> (k % 2 * 16))); }
  MEMBER u32x4 halves() const { return words; }
};

template <> struct Eight<KvQ8> {
  u32x2 words;
  u16 scale;
  static MEMBER Eight load(const u8 *head, u32 padded, u32 slot, u32 i) {
    const u8 *scales = head + PAGE_LEN * padded;
    return {*(const u32x2 *)(head + slot * padded + i),
            *(const u16_alias *)(scales + (slot * (padded / KV_BLOCK) + i / KV_BLOCK) * 2)};
  }
  MEMBER f32 operator[](u32 k) const { return f16_to_f32(scale) * (f32)(i8)(words[k / 4] >> (k % 4 * 8)); }
  MEMBER u32x4 halves() const {
    // 1024 + 128 + q: the sign of a byte is flipped to make it unsigned.
    const u32 OFFSET = 0x64806480u;
    u32 factors = scale * 0x10001u;
    u32x4 result;
    UNROLL for (u32 i = 0; i < 2; i++) {
      u32 bytes = words[i] ^ 0x80808080u;
      result[2 * i] = half2_mul_add(half2_sub(halves_of_bytes<0>(bytes), OFFSET), factors, 0);
      result[2 * i + 1] = half2_mul_add(half2_sub(halves_of_bytes<1>(bytes), OFFSET), factors, 0);
    }
    return result;
  }
};

// Four elements, from a multiple of 4 on.
template <class T> DEVICE void kv_load4(const u8 *head, u32 padded, u32 slot, u32 i, f32 *out);

template <> MEMBER void kv_load4<KvF32>(const u8 *head, u32 padded, u32 slot, u32 i, f32 *out) {
  f32x4 all = *(const f32x4 *)(head + (slot * padded + i) * 4);
  UNROLL for (u32 k = 0; k < 4; k++) out[k] = all[k];
}

template <> MEMBER void kv_load4<KvF16>(const u8 *head, u32 padded, u32 slot, u32 i, f32 *out) {
  u32x2 all = *(const u32x2 *)(head + (slot * padded + i) * 2);
  UNROLL for (u32 k = 0; k < 4; k++) out[k] = f16_to_f32((u16)(all[k / 2] >> (k % 2 * 16)));
}

template <> MEMBER void kv_load4<KvQ8>(const u8 *head, u32 padded, u32 slot, u32 i, f32 *out) {
  u32 all = *(const u32_alias *)(head + slot * padded + i);
  const u8 *scales = head + PAGE_LEN * padded;
  f32 scale = f16_to_f32(*(const u16_alias *)(scales + (slot * (padded / KV_BLOCK) + i / KV_BLOCK) * 2));
  UNROLL for (u32 k = 0; k < 4; k++) out[k] = scale * (f32)(i8)(all >> (k * 8));
}
