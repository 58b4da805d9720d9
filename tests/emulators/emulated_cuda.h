// CUDA C++ as C++: the blocks of a grid one after the other, the threads of a block as coroutines of one processor thread.
//
// A thread runs until its next barrier, then the next one does, forwards or backwards: a kernel that misses a barrier
// gives other results in the other order. A block whose threads do not all come to the same barriers ends the process,
// and so does a warp whose lanes do not all come to the same mma.
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
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

using std::max;
using std::min;
// CUDA's of two floats: where one is NaN it is the other.
static float max(float x, float y) { return std::fmax(x, y); }
static float min(float x, float y) { return std::fmin(x, y); }
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
constexpr int lanes = 32;
// What a thread waits for.
enum class Until { runs, warp, block, ended };

static Index blockIdx, threadIdx;
static ucontext_t scheduler;
static ucontext_t *current;
static const std::function<void()> *body;
static Until until;

// What a block has of shared memory; poisoned before each, as nothing says what lies there.
alignas(64) float shared_ptr[1 << 16];

static void wait(Until reason) {
  until = reason;
  swapcontext(current, &scheduler);
}

static void __syncthreads() { wait(Until::block); }

static void run_thread() {
  (*body)();
  until = Until::ended;
}

static void require_together(const std::vector<Until> &waits, size_t first, size_t count, const char *which) {
  for (size_t i = first; i < first + count; ++i) {
    if (waits[i] != waits[first]) {
      std::fprintf(stderr, "threads of a %s have ended, or wait elsewhere, while the others wait at a barrier\n", which);
      std::abort();
    }
  }
}

// The threads of a warp, one after the other, again and again until they wait for their block.
static void run_warp(std::vector<ucontext_t> &contexts, std::vector<Until> &waits, int first, bool backwards) {
  do {
    for (int i = 0; i < lanes; ++i) {
      threadIdx.x = first + (backwards ? lanes - 1 - i : i);
      current = &contexts[threadIdx.x];
      until = Until::runs;
      swapcontext(&scheduler, current);
      waits[threadIdx.x] = until;
    }
    require_together(waits, first, lanes, "warp");
  } while (waits[first] == Until::warp);
}

static void run_block(char *stacks, int threads, bool backwards) {
  std::fill(std::begin(shared_ptr), std::end(shared_ptr), std::nanf(""));
  std::vector<ucontext_t> contexts(threads);
  std::vector<Until> waits(threads);
  for (int t = 0; t < threads; ++t) {
    getcontext(&contexts[t]);
    contexts[t].uc_stack.ss_sp = &stacks[stack_bytes * t];
    contexts[t].uc_stack.ss_size = stack_bytes;
    contexts[t].uc_link = &scheduler;
    makecontext(&contexts[t], run_thread, 0);
  }
  do {
    for (int first = 0; first < threads; first += lanes) {
      run_warp(contexts, waits, backwards ? threads - lanes - first : first, backwards);
    }
    require_together(waits, 0, threads, "block");
  } while (waits[0] != Until::ended);
}

static void launch(int blocks, int threads, bool backwards, const std::function<void()> &kernel) {
  body = &kernel;
  std::unique_ptr<char[]> stacks(new char[stack_bytes * threads]);
  for (int b = 0; b < blocks; ++b) {
    blockIdx.x = backwards ? blocks - 1 - b : b;
    run_block(stacks.get(), threads, backwards);
  }
}

// The instructions that kernels name in assembly, after the PTX ISA; `emulated_cuda.py` makes calls of the statements.

static unsigned bits_of(float x) {
  unsigned bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

static float __uint_as_float(unsigned bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

static void cvt_rn_bf16x2_f32(unsigned &both, float upper, float lower) {
  both = static_cast<unsigned>(nv_bfloat16(upper).bits) << 16 | nv_bfloat16(lower).bits;
}

// Halves away from zero.
static void cvt_rna_tf32_f32(unsigned &rounded, float x) { rounded = (bits_of(x) + 0x1000) & ~0x1fffu; }

// d += a b, each lane with its registers of all three; number(registers, k) finds what lies at k of a lane's depth.
template <typename Number>
static void multiply(float *const (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int depth, Number number) {
  static unsigned of_a[lanes][4], of_b[lanes][2];
  int lane = threadIdx.x % lanes;
  std::copy(std::begin(a), std::end(a), of_a[lane]);
  std::copy(std::begin(b), std::end(b), of_b[lane]);
  wait(Until::warp);
  for (int i = 0; i < 4; ++i) {
    int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < depth; ++k) {
      // Half the registers of a are of the eight rows below, every other one.
      auto [holder, part, place] = number(k);
      float x = place(of_a[row % 8 * 4 + holder][part * 2 + row / 8]), y = place(of_b[column * 4 + holder][part]);
      *d[i] += x * y;
    }
  }
  wait(Until::warp);
}

struct Place {
  int holder, part;
  float (*of)(unsigned);
};

static float lower_half(unsigned both) { return __uint_as_float(both << 16); }
static float upper_half(unsigned both) { return __uint_as_float(both & 0xffff0000u); }

static void mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(
    float &d0, float &d1, float &d2, float &d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
    unsigned b1) {
  multiply({&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1}, 16,
           [](int k) { return Place{k % 8 / 2, k / 8, k % 2 == 0 ? lower_half : upper_half}; });
}

static void mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(
    float &d0, float &d1, float &d2, float &d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
    unsigned b1) {
  multiply({&d0, &d1, &d2, &d3}, {a0, a1, a2, a3}, {b0, b1}, 8,
           [](int k) { return Place{k % 4, k / 4, __uint_as_float}; });
}
