"""Weights as they come from memory, a vector of outputs at a time, and words of 32 bits with several narrow ones."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr

_BITS = 32
_LINE = 64
_AHEAD = 4096
"""Bytes between what is read and what is asked of memory: a page, past which processors do not look on their own."""


def prefetch(weights: Buffer, first: Expr, count: int) -> None:
    """Asks for the cache lines a page beyond `count` weights from number `first` on; there need not be any."""
    size = tvm.DataType(weights.dtype).bits // 8
    for byte in range(_AHEAD, _AHEAD + count * size, _LINE):
        address = T.address_of(weights[first + byte // size])
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, 0, 3, 1))


def load(weights: Buffer, first: Expr, together: int, count: int) -> Buffer:
    """`count` neighbouring words, int32, of `together` weights each, from number `first` on."""
    prefetch(weights, first, count * together)
    words = T.alloc_buffer((count,), "int32")
    narrow = weights[T.ramp(first, 1, count * together)]
    T.buffer_store(words, T.reinterpret(f"int32x{count}", narrow), [T.ramp(0, 1, count)])
    return words


def weight(words: Buffer, dtype: str, place: int) -> Callable[[Expr], Expr]:
    """value(lane), float32: the weight of type `dtype` at a place of a word, 0 in its lowest bits."""
    bits = 16 if dtype == "bfloat16" else 8
    above = T.int32(_BITS - bits * (place + 1))

    def of_bfloat16(lane: Expr) -> Expr:
        return T.reinterpret("float32", T.bitwise_and(words[lane] << above, T.int32(-(1 << 16))))

    def of_int8(lane: Expr) -> Expr:
        return T.cast((words[lane] << above) >> T.int32(_BITS - bits), "float32")

    return of_bfloat16 if dtype == "bfloat16" else of_int8
