// The functions of libamdhip64 that wavelm calls, over the simulator. So the whole GPU backend runs
// on any machine.
//
// There is one device, gfxsim, with waves of WAVE lanes. Calls do their work when they queue it. A
// code object is the text "wavelm simulator\n", and every module has all kernels. Device memory is
// memory of the host, with guards around each allocation. The next call that checks finds writes
// outside of all allocations, and memory that was not freed.
//
// Faults: WAVELM_SIM_FAIL="<kind>:<n>" makes the n-th call (from 1) of a kind fail. Kinds are
// alloc, copy (or fill), launch, module and sync. With a + at the end the device is lost there:
// every later call fails too. wavelm_sim_fail and wavelm_sim_lose do the same while a program runs,
// and wavelm_sim_calls returns how often each kind was called.
//
// WAVELM_SIM_DEVICES is the number of devices (default 1), WAVELM_SIM_MEMORY the bytes of memory
// (default 1 GiB), which wavelm_sim_memory changes, and WAVELM_SIM_ARCH the architecture (default
// gfxsim). wavelm_sim_downloaded returns how many bytes were copied to the host, wavelm_sim_queued
// how much work nobody has waited for.
//
// WAVELM_SIM_HANG="<kind>:<n>" makes the device hang from the n-th call on: it does no work any
// more, no event becomes ready, and a call that waits for the device never returns. If the n-th
// call allocates or loads a module, it does not return either.
//
// WAVELM_SIM_CRASH="<kind>:<n>" ends the process at the n-th call, like a driver that crashes.
//
// WAVELM_SIM_STALE=1 makes every second launch of a graph and all later ones do nothing.
//
// wavelm_sim_capture says whether another thread captures a graph. Calls that a capture in the
// global mode forbids then fail with 900, and end it, unless their thread has opted out.
//
// wavelm_sim_damage_copies flips a bit of the data that a copy brings to the device,
// wavelm_sim_damage flips a bit in every given number of bytes of all device memory.
// WAVELM_SIM_INTEGRATED=1 makes the device a part of the processor.
//
// WAVELM_SIM_SPILL is the number of bytes of the device's own memory: copies from allocations
// beyond it are slow.
//
// WAVELM_SIM_CORRUPT is the beginning of the names of kernels that compute wrongly: every number
// that such a kernel changes becomes a quarter larger, or something else if it is no float.
// wavelm_sim_corrupt sets the name and the fault while a program runs, and wavelm_sim_corrupted
// returns how often it happened. "graph", "to_device", "to_host" and "fill" are names too, for
// launches of graphs, copies and fills, which can do nothing and report success.

#include "simulator.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <unistd.h>

extern "C" int wavelm_sim_launch(const char *name, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                 unsigned int threads, void **arguments, unsigned int count, char *message,
                                 size_t message_length);
extern "C" unsigned int wavelm_sim_threads(const char *name);
extern "C" unsigned int wavelm_sim_parameters(const char *name);
extern "C" const char *wavelm_sim_kernel(unsigned int index);

namespace {

const int SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, NOT_FOUND = 500, NO_DEVICE = 100,
          INVALID_HANDLE = 400, NOT_READY = 600, LAUNCH_FAILURE = 719;
const char CODE[] = "wavelm simulator\n";
const size_t GUARD = 256;
const unsigned char GUARD_BYTE = 0xa5;

enum What { ALLOC, COPY, LAUNCH, MODULE, SYNC, WHATS };
const char *const NAMES[WHATS] = {"alloc", "copy", "launch", "module", "sync"};

// The faults: a quarter is added, nothing is done, numbers become NaN, or any bits.
enum How { LARGER, NOTHING, NAN_, GARBAGE };

struct State {
  std::mutex lock;
  unsigned long calls[WHATS] = {};
  int failing = -1;
  unsigned long fail_at = 0;
  bool loses = false, lost = false;
  int hanging = -1, crashing = -1;
  unsigned long hang_at = 0, crash_at = 0;
  bool hangs = false;
  // Whether another thread captures, whether a call ended the capture, and how many calls fail
  // beside it in any case.
  bool captures = false, ended_capture = false;
  unsigned long beside = 0;
  bool stale = getenv("WAVELM_SIM_STALE");
  std::map<char *, size_t> memory;
  // The device of each allocation and of each stream.
  std::map<void *, int> device_of;
  std::set<char *> slow;
  size_t own = ~size_t(0);
  unsigned long damaged_copy = 0, copies_to_device = 0;
  // Bytes used on each device, and the most on any.
  std::map<int, size_t> used;
  size_t limit = size_t(1) << 30;
  unsigned long downloaded = 0;
  // The work queued on each stream since the last wait, and the stream of each event's last record.
  std::map<void *, unsigned long> queued;
  std::map<void *, void *> recorded;
  // Events that were asked about since they were recorded.
  std::set<void *> asked;
  std::map<void *, std::chrono::steady_clock::time_point> times;
  // Calls on the host that each stream queues. They run when somebody waits for it.
  std::map<void *, std::vector<std::pair<void (*)(void *, int, void *), void *>>> calls_on_host;
  int devices = 1;
  int handles = 0;
  std::string corrupt;
  How how = LARGER;
  unsigned long corrupted = 0;

  State() {
    if (const char *text = getenv("WAVELM_SIM_DEVICES")) devices = atoi(text);
    if (const char *text = getenv("WAVELM_SIM_CORRUPT")) corrupt = text;
    if (const char *text = getenv("WAVELM_SIM_MEMORY")) limit = strtoull(text, nullptr, 10);
    if (const char *text = getenv("WAVELM_SIM_SPILL")) own = strtoull(text, nullptr, 10);
    if (const char *end = parse("WAVELM_SIM_FAIL", failing, fail_at)) loses = *end == '+';
    parse("WAVELM_SIM_HANG", hanging, hang_at);
    parse("WAVELM_SIM_CRASH", crashing, crash_at);
  }

  // Reads "<kind>:<n>". Returns the text behind it, or null where there is none.
  static const char *parse(const char *variable, int &what, unsigned long &n) {
    const char *text = getenv(variable);
    for (int i = 0; text && i < WHATS; i++)
      if (size_t length = strlen(NAMES[i]); !strncmp(text, NAMES[i], length) && text[length] == ':') {
        what = i;
        char *end;
        n = strtoul(text + length + 1, &end, 10);
        return end;
      }
    return nullptr;
  }

  void set(int what, unsigned long n, bool with_all_later) {
    for (auto &count : calls) count = 0;
    failing = what, fail_at = n, loses = with_all_later, lost = false;
  }

  // Counts a call; whether it fails.
  bool fails(What what) {
    bool now = ++calls[what] == fail_at && failing == what;
    lost |= now && loses;
    hangs |= calls[what] == hang_at && hanging == what;
    if (calls[what] == crash_at && crashing == what) abort();
    return now || lost;
  }

  // Whether the thing of this name has a fault.
  bool corrupts(const char *name) {
    bool now = !corrupt.empty() && !strncmp(name, corrupt.c_str(), corrupt.size());
    corrupted += now;
    return now;
  }

  // Whether the thing of this name does nothing.
  bool skips(const char *name) { return how == NOTHING && corrupts(name); }

  // The result of a call that works even on a lost device, as far as there is one.
  int status() const { return lost ? LAUNCH_FAILURE : SUCCESS; }
};

State &state() {
  static State *state = new State; // outlives what is freed at exit
  return *state;
}

// Waits for a device that hangs. Nobody may do so: after minutes it ends the process.
void block_if(bool hangs) {
  if (!hangs) return;
  sleep(240);
  fprintf(stderr, "simulator: somebody waits for a device that hangs\n");
  _exit(97);
}

thread_local unsigned int mode = 0; // of captures: global

// Whether a call fails, and ends it, because another thread captures.
bool meets_capture() {
  std::lock_guard<std::mutex> lock(state().lock);
  if (!state().captures || mode == 2) return false;
  state().ended_capture = true;
  return true;
}

bool hangs() {
  std::lock_guard<std::mutex> lock(state().lock);
  return state().hangs;
}

// Whether the device hangs since the call of this kind that was counted last.
bool hangs_here(What what) {
  std::lock_guard<std::mutex> lock(state().lock);
  return state().hangs && state().hanging == what && state().calls[what] == state().hang_at;
}

// Whether this many bytes from here on are part of an allocation.
bool is_inside(const char *start, size_t bytes) {
  auto &memory = state().memory;
  auto after = memory.upper_bound(const_cast<char *>(start));
  if (after == memory.begin()) return false;
  auto &[first, length] = *--after;
  return start + bytes <= first + length;
}

// The device that a thread has chosen.
thread_local int current = 0;

bool is_intact(const char *start, size_t bytes) {
  for (size_t i = 0; i < GUARD; i++)
    if ((unsigned char)start[-1 - (long)i] != GUARD_BYTE || (unsigned char)start[bytes + i] != GUARD_BYTE) return false;
  return true;
}

int copy(void *to, const void *from, size_t bytes, const void *device_part, const void *other_device_part,
         void *stream) {
  std::lock_guard<std::mutex> lock(state().lock);
  if (state().fails(COPY)) return LAUNCH_FAILURE;
  for (const void *part : {device_part, other_device_part}) {
    if (part && !is_inside(static_cast<const char *>(part), bytes)) {
      fprintf(stderr, "simulator: a copy of %zu bytes is not inside of an allocation\n", bytes);
      return INVALID_VALUE;
    }
  }
  bool to_host = !is_inside(static_cast<char *>(to), bytes);
  if (state().hangs) return SUCCESS;
  if (!state().skips(to_host ? "to_host" : device_part == to ? "to_device" : "on_device")) memmove(to, from, bytes);
  if (is_inside(static_cast<char *>(to), bytes) && bytes && !other_device_part &&
      ++state().copies_to_device == state().damaged_copy)
    static_cast<char *>(to)[bytes / 2] ^= 4;
  for (char *start : state().slow)
    if (other_device_part && is_inside(start, 1) && from >= start && from < start + state().memory[start])
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
  state().queued[stream]++;
  if (to_host) state().downloaded += bytes;
  return SUCCESS;
}

// A copy of the device's memory, to see what a kernel changes.
std::map<char *, std::string> snapshot() {
  std::map<char *, std::string> copy;
  for (auto &[start, bytes] : state().memory) copy[start] = std::string(start, bytes);
  return copy;
}

void corrupt(const std::map<char *, std::string> &before) {
  for (auto &[start, old] : before)
    for (size_t at = 0; at + sizeof(float) <= old.size(); at += sizeof(float)) {
      if (!memcmp(start + at, old.data() + at, sizeof(float))) continue;
      float value;
      unsigned int random = (unsigned int)at * 2654435761u + 12345, nan = 0x7fc00000;
      memcpy(&value, start + at, sizeof value);
      value *= 1.25f;
      const void *from = state().how == NAN_ ? &nan : state().how == GARBAGE ? (const void *)&random : &value;
      memcpy(start + at, from, sizeof value);
    }
}

int make_handle(void **handle) {
  std::lock_guard<std::mutex> lock(state().lock);
  if (state().lost) return LAUNCH_FAILURE;
  state().handles++;
  *handle = new char;
  return SUCCESS;
}

int free_handle(void *handle) {
  std::lock_guard<std::mutex> lock(state().lock);
  state().handles--;
  delete static_cast<char *>(handle);
  return state().status();
}

int status() {
  std::lock_guard<std::mutex> lock(state().lock);
  return state().status();
}

// A launch that was captured. Arguments are of at most 8 bytes.
struct Launch {
  const char *name;
  unsigned int grid[3], threads;
  std::vector<unsigned long long> arguments;
};
struct Graph : std::vector<Launch> {
  int launched = 0;
};

// The graphs that streams are captured into.
std::map<void *, Graph> captures;

int run(const Launch &launch) {
  std::vector<unsigned long long> arguments = launch.arguments;
  std::vector<void *> pointers;
  for (auto &argument : arguments) pointers.push_back(&argument);
  bool corrupts = state().corrupts(launch.name);
  if (corrupts && state().how == NOTHING) return SUCCESS;
  auto before = corrupts ? snapshot() : std::map<char *, std::string>();
  char message[500];
  if (wavelm_sim_launch(launch.name, launch.grid[0], launch.grid[1], launch.grid[2], launch.threads, pointers.data(),
                        (unsigned int)pointers.size(), message, sizeof message)) {
    fprintf(stderr, "simulator: %s\n", message);
    return LAUNCH_FAILURE;
  }
  corrupt(before);
  return SUCCESS;
}

void call_host(void *stream) {
  auto found = state().calls_on_host.find(stream);
  if (found == state().calls_on_host.end()) return;
  for (auto &[function, data] : found->second) function(stream, SUCCESS, data);
  state().calls_on_host.erase(found);
}

int wait(void *event) {
  std::lock_guard<std::mutex> lock(state().lock);
  if (state().fails(SYNC)) return LAUNCH_FAILURE;
  if (state().hangs) return NOT_READY;
  call_host(state().recorded[event]);
  state().queued.erase(state().recorded[event]);
  return SUCCESS;
}

// Whether a launch goes to a stream of the chosen device, with memory of that device alone.
bool is_on_one_device(const Launch &launch, void *stream) {
  auto of_stream = state().device_of.find(stream);
  if (of_stream != state().device_of.end() && of_stream->second != current) {
    fprintf(stderr, "simulator: %s is launched on device %d, on a stream of device %d\n", launch.name, current,
            of_stream->second);
    return false;
  }
  for (auto argument : launch.arguments) {
    auto after = state().memory.upper_bound(reinterpret_cast<char *>(argument));
    if (after == state().memory.begin()) continue;
    auto &[start, bytes] = *--after;
    if (reinterpret_cast<char *>(argument) >= start + bytes || state().device_of[start] == current) continue;
    fprintf(stderr, "simulator: %s on device %d has memory of device %d\n", launch.name, current,
            state().device_of[start]);
    return false;
  }
  return true;
}

} // namespace

extern "C" {

// Makes the n-th call from now on fail, as WAVELM_SIM_FAIL does; 0 for none. Resets the numbers of
// calls.
void wavelm_sim_fail(int what, unsigned long n) {
  std::lock_guard<std::mutex> lock(state().lock);
  state().set(what, n, false);
}

// The same, and every later call fails too, until one of the two is called again.
void wavelm_sim_lose(int what, unsigned long n) {
  std::lock_guard<std::mutex> lock(state().lock);
  state().set(what, n, true);
}

// Makes the device hang from the n-th call from now on, as WAVELM_SIM_HANG does, for good.
void wavelm_sim_hang(int what, unsigned long n) {
  std::lock_guard<std::mutex> lock(state().lock);
  state().set(what, 0, false);
  state().hanging = what, state().hang_at = n;
}

// Damages the n-th copy to the device from now on, if `damages` is not 0. Returns how many there
// were since the last call.
unsigned long wavelm_sim_damage_copies(unsigned long n, int damages) {
  std::lock_guard<std::mutex> lock(state().lock);
  unsigned long before = state().copies_to_device;
  state().copies_to_device = 0;
  state().damaged_copy = damages ? n : 0;
  return before;
}

unsigned long wavelm_sim_copies_to_device() {
  std::lock_guard<std::mutex> lock(state().lock);
  return state().copies_to_device;
}

// Flips a bit in every `every` bytes of all device memory.
void wavelm_sim_damage(size_t every) {
  std::lock_guard<std::mutex> lock(state().lock);
  for (auto &[start, bytes] : state().memory)
    for (size_t at = 0; at < bytes; at += every) start[at] ^= 1;
}

// Whether another thread captures a graph; whether a call ended that.
bool wavelm_sim_capture(bool captures) {
  std::lock_guard<std::mutex> lock(state().lock);
  state().captures = captures;
  return state().ended_capture;
}

// Makes the next n launches fail beside a capture.
void wavelm_sim_beside(unsigned long n) {
  std::lock_guard<std::mutex> lock(state().lock);
  state().beside = n;
}

int hipThreadExchangeStreamCaptureMode(unsigned int *exchanged) {
  std::swap(mode, *exchanged);
  return SUCCESS;
}

// Sets the bytes of memory of each device, but not below what is used.
void wavelm_sim_memory(size_t bytes) {
  std::lock_guard<std::mutex> lock(state().lock);
  state().limit = bytes;
  for (auto &[device, used] : state().used)
    if (used > state().limit) state().limit = used;
}

// Gives everything whose name begins so a fault; an empty name ends it. `how` is 0 for a quarter
// more, 1 for doing nothing, 2 for NaN, 3 for any bits.
void wavelm_sim_corrupt(int how, const char *name) {
  std::lock_guard<std::mutex> lock(state().lock);
  state().how = How(how), state().corrupt = name, state().corrupted = 0;
}

unsigned long wavelm_sim_corrupted() {
  std::lock_guard<std::mutex> lock(state().lock);
  return state().corrupted;
}

unsigned long wavelm_sim_calls(int what) {
  std::lock_guard<std::mutex> lock(state().lock);
  return what >= 0 && what < WHATS ? state().calls[what] : 0;
}

// Copies and launches on streams that nobody has waited for since.
unsigned long wavelm_sim_queued() {
  std::lock_guard<std::mutex> lock(state().lock);
  unsigned long sum = 0;
  for (auto &[stream, queued] : state().queued) sum += queued;
  return sum;
}

// The bytes that were copied to the host so far.
unsigned long wavelm_sim_downloaded() {
  std::lock_guard<std::mutex> lock(state().lock);
  return state().downloaded;
}

// Allocations, modules, streams and events that exist.
unsigned long wavelm_sim_held() {
  std::lock_guard<std::mutex> lock(state().lock);
  return state().memory.size() + state().handles;
}

int hipInit(unsigned int) { return state().devices > 0 ? SUCCESS : NO_DEVICE; }

int hipGetDeviceCount(int *count) {
  *count = state().devices;
  return state().devices > 0 ? SUCCESS : NO_DEVICE;
}

int hipSetDevice(int device) {
  if (device < 0 || device >= state().devices) return 101;
  current = device;
  return SUCCESS;
}

int hipRuntimeGetVersion(int *version) {
  *version = 60000000;
  return SUCCESS;
}

int hipDeviceGetName(char *name, int length, int) {
  snprintf(name, length, "simulated GPU, waves of %d", WAVE);
  return SUCCESS;
}

int hipDeviceGetAttribute(int *value, int attribute, int) {
  switch (attribute) {
  case 16: *value = getenv("WAVELM_SIM_INTEGRATED") != nullptr; return SUCCESS; // integrated
  case 63: *value = 2; return SUCCESS;    // compute units
  case 87: *value = WAVE; return SUCCESS; // lanes of a wave
  }
  return INVALID_VALUE;
}

// The name is where the structure of HIP 6 has it.
int hipGetDevicePropertiesR0600(void *properties, int) {
  const char *name = getenv("WAVELM_SIM_ARCH");
  snprintf(static_cast<char *>(properties) + 1160, 64, "%s:sramecc+", name ? name : "gfxsim");
  return SUCCESS;
}

int hipDeviceTotalMem(size_t *total, int) {
  *total = state().limit;
  return SUCCESS;
}

int hipMemGetInfo(size_t *free, size_t *total) {
  std::lock_guard<std::mutex> lock(state().lock);
  *total = state().limit;
  *free = state().limit - state().used[current];
  return state().status();
}

int hipMalloc(void **memory, size_t bytes) {
  if (meets_capture()) return 900;
  {
    std::lock_guard<std::mutex> lock(state().lock);
    if (state().fails(ALLOC)) return state().lost ? LAUNCH_FAILURE : OUT_OF_MEMORY;
  }
  block_if(hangs_here(ALLOC));
  std::lock_guard<std::mutex> lock(state().lock);
  if (bytes > state().limit - state().used[current]) return OUT_OF_MEMORY;
  char *start = static_cast<char *>(aligned_alloc(GUARD, (bytes + 3 * GUARD - 1) / GUARD * GUARD));
  if (!start) return OUT_OF_MEMORY;
  memset(start, GUARD_BYTE, bytes + 2 * GUARD);
  start += GUARD;
  memset(start, 0x7f, bytes); // numbers that are not plausible
  state().memory[start] = bytes;
  state().device_of[start] = current;
  state().used[current] += bytes;
  if (state().used[current] > state().own) state().slow.insert(start);
  *memory = start;
  return SUCCESS;
}

int hipFree(void *memory) {
  if (meets_capture()) return 900;
  block_if(hangs());
  std::lock_guard<std::mutex> lock(state().lock);
  auto found = state().memory.find(static_cast<char *>(memory));
  if (found == state().memory.end()) return INVALID_VALUE;
  bool intact = is_intact(found->first, found->second);
  if (!intact) fprintf(stderr, "simulator: something was written next to an allocation\n");
  state().used[state().device_of[found->first]] -= found->second;
  state().device_of.erase(found->first);
  free(found->first - GUARD);
  state().slow.erase(found->first);
  state().memory.erase(found);
  return intact ? state().status() : LAUNCH_FAILURE;
}

int hipHostMalloc(void **memory, size_t bytes, unsigned int) {
  {
    std::lock_guard<std::mutex> lock(state().lock);
    if (state().fails(ALLOC)) return state().lost ? LAUNCH_FAILURE : OUT_OF_MEMORY;
    state().handles++;
  }
  block_if(hangs_here(ALLOC));
  *memory = aligned_alloc(GUARD, (bytes + GUARD - 1) / GUARD * GUARD);
  return *memory ? SUCCESS : OUT_OF_MEMORY;
}

int hipHostFree(void *memory) {
  block_if(hangs());
  std::lock_guard<std::mutex> lock(state().lock);
  state().handles--;
  free(memory);
  return state().status();
}

int hipMemcpyHtoDAsync(void *to, void *from, size_t n, void *stream) { return copy(to, from, n, to, nullptr, stream); }
int hipMemcpyDtoHAsync(void *to, void *from, size_t n, void *stream) {
  return copy(to, from, n, from, nullptr, stream);
}
int hipMemcpyDtoDAsync(void *to, void *from, size_t n, void *stream) { return copy(to, from, n, to, from, stream); }

int hipMemsetD32Async(void *to, int word, size_t count, void *stream) {
  std::lock_guard<std::mutex> lock(state().lock);
  if (state().fails(COPY)) return LAUNCH_FAILURE;
  if (!is_inside(static_cast<char *>(to), count * sizeof word)) {
    fprintf(stderr, "simulator: %zu words that are filled are not inside of an allocation\n", count);
    return INVALID_VALUE;
  }
  if (state().hangs) return SUCCESS;
  state().queued[stream]++;
  if (state().skips("fill")) return SUCCESS;
  for (size_t i = 0; i < count; i++) memcpy(static_cast<char *>(to) + i * sizeof word, &word, sizeof word);
  return SUCCESS;
}

int hipModuleLoadData(void **module, const void *code) {
  {
    std::lock_guard<std::mutex> lock(state().lock);
    if (state().fails(MODULE)) return OUT_OF_MEMORY;
  }
  block_if(hangs_here(MODULE));
  if (memcmp(code, CODE, sizeof CODE - 1)) return INVALID_IMAGE;
  return make_handle(module);
}

int hipModuleUnload(void *module) {
  block_if(hangs());
  return free_handle(module);
}

int hipModuleGetFunction(void **function, void *, const char *name) {
  for (unsigned int i = 0; const char *kernel = wavelm_sim_kernel(i); i++) {
    if (strcmp(kernel, name)) continue;
    *function = const_cast<char *>(kernel);
    return SUCCESS;
  }
  return NOT_FOUND;
}

int hipModuleLaunchKernel(void *function, unsigned int x, unsigned int y, unsigned int z, unsigned int threads,
                          unsigned int, unsigned int, unsigned int, void *stream, void **arguments, void **) {
  Launch launch = {static_cast<const char *>(function), {x, y, z}, threads, {}};
  for (unsigned int i = 0; i < wavelm_sim_parameters(launch.name); i++) {
    launch.arguments.push_back(0);
    memcpy(&launch.arguments.back(), arguments[i], sizeof launch.arguments.back());
  }
  {
    std::lock_guard<std::mutex> lock(state().lock);
    if (state().fails(LAUNCH)) return LAUNCH_FAILURE;
    if (state().beside) return state().beside--, 900;
    if (state().hangs) return SUCCESS;
    if (!is_on_one_device(launch, stream)) return INVALID_HANDLE;
    auto capture = captures.find(stream);
    if (capture != captures.end()) {
      capture->second.push_back(launch);
      return SUCCESS;
    }
    state().queued[stream]++;
  }
  return run(launch);
}

int hipStreamBeginCapture(void *stream, unsigned int) {
  std::lock_guard<std::mutex> lock(state().lock);
  return captures.emplace(stream, Graph()).second ? SUCCESS : INVALID_VALUE;
}

int hipStreamEndCapture(void *stream, void **graph) {
  std::lock_guard<std::mutex> lock(state().lock);
  auto capture = captures.find(stream);
  if (capture == captures.end()) return INVALID_VALUE;
  state().handles++;
  *graph = new Graph(capture->second);
  captures.erase(capture);
  return SUCCESS;
}

int hipGraphInstantiate(void **made, void *graph, void **, char *, size_t) {
  std::lock_guard<std::mutex> lock(state().lock);
  if (state().fails(ALLOC)) return OUT_OF_MEMORY;
  state().handles++;
  *made = new Graph(*static_cast<Graph *>(graph));
  return SUCCESS;
}

int hipGraphLaunch(void *made, void *stream) {
  {
    std::lock_guard<std::mutex> lock(state().lock);
    if (state().fails(LAUNCH)) return LAUNCH_FAILURE;
    if (state().hangs) return SUCCESS;
    state().queued[stream]++;
    if (state().skips("graph")) return SUCCESS;
  }
  if (static_cast<Graph *>(made)->launched++ && state().stale) return SUCCESS;
  for (const Launch &launch : *static_cast<Graph *>(made))
    if (int failed = run(launch)) return failed;
  return SUCCESS;
}

int hipGraphDestroy(void *graph) {
  std::lock_guard<std::mutex> lock(state().lock);
  state().handles--;
  delete static_cast<Graph *>(graph);
  return SUCCESS;
}

int hipGraphExecDestroy(void *made) { return hipGraphDestroy(made); }

int hipStreamCreateWithFlags(void **stream, unsigned int) {
  int failed = make_handle(stream);
  std::lock_guard<std::mutex> lock(state().lock);
  if (!failed) state().device_of[*stream] = current;
  return failed;
}

int hipStreamDestroy(void *stream) {
  block_if(hangs());
  {
    std::lock_guard<std::mutex> lock(state().lock);
    state().device_of.erase(stream);
  }
  return free_handle(stream);
}

int hipStreamSynchronize(void *stream) {
  if (meets_capture()) return 900;
  block_if(hangs());
  std::lock_guard<std::mutex> lock(state().lock);
  call_host(stream);
  state().queued.erase(stream);
  return state().status();
}

int hipStreamAddCallback(void *stream, void (*function)(void *, int, void *), void *data, unsigned int flags) {
  if (flags) return INVALID_VALUE;
  std::lock_guard<std::mutex> lock(state().lock);
  if (state().lost) return LAUNCH_FAILURE;
  state().calls_on_host[stream].push_back({function, data});
  return SUCCESS;
}

// With other flags beside hipEventBlockingSync, waiting may spin.
int hipEventCreateWithFlags(void **event, unsigned int flags) {
  return flags == 1 ? make_handle(event) : INVALID_VALUE;
}

int hipEventDestroy(void *event) {
  {
    std::lock_guard<std::mutex> lock(state().lock);
    state().recorded.erase(event);
    state().asked.erase(event);
    state().times.erase(event);
  }
  return free_handle(event);
}

// Work is always done, but nobody may rely on that.
int hipEventQuery(void *event) {
  if (meets_capture()) return 900;
  {
    std::lock_guard<std::mutex> lock(state().lock);
    if (state().asked.insert(event).second) return NOT_READY;
  }
  return wait(event);
}

int hipEventSynchronize(void *event) {
  block_if(hangs());
  return wait(event);
}

int hipEventRecord(void *event, void *stream) {
  std::lock_guard<std::mutex> lock(state().lock);
  state().recorded[event] = stream;
  state().asked.erase(event);
  state().times[event] = std::chrono::steady_clock::now();
  return state().status();
}

// Work is done when it is queued, so that an event's time is that of its last record.
int hipEventElapsedTime(float *milliseconds, void *from, void *to) {
  std::lock_guard<std::mutex> lock(state().lock);
  auto first = state().times.find(from), last = state().times.find(to);
  if (first == state().times.end() || last == state().times.end()) return INVALID_HANDLE;
  *milliseconds = std::chrono::duration<float, std::milli>(last->second - first->second).count();
  return state().status();
}

} // extern "C"
