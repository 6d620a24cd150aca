// Rotary position embeddings (Su et al., 2021) of single elements, and storing rows in the cache:
// for rope.hip and attention_decode.h. Pair i of a head is columns (2i, 2i + 1), or (i, i + pairs)
// where `neox` is 1. Columns from 2 * pairs on are not rotated. Angles are given as cosines and
// then sines.
#pragma once

#include "attention/kv.h"

// Element `i` of a head after the rotation of `pairs` pairs.
DEVICE f32 rotated(const f32 *x, u32 i, const f32 *angles, u32 pairs, u32 neox) {
  if (i >= 2 * pairs) return x[i];
  u32 pair = neox ? i % pairs : i / 2;
  bool is_first = neox ? i < pairs : i % 2 == 0;
  f32 other = x[neox ? (is_first ? i + pairs : i - pairs) : i ^ 1];
  f32 cosine = angles[pair], sine = angles[pairs + pair];
  return is_first ? x[i] * cosine - other * sine : other * sine + x[i] * cosine;
}

template <class T> DEVICE void store_element(u8 *head, u32 padded, u32 slot, u32 i, f32 value);

template <> MEMBER void store_element<KvF32>(u8 *head, u32 padded, u32 slot, u32 i, f32 value) {
  if (i < padded) *(f32 *)(head + (slot * padded + i) * 4) = value;
}

template <> MEMBER void store_element<KvF16>(u8 *head, u32 padded, u32 slot, u32 i, f32 value) {
  const f32 LARGEST = 65504.0f;
  f32 clamped = value > LARGEST ? LARGEST : value < -LARGEST ? -LARGEST : value;
  if (i < padded) *(u16_alias *)(head + (slot * padded + i) * 2) = f32_to_f16(clamped);
}

// 32 lanes store a block together.
template <> MEMBER void store_element<KvQ8>(u8 *head, u32 padded, u32 slot, u32 i, f32 value) {
  f32 largest = wave_max(absolute(value), KV_BLOCK);
  u16 scale = f32_to_f16(smaller(largest / 127.0f, 65504.0f));
  // Numbers are divided by the scale as it will be read.
  f32 step = f16_to_f32(scale), inverse = step > 0.0f ? 1.0f / step : 0.0f;
  f32 q = value * inverse;
  q = q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q;
  if (i >= padded) return;
  const f32 ROUND = 12582912.0f;
  head[slot * padded + i] = (u8)(bits_of(q + ROUND) - bits_of(ROUND));
  u8 *scales = head + PAGE_LEN * padded;
  if (i % KV_BLOCK == 0) *(u16_alias *)(scales + (slot * (padded / KV_BLOCK) + i / KV_BLOCK) * 2) = scale;
}

// Stores a row of `dim` elements and rotates `pairs` pairs of them. `THREADS` threads, in whole
// waves, do it together; the caller is number `thread`.
template <class T, u32 THREADS>
DEVICE void store_row(u32 thread, const f32 *from, u32 dim, const f32 *angles, u32 pairs, u32 neox, u8 *head,
                      u32 slot) {
  u32 padded = kv_padded<T>(dim);
  // Whole waves continue, because lanes store blocks together.
  for (u32 first = 0; first < padded; first += THREADS) {
    u32 i = first + thread;
    store_element<T>(head, padded, slot, i, i < dim ? rotated(from, i, angles, pairs, neox) : 0.0f);
  }
}
