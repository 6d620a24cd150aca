// halve_rows(x, halves, scales, columns): rows of f32 as f16, for matmul_core.h. x = scale * half, with a scale for
// each row, a power of two that brings its largest magnitude to 2^14..2^15: nothing overflows, and only what is below
// 2^-28 of the largest has fewer than f16's 11 bits. What is not finite stays so. `columns` is a multiple of 4. Grid
// (rows).

#include "gpu.h"

#define HALVE_THREADS 256

KERNEL(halve_rows, HALVE_THREADS, (const f32 *x, u16 *halves, f32 *scales, u32 columns)) {
  SHARED u32 scratch[HALVE_THREADS / WAVE];
  const f32 *row = x + (u64)block_x() * columns;
  u32 max = 0;
  for (u32 i = thread_x() * 4; i < columns; i += HALVE_THREADS * 4) {
    f32x4 four = *(const f32x4 *)(row + i);
    // The bits of magnitudes are ordered as the magnitudes are, with what is not finite at the end.
    UNROLL for (u32 k = 0; k < 4; k++) max = larger(bits_of(four[k]) & 0x7fffffffu, max);
  }
  max = block_max<HALVE_THREADS>(max, scratch);
  u32 exponent = halving_exponent(max);
  f32 inverse = f32_of(exponent << 23);
  for (u32 i = thread_x() * 4; i < columns; i += HALVE_THREADS * 4) {
    f32x4 four = *(const f32x4 *)(row + i);
    four *= inverse;
    u32x2 words = {pack_halves(four[0], four[1]), pack_halves(four[2], four[3])};
    *(u32x2 *)(halves + (u64)block_x() * columns + i) = words;
  }
  if (thread_x() == 0) scales[block_x()] = f32_of((254 - exponent) << 23);
}
