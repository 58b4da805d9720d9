// A CUDA driver without a card: its machine code is the path of a library, which holds a kernel as C++ for this processor.
//
// It refuses what the real one refuses and these tests can do wrong: a launch without a context, more dynamic shared memory
// than was allowed, an empty grid.
#include <dlfcn.h>

#include <cstring>
#include <string>
#include <vector>

struct Function {
  std::string name;
  void (*run)(int blocks, int threads, void **parameters);
  int count;
  const int *bytes;
  int most_shared = 48 * 1024;
};

struct Record {
  const Function *function;
  unsigned grid[3], block[3], shared;
  void *stream;
  std::vector<long long> values;
};

static std::vector<void *> contexts;
static std::vector<Record> records;
static std::string failing;
static int code_of_failure, primary_context;

static int failed(const char *call) { return failing == call ? code_of_failure : 0; }

extern "C" {

int cuInit(unsigned) { return failed("cuInit"); }

int cuDeviceGet(int *device, int ordinal) {
  *device = ordinal;
  return failed("cuDeviceGet");
}

int cuDevicePrimaryCtxRetain(void **context, int) {
  *context = &primary_context;
  return failed("cuDevicePrimaryCtxRetain");
}

int cuCtxPushCurrent_v2(void *context) {
  contexts.push_back(context);
  return 0;
}

int cuCtxPopCurrent_v2(void **context) {
  if (contexts.empty()) return 201;
  *context = contexts.back();
  contexts.pop_back();
  return 0;
}

int cuModuleLoadData(void **module, const void *image) {
  if (contexts.empty()) return 201;
  if (int code = failed("cuModuleLoadData")) return code;
  *module = dlopen(static_cast<const char *>(image), RTLD_NOW | RTLD_LOCAL);
  return *module ? 0 : 200;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  auto named = reinterpret_cast<const char *>(dlsym(module, "kernel_name"));
  if (named == nullptr || std::strcmp(named, name) != 0) return 500;
  auto found = new Function{name};
  found->run = reinterpret_cast<void (*)(int, int, void **)>(dlsym(module, "run"));
  found->count = *reinterpret_cast<const int *>(dlsym(module, "parameter_count"));
  found->bytes = reinterpret_cast<const int *>(dlsym(module, "parameter_bytes"));
  *function = found;
  return 0;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
  if (attribute != 8 || value > 232448) return 1;
  static_cast<Function *>(function)->most_shared = value;
  return 0;
}

int cuLaunchKernel(void *given, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **) {
  auto function = static_cast<const Function *>(given);
  if (contexts.empty()) return 201;
  if (int code = failed("cuLaunchKernel")) return code;
  if (gx * gy * gz == 0 || bx * by * bz == 0 || shared > unsigned(function->most_shared)) return 1;
  Record record{function, {gx, gy, gz}, {bx, by, bz}, shared, stream, {}};
  for (int i = 0; i < function->count; ++i) {
    long long value = 0;
    std::memcpy(&value, parameters[i], function->bytes[i]);
    record.values.push_back(value);
  }
  records.push_back(record);
  if (gy * gz * by * bz != 1) return 1;
  function->run(gx, bx, parameters);
  return 0;
}

int cuGetErrorName(int, const char **text) {
  *text = "CUDA_ERROR_EMULATED";
  return 0;
}

int cuGetErrorString(int, const char **text) {
  *text = "an error of the emulated driver";
  return 0;
}

// What tests ask of it.

void fail_at(const char *call, int code) { failing = call, code_of_failure = code; }

void forget() { records.clear(), failing.clear(); }

int launches() { return int(records.size()); }

const char *launched(int i) { return records[i].function->name.c_str(); }

int numbers_of(int i, long long *into) {
  const Record &record = records[i];
  for (int axis = 0; axis < 3; ++axis) into[axis] = record.grid[axis], into[3 + axis] = record.block[axis];
  into[6] = record.shared, into[7] = reinterpret_cast<long long>(record.stream);
  std::memcpy(into + 8, record.values.data(), 8 * record.values.size());
  return int(record.values.size());
}
}
