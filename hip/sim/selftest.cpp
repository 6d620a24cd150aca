// Kernels that show that the simulator works, and that it reports the faults of kernels.

#include "common/gpu.h"

// out[i] = the value of the thread with the mirrored lane in the mirrored wave: 2 * (127 - i).
KERNEL(selftest_mirror, 128, (u32 * out)) {
  SHARED u32 values[128];
  values[thread_x()] = shuffle_from(2 * thread_x(), WAVE - 1 - lane_id());
  barrier();
  u32 wave = 128 / WAVE - 1 - wave_id();
  out[block_x() * 128 + thread_x()] = values[wave * WAVE + lane_id()];
}

// Threads from `limit` on do not reach the barrier.
KERNEL(selftest_barrier, 128, (u32 limit)) {
  if (thread_x() < limit) barrier();
}

// Lanes from `limit` on do not take part in a wave operation.
KERNEL(selftest_shuffle, 128, (u32 limit, u32 *out)) {
  if (lane_id() < limit) out[thread_x()] = wave_sum(1u);
}
