"""CUDA's side of `tensor_cores`: what a lane calls with its own numbers of a (two rows) and b (one column), 16 deep.

All lanes of a warp call it at once.
"""

from __future__ import annotations

_BF16 = r"""
__device__ __forceinline__ unsigned as_bf16(float low, float high) {
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// sums += a b^T, both rounded to bfloat16.
__device__ __forceinline__ void mma_bf16(
    float* upper, float* lower, float a0, float a1, float a2, float a3, float a4, float a5, float a6, float a7,
    float b0, float b1, float b2, float b3) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{ %0,%1,%2,%3 }, { %4,%5,%6,%7 }, { %8,%9 }, { %0,%1,%2,%3 };"
      : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
      : "r"(as_bf16(a0, a1)), "r"(as_bf16(a2, a3)), "r"(as_bf16(a4, a5)), "r"(as_bf16(a6, a7)),
        "r"(as_bf16(b0, b1)), "r"(as_bf16(b2, b3)));
}
"""

_EIGHT_DEEP = r"""
__device__ __forceinline__ unsigned as_tf32(float x) {
  unsigned rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

// sums += a b^T, eight deep: the order of the depth is free, so a lane's pair takes the places that mma has for it.
__device__ __forceinline__ void mma_eight(
    float* upper, float* lower, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{ %0,%1,%2,%3 }, { %4,%5,%6,%7 }, { %8,%9 }, { %0,%1,%2,%3 };"
      : "+f"(upper[0]), "+f"(upper[1]), "+f"(lower[0]), "+f"(lower[1])
      : "r"(a0), "r"(a2), "r"(a1), "r"(a3), "r"(b0), "r"(b1));
}
"""

_TF32 = r"""
// sums += a b^T, both rounded to TF32.
__device__ __forceinline__ void mma_tf32(
    float* upper, float* lower, float a0, float a1, float a2, float a3, float a4, float a5, float a6, float a7,
    float b0, float b1, float b2, float b3) {
  mma_eight(upper, lower, as_tf32(a0), as_tf32(a1), as_tf32(a2), as_tf32(a3), as_tf32(b0), as_tf32(b1));
  mma_eight(upper, lower, as_tf32(a4), as_tf32(a5), as_tf32(a6), as_tf32(a7), as_tf32(b2), as_tf32(b3));
}
"""

_TF32X3 = r"""
__device__ __forceinline__ unsigned rest_of(float x) { return as_tf32(x - __uint_as_float(as_tf32(x))); }

// sums += a b^T, eight deep, each number the sum of two TF32; the product of the smaller two is left out.
__device__ __forceinline__ void mma_split(
    float* upper, float* lower, float a0, float a1, float a2, float a3, float b0, float b1) {
  mma_eight(upper, lower, rest_of(a0), rest_of(a1), rest_of(a2), rest_of(a3), as_tf32(b0), as_tf32(b1));
  mma_eight(upper, lower, as_tf32(a0), as_tf32(a1), as_tf32(a2), as_tf32(a3), rest_of(b0), rest_of(b1));
  mma_eight(upper, lower, as_tf32(a0), as_tf32(a1), as_tf32(a2), as_tf32(a3), as_tf32(b0), as_tf32(b1));
}

// sums += a b^T.
__device__ __forceinline__ void mma_tf32x3(
    float* upper, float* lower, float a0, float a1, float a2, float a3, float a4, float a5, float a6, float a7,
    float b0, float b1, float b2, float b3) {
  mma_split(upper, lower, a0, a1, a2, a3, b0, b1);
  mma_split(upper, lower, a4, a5, a6, a7, b2, b3);
}
"""

_SOURCES = {"bf16": _BF16, "tf32": _EIGHT_DEEP + _TF32, "tf32x3": _EIGHT_DEEP + _TF32X3}


def name(dots: str) -> str:
    """The function that multiplies, for numbers of that precision."""
    return f"mma_{dots}"


def source(dots: str) -> str:
    """The CUDA source of that function, and of those that it calls."""
    return _SOURCES[dots]
