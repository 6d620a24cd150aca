// Runs kernels on the host, block by block. The threads of a block are fibers of one host thread:
// each runs until it has to wait for others. So a run is the same every time, and a barrier that
// some threads do not reach is an error with a message, not a hang.

#include "simulator.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace sim {

unsigned int thread;
unsigned int block[3];

namespace {

// Whether matrix cores take subnormal halves for zero, in launches of this thread.
thread_local bool flushes = getenv("WAVELM_SIM_FLUSH") != nullptr;

// ------------------------------------------------------------------------------------------------ fibers

// A stack and the place where it goes on.
struct Context {
#if defined(__x86_64__)
  void *stack_pointer;
#else
  ucontext_t context;
#endif
};

#if defined(__x86_64__)
// Saves the registers that a call preserves on the stack, and goes on with another stack.
extern "C" void wavelm_sim_switch(void **save, void *load);
asm(R"(
.text
.p2align 4
.type wavelm_sim_switch, @function
wavelm_sim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size wavelm_sim_switch, . - wavelm_sim_switch
)");

void switch_context(Context &from, Context &to) { wavelm_sim_switch(&from.stack_pointer, to.stack_pointer); }

void start_context(Context &context, char *stack, size_t size, void (*entry)()) {
  uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t(15);
  void **frame = reinterpret_cast<void **>(top) - 8;
  memset(frame, 0, 8 * sizeof(void *)); // six registers, the entry's address, and no address to return to
  frame[6] = reinterpret_cast<void *>(entry);
  context.stack_pointer = frame;
}
#else
void switch_context(Context &from, Context &to) { swapcontext(&from.context, &to.context); }

void start_context(Context &context, char *stack, size_t size, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = size;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}
#endif

const size_t STACK = 128 * 1024;
const unsigned int MAX_THREADS = 1024;

enum class Waiting { None, Barrier, Wave, Done };

struct Fiber {
  Context context;
  Waiting waiting;
  // The barrier or wave operation that it waits for is over when this is no longer the current one.
  unsigned int epoch;
};

struct Wave {
  unsigned int epoch;
  unsigned int arrived;
  unsigned int lanes;
  // Two, because a lane may pass its next value before all others have read its last one.
  unsigned int values[2][WAVE][EXCHANGED];
};

// ------------------------------------------------------------------------------------------------ the running launch

std::mutex busy;
std::vector<Fiber> fibers;
std::vector<Wave> waves;
char *stacks;
Context scheduler;
unsigned int barrier_epoch, barrier_arrived, threads;
const Kernel *running;
void **running_arguments;
std::string fault;

void yield() {
  Fiber &self = fibers[thread];
  switch_context(self.context, scheduler);
}

void fiber_entry() {
  running->thunk(running->function, running_arguments);
  fibers[thread].waiting = Waiting::Done;
  yield();
  abort(); // a finished fiber is never resumed
}

bool can_run(const Fiber &fiber, unsigned int index) {
  switch (fiber.waiting) {
  case Waiting::None: return true;
  case Waiting::Barrier: return fiber.epoch != barrier_epoch;
  case Waiting::Wave: return fiber.epoch != waves[index / WAVE].epoch;
  case Waiting::Done: break;
  }
  return false;
}

std::string place() {
  return std::string(running->name) + ", block (" + std::to_string(block[0]) + ", " + std::to_string(block[1]) + ", " +
         std::to_string(block[2]) + ")";
}

bool run_block() {
  barrier_epoch = barrier_arrived = 0;
  for (unsigned int i = 0; i < waves.size(); i++) {
    waves[i].epoch = waves[i].arrived = 0;
    waves[i].lanes = threads - i * WAVE < WAVE ? threads - i * WAVE : WAVE;
  }
  for (unsigned int i = 0; i < threads; i++) {
    start_context(fibers[i].context, stacks + i * STACK, STACK, fiber_entry);
    fibers[i].waiting = Waiting::None;
  }
  unsigned int done = 0;
  while (done < threads) {
    bool progress = false;
    for (unsigned int i = 0; i < threads; i++) {
      // A wave runs alone as long as it can, which costs the fewest switches.
      if (!can_run(fibers[i], i)) continue;
      progress = true;
      thread = i;
      fibers[i].waiting = Waiting::None;
      switch_context(scheduler, fibers[i].context);
      if (fibers[i].waiting == Waiting::Done) done++;
      if (!fault.empty()) return false;
    }
    if (!progress) {
      unsigned int at_barrier = 0, in_wave = 0;
      for (unsigned int i = 0; i < threads; i++) {
        at_barrier += fibers[i].waiting == Waiting::Barrier;
        in_wave += fibers[i].waiting == Waiting::Wave;
      }
      fault = place() + ": deadlock, with " + std::to_string(at_barrier) + " threads at a barrier, " +
              std::to_string(in_wave) + " in a wave operation and " + std::to_string(done) + " finished";
      return false;
    }
  }
  return true;
}

std::map<std::string, Kernel> &kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

} // namespace

void add_kernel(const Kernel &kernel) { kernels()[kernel.name] = kernel; }

void barrier() {
  Fiber &self = fibers[thread];
  if (++barrier_arrived == threads) {
    barrier_arrived = 0;
    barrier_epoch++;
    return;
  }
  self.waiting = Waiting::Barrier;
  self.epoch = barrier_epoch;
  yield();
}

const unsigned int *exchange(const unsigned int *words, unsigned int count) {
  Wave &wave = waves[thread / WAVE];
  unsigned int epoch = wave.epoch;
  if (count > 0) memcpy(wave.values[epoch % 2][thread % WAVE], words, count * sizeof *words);
  if (++wave.arrived == wave.lanes) {
    wave.arrived = 0;
    wave.epoch++;
  } else {
    Fiber &self = fibers[thread];
    self.waiting = Waiting::Wave;
    self.epoch = epoch;
    yield();
  }
  return wave.values[epoch % 2][0];
}

unsigned int shuffle(unsigned int value, unsigned int lane) {
  if (lane >= waves[thread / WAVE].lanes) {
    fault = place() + ": a lane reads from lane " + std::to_string(lane) + ", which the wave does not have";
    yield();
  }
  return exchange(&value, 1)[lane * EXCHANGED];
}

unsigned short operand(unsigned short bits) { return flushes && (bits & 0x7c00u) == 0 ? bits & 0x8000u : bits; }

float f16_to_f32(unsigned short bits) {
  // A half moved to f32's place is 2^112 times too small, subnormals included.
  unsigned int magnitude = (bits & 0x7fffu) << 13;
  float scaled;
  unsigned int word = magnitude;
  memcpy(&scaled, &word, 4);
  scaled *= 0x1p112f;
  memcpy(&word, &scaled, 4);
  if (magnitude >= 0x7c00u << 13) word |= 0x7f800000u;
  word |= (bits & 0x8000u) << 16;
  memcpy(&scaled, &word, 4);
  return scaled;
}

unsigned short f32_to_f16(float value) {
  unsigned int word;
  memcpy(&word, &value, 4);
  unsigned int sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<unsigned short>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u); // 65520 and above
  if (magnitude < 0x38800000u) {
    // Subnormal: the sum with 0.5 rounds at 2^-24, as the neighbours of numbers in [0.5, 1) are
    // 2^-24 apart.
    float absolute;
    memcpy(&absolute, &magnitude, 4);
    absolute += 0.5f;
    memcpy(&word, &absolute, 4);
    return static_cast<unsigned short>(sign | (word - 0x3f000000u));
  }
  unsigned int odd = magnitude >> 13 & 1;
  return static_cast<unsigned short>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

} // namespace sim

// The lanes of a wave.
extern "C" unsigned int wavelm_sim_wave() { return WAVE; }

// Whether matrix cores take subnormal halves for zero, in launches of the thread that calls this.
extern "C" void wavelm_sim_flush(int flushes) { sim::flushes = flushes != 0; }

// The threads of a block of this kernel; 0 where there is no such kernel.
extern "C" unsigned int wavelm_sim_threads(const char *name) {
  auto found = sim::kernels().find(name);
  return found == sim::kernels().end() ? 0 : found->second.threads;
}

// The parameters of this kernel; 0 where there is no such kernel.
extern "C" unsigned int wavelm_sim_parameters(const char *name) {
  auto found = sim::kernels().find(name);
  return found == sim::kernels().end() ? 0 : found->second.parameters;
}

// The name of the kernel number `index`; null beyond the last.
extern "C" const char *wavelm_sim_kernel(unsigned int index) {
  for (auto &entry : sim::kernels())
    if (index-- == 0) return entry.second.name;
  return nullptr;
}

// Runs a kernel to its end: `arguments` are pointers to its `count` arguments. Returns 0, or 1 with
// a message.
extern "C" int wavelm_sim_launch(const char *name, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                 unsigned int threads, void **arguments, unsigned int count, char *message,
                                 size_t message_length) {
  using namespace sim;
  std::lock_guard<std::mutex> lock(busy);
  fault.clear();
  auto found = kernels().find(name);
  if (found == kernels().end()) {
    fault = std::string("there is no kernel ") + name;
  } else if (found->second.threads != threads || threads > MAX_THREADS) {
    fault = std::string(name) + " runs in blocks of " + std::to_string(found->second.threads) + " threads, not " +
            std::to_string(threads);
  } else if (found->second.parameters != count) {
    fault = std::string(name) + " takes " + std::to_string(found->second.parameters) + " arguments, not " +
            std::to_string(count);
  } else {
    if (!stacks) stacks = static_cast<char *>(malloc(MAX_THREADS * STACK));
    if (!stacks) fault = "no memory for the stacks of the simulator";
    running = &found->second;
    running_arguments = arguments;
    sim::threads = threads;
    fibers.resize(threads);
    waves.resize((threads + WAVE - 1) / WAVE);
    for (unsigned int z = 0; fault.empty() && z < grid_z; z++)
      for (unsigned int y = 0; fault.empty() && y < grid_y; y++)
        for (unsigned int x = 0; fault.empty() && x < grid_x; x++) {
          block[0] = x;
          block[1] = y;
          block[2] = z;
          run_block();
        }
  }
  if (message_length) snprintf(message, message_length, "%s", fault.c_str());
  return fault.empty() ? 0 : 1;
}
