// CUDA C++ as C++: the blocks of a grid one after the other, the threads of a block as coroutines of one processor thread.
//
// A thread runs until its next barrier, then the next one does, forwards or backwards: a kernel that misses a barrier
// gives other results in the other order. A block whose threads do not all come to the same barriers ends the process.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __restrict__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::max;
using std::min;
using half = _Float16;

struct Index {
  int x;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};

// The sixteen upper bits of a float, rounded to even.
struct nv_bfloat16 {
  unsigned short bits;
  nv_bfloat16() = default;
  explicit nv_bfloat16(float value) {
    unsigned whole;
    __builtin_memcpy(&whole, &value, 4);
    bits = std::isnan(value) ? 0x7fc0 : (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
  }
  operator float() const {
    unsigned whole = static_cast<unsigned>(bits) << 16;
    float value;
    __builtin_memcpy(&value, &whole, 4);
    return value;
  }
};

constexpr size_t stack_bytes = 1 << 16;
static Index blockIdx, threadIdx;
static ucontext_t scheduler;
static ucontext_t *current;
static const std::function<void()> *body;
static bool ended;

// What a block has of shared memory; poisoned before each, as nothing says what lies there.
alignas(64) float shared_ptr[1 << 16];

static void __syncthreads() { swapcontext(current, &scheduler); }

static void run_thread() {
  (*body)();
  ended = true;
}

static void run_block(char *stacks, int threads, bool backwards) {
  std::fill(std::begin(shared_ptr), std::end(shared_ptr), std::nanf(""));
  std::vector<ucontext_t> contexts(threads);
  for (int t = 0; t < threads; ++t) {
    getcontext(&contexts[t]);
    contexts[t].uc_stack.ss_sp = &stacks[stack_bytes * t];
    contexts[t].uc_stack.ss_size = stack_bytes;
    contexts[t].uc_link = &scheduler;
    makecontext(&contexts[t], run_thread, 0);
  }
  for (int finished = 0; finished == 0;) {
    for (int i = 0; i < threads; ++i) {
      threadIdx.x = backwards ? threads - 1 - i : i;
      current = &contexts[threadIdx.x];
      ended = false;
      swapcontext(&scheduler, current);
      finished += ended;
    }
    if (finished != 0 && finished != threads) {
      std::fprintf(stderr, "%d of %d threads have ended while the others wait at a barrier\n", finished, threads);
      std::abort();
    }
  }
}

static void launch(int blocks, int threads, bool backwards, const std::function<void()> &kernel) {
  body = &kernel;
  std::unique_ptr<char[]> stacks(new char[stack_bytes * threads]);
  for (int b = 0; b < blocks; ++b) {
    blockIdx.x = backwards ? blocks - 1 - b : b;
    run_block(stacks.get(), threads, backwards);
  }
}
