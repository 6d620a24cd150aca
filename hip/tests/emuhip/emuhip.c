// A libamdhip64 whose launches run AMD machine code, instruction by instruction, in an ISA emulator (embedded Python, see
// runtime.py). emuhip.sh builds and starts it.
//
// It checks what a real runtime would trust: block sizes against the kernel's, hidden arguments, that each pointer
// argument lies in a live allocation, guard bytes around allocations. Fresh memory holds no plausible numbers.
//
// EMU_ARCH is the architecture, EMU_UNITS the number of compute units. Faults, by the number of a launch (from 1; all
// numbers count launches on the device, captured ones when they are captured):
// EMU_FAIL_AFTER=N   from there on every call returns 700, as ROCm 7 does after a fault of the GPU
// EMU_HANG_AFTER=N   from there on nothing is done any more, no event becomes ready, and calls that wait never return
// EMU_HANG_COPY=N    the same from the N-th copy on
// EMU_900_AT=N       this launch fails as beside a capture of another thread
// EMU_NO_COV6=1      code objects of version 6 are refused, as ROCm does before 6.3
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NO_BINARY = 209,
       NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILURE = 719 };
enum { GUARD = 256 };

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static PyObject *runtime;
static const char *arch;
static int wave, units, launches, copies, fail_after, hang_after, hang_copy, capture_at, refuses_version_6;
static size_t used, limit = (size_t)1 << 30;

// Streams that are being captured, and into which graph.
typedef struct Capture {
  void *stream;
  long long graph;
  struct Capture *next;
} Capture;
static Capture *captures;

static int number(const char *variable) { return getenv(variable) ? atoi(getenv(variable)) : 0; }

static void start(void) {
  arch = getenv("EMU_ARCH") ? getenv("EMU_ARCH") : "gfx1100";
  wave = strncmp(arch, "gfx9", 4) ? 32 : 64;
  units = number("EMU_UNITS") ? number("EMU_UNITS") : 4;
  fail_after = number("EMU_FAIL_AFTER");
  hang_after = number("EMU_HANG_AFTER");
  hang_copy = number("EMU_HANG_COPY");
  capture_at = number("EMU_900_AT");
  refuses_version_6 = number("EMU_NO_COV6");
  Py_InitializeEx(0);
  PyRun_SimpleString("import os, sys; sys.path.insert(0, os.environ['EMUHIP_DIR'])");
  runtime = PyImport_ImportModule("runtime");
  if (!runtime) {
    PyErr_Print();
    abort();
  }
  PyEval_SaveThread();
}

static void init(void) { pthread_once(&once, start); }

// Calls a function of runtime.py that returns an integer; -1 where it raises.
static long long call(const char *name, const char *format, ...) {
  PyGILState_STATE held = PyGILState_Ensure();
  PyObject *function = PyObject_GetAttrString(runtime, name), *result = NULL;
  va_list list;
  va_start(list, format);
  PyObject *arguments = Py_VaBuildValue(format, list);
  va_end(list);
  long long out = -1;
  if (function && arguments) result = PyObject_CallObject(function, arguments);
  if (result)
    out = PyLong_AsLongLong(result);
  else
    PyErr_Print();
  Py_XDECREF(function);
  Py_XDECREF(arguments);
  Py_XDECREF(result);
  PyGILState_Release(held);
  return out;
}

static int is_lost(void) { return fail_after && launches >= fail_after; }
static int hangs(void) { return (hang_after && launches >= hang_after) || (hang_copy && copies >= hang_copy); }
// What a call returns that does nothing else.
static int status(void) { return is_lost() ? ILLEGAL_ADDRESS : SUCCESS; }
// What a call does that waits for the device.
static int waits(void) {
  while (hangs()) sleep(1);
  return status();
}

// How many launches and copies there were.
API int emu_launches(void) { return launches; }
API int emu_copies(void) { return copies; }

API int hipInit(unsigned flags) {
  init();
  return SUCCESS;
}

API int hipGetDeviceCount(int *count) {
  *count = 1;
  return SUCCESS;
}

API int hipSetDevice(int device) { return device ? INVALID_DEVICE : SUCCESS; }

API int hipRuntimeGetVersion(int *version) {
  *version = 60400000;
  return SUCCESS;
}

API int hipDeviceGetName(char *name, int length, int device) {
  snprintf(name, length, "emulated %s", arch);
  return SUCCESS;
}

API int hipDeviceGetAttribute(int *value, int attribute, int device) {
  switch (attribute) {
  case 16: *value = 0; return SUCCESS;     // integrated
  case 63: *value = units; return SUCCESS; // compute units
  case 87: *value = wave; return SUCCESS;  // lanes of a wave
  }
  return INVALID_VALUE;
}

// As HIP 6 and later lay it out: the name behind reserved zeros.
API int hipGetDevicePropertiesR0600(void *properties, int device) {
  snprintf((char *)properties + 1160, 64, "%s%s", arch, wave == 64 ? ":sramecc+:xnack-" : "");
  return SUCCESS;
}

API int hipDeviceTotalMem(size_t *total, int device) {
  *total = limit;
  return SUCCESS;
}

API int hipMemGetInfo(size_t *available, size_t *total) {
  *total = limit;
  *available = limit - used;
  return status();
}

API int hipMalloc(void **memory, size_t bytes) {
  init();
  if (is_lost()) return ILLEGAL_ADDRESS;
  if (bytes > limit - used) return OUT_OF_MEMORY;
  char *start = aligned_alloc(GUARD, (bytes + 3 * GUARD - 1) / GUARD * GUARD);
  if (!start) return OUT_OF_MEMORY;
  memset(start, 0xa5, bytes + 2 * GUARD);
  start += GUARD;
  memset(start, 0x7f, bytes);
  used += bytes;
  *memory = start;
  return call("allocated", "(KK)", (unsigned long long)start, (unsigned long long)bytes) ? OUT_OF_MEMORY : SUCCESS;
}

API int hipFree(void *memory) {
  if (waits()) return ILLEGAL_ADDRESS;
  long long bytes = call("freed", "(K)", (unsigned long long)memory);
  if (bytes < 0) return INVALID_VALUE;
  used -= bytes;
  free((char *)memory - GUARD);
  return SUCCESS;
}

API int hipHostMalloc(void **memory, size_t bytes, unsigned flags) {
  *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  return *memory ? SUCCESS : OUT_OF_MEMORY;
}

API int hipHostFree(void *memory) {
  waits();
  free(memory);
  return SUCCESS;
}

static int copy(void *to, void *from, size_t bytes) {
  __atomic_add_fetch(&copies, 1, __ATOMIC_RELAXED);
  if (is_lost()) return ILLEGAL_ADDRESS;
  if (!hangs()) memmove(to, from, bytes);
  return SUCCESS;
}

API int hipMemcpyHtoDAsync(void *to, void *from, size_t bytes, void *stream) { return copy(to, from, bytes); }
API int hipMemcpyDtoHAsync(void *to, void *from, size_t bytes, void *stream) { return copy(to, from, bytes); }
API int hipMemcpyDtoDAsync(void *to, void *from, size_t bytes, void *stream) { return copy(to, from, bytes); }

API int hipModuleLoadData(void **module, const void *code) {
  init();
  const unsigned char *bytes = code;
  if (memcmp(bytes, "\177ELF", 4)) return INVALID_IMAGE;
  if (is_lost()) return ILLEGAL_ADDRESS;
  if (refuses_version_6 && bytes[8] >= 4) return NO_BINARY;
  // The section headers end the file.
  unsigned long long at;
  unsigned short size, count;
  memcpy(&at, bytes + 40, 8);
  memcpy(&size, bytes + 58, 2);
  memcpy(&count, bytes + 60, 2);
  long long loaded = call("load", "(y#)", bytes, (Py_ssize_t)(at + size * count));
  *module = (void *)loaded;
  return loaded > 0 ? SUCCESS : NO_BINARY;
}

API int hipModuleUnload(void *module) { return waits(); }

API int hipModuleGetFunction(void **function, void *module, const char *name) {
  long long found = call("function", "(Ls)", (long long)module, name);
  *function = (void *)found;
  return found > 0 ? SUCCESS : NOT_FOUND;
}

API int hipModuleLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                              unsigned threads_z, unsigned shared, void *stream, void **arguments, void **extra) {
  if (extra || shared || threads_y != 1 || threads_z != 1) return INVALID_VALUE;
  long long graph = 0;
  pthread_mutex_lock(&lock);
  launches++;
  for (Capture *one = captures; one; one = one->next)
    if (one->stream == stream) graph = one->graph;
  pthread_mutex_unlock(&lock);
  if (is_lost()) return ILLEGAL_ADDRESS;
  if (launches == capture_at) return 900;
  if (hangs()) return SUCCESS;
  return call("launch", "(LIIIIKL)", (long long)function, x, y, z, threads, (unsigned long long)arguments, graph)
             ? LAUNCH_FAILURE
             : SUCCESS;
}

API int hipStreamBeginCapture(void *stream, unsigned mode) {
  Capture *one = malloc(sizeof *one);
  one->stream = stream;
  one->graph = call("begin", "()");
  pthread_mutex_lock(&lock);
  one->next = captures;
  captures = one;
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

API int hipStreamEndCapture(void *stream, void **graph) {
  int found = INVALID_VALUE;
  pthread_mutex_lock(&lock);
  for (Capture **at = &captures; *at; at = &(*at)->next) {
    Capture *one = *at;
    if (one->stream != stream) continue;
    *graph = (void *)one->graph;
    *at = one->next;
    free(one);
    found = SUCCESS;
    break;
  }
  pthread_mutex_unlock(&lock);
  return found;
}

API int hipGraphInstantiate(void **made, void *graph, void **node, char *log, size_t bytes) {
  *made = graph;
  return SUCCESS;
}

API int hipGraphLaunch(void *graph, void *stream) {
  if (is_lost()) return ILLEGAL_ADDRESS;
  if (hangs()) return SUCCESS;
  return call("replay", "(L)", (long long)graph) ? LAUNCH_FAILURE : SUCCESS;
}

API int hipGraphDestroy(void *graph) { return SUCCESS; }
API int hipGraphExecDestroy(void *graph) { return SUCCESS; }

API int hipStreamCreateWithFlags(void **stream, unsigned flags) {
  *stream = malloc(1);
  return SUCCESS;
}

API int hipStreamDestroy(void *stream) {
  waits();
  free(stream);
  return SUCCESS;
}

API int hipStreamSynchronize(void *stream) { return waits(); }

// With other flags beside hipEventBlockingSync, waiting may spin.
API int hipEventCreateWithFlags(void **event, unsigned flags) {
  *event = malloc(1);
  return flags == 1 ? SUCCESS : INVALID_VALUE;
}

API int hipEventDestroy(void *event) {
  free(event);
  return SUCCESS;
}

API int hipEventQuery(void *event) { return hangs() ? NOT_READY : status(); }
API int hipEventSynchronize(void *event) { return waits(); }
API int hipEventRecord(void *event, void *stream) { return status(); }

API int hipEventElapsedTime(float *milliseconds, void *from, void *to) {
  *milliseconds = 1;
  return SUCCESS;
}

API int hipStreamAddCallback(void *stream, void (*function)(void *, int, void *), void *data, unsigned flags) {
  function(stream, SUCCESS, data);
  return SUCCESS;
}
