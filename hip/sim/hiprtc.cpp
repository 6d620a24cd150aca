// The functions of hipRTC that wavelm calls. The "compiler" for gfxsim makes the simulator's code
// object of anything that looks like kernels. It fails for sources whose name begins with the word
// in WAVELM_SIM_RTC_FAIL.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>

namespace {

const int SUCCESS = 0, INVALID_INPUT = 3, COMPILATION = 6;
const char CODE[] = "wavelm simulator\n";
unsigned long compiled = 0;

struct Program {
  std::string source, name, log;
  std::set<std::string> headers;
  bool is_compiled = false;

  int compile(int options, const char **option) {
    std::string target = "none";
    for (int i = 0; i < options; i++)
      if (!strncmp(option[i], "--offload-arch=", 15)) target = option[i] + 15;
    const char *known = getenv("WAVELM_SIM_ARCH");
    if (target != (known ? known : "gfxsim")) return fail("error: unknown target " + target);
    if (const char *word = getenv("WAVELM_SIM_RTC_FAIL"); word && *word && name.rfind(word, 0) == 0)
      return fail(name + ":1:1: error: simulated");
    for (size_t at = source.find("#include \""); at != std::string::npos; at = source.find("#include \"", at + 1)) {
      std::string header = source.substr(at + 10, source.find('"', at + 10) - at - 10);
      if (!headers.count(header)) return fail("error: " + header + " not found");
    }
    // The message in the source prints the name of the compiler.
    if (source.find("__clang_version__") != std::string::npos) log = name + ":1:9: warning: compiler: 99.0 simulated [-W]";
    else compiled++;
    is_compiled = true;
    return SUCCESS;
  }

  int fail(std::string reason) {
    log = reason;
    return COMPILATION;
  }
};

Program *program(void *handle) { return static_cast<Program *>(handle); }

} // namespace

extern "C" {

// How many sources of kernels were compiled.
unsigned long wavelm_sim_compiled() { return compiled; }

int hiprtcCreateProgram(void **handle, const char *source, const char *name, int headers, const char **texts,
                        const char **names) {
  if (!source || !name || headers < 0) return INVALID_INPUT;
  Program *made = new Program;
  made->source = source;
  made->name = name;
  for (int i = 0; i < headers; i++)
    if (*texts[i]) made->headers.insert(names[i]);
  *handle = made;
  return SUCCESS;
}

int hiprtcCompileProgram(void *handle, int options, const char **option) {
  return program(handle)->compile(options, option);
}

int hiprtcGetProgramLogSize(void *handle, size_t *size) {
  *size = program(handle)->log.size() + 1;
  return SUCCESS;
}

int hiprtcGetProgramLog(void *handle, char *log) {
  strcpy(log, program(handle)->log.c_str());
  return SUCCESS;
}

int hiprtcGetCodeSize(void *handle, size_t *size) {
  *size = sizeof CODE - 1;
  return program(handle)->is_compiled ? SUCCESS : INVALID_INPUT;
}

int hiprtcGetCode(void *handle, char *code) {
  if (!program(handle)->is_compiled) return INVALID_INPUT;
  memcpy(code, CODE, sizeof CODE - 1);
  return SUCCESS;
}

int hiprtcDestroyProgram(void **handle) {
  delete program(*handle);
  *handle = nullptr;
  return SUCCESS;
}

} // extern "C"
