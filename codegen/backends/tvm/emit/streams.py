"""Stores that go past the caches, for outputs which no cache holds until they are read.

A plain store first reads the line that it overwrites. TVMScript has no other, so these are written in LLVM's language,
for rows of whole lines of a cache.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script import tirx as T

from codegen.backends.tvm.emit import rows, states
from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.tile import Tile

FEWEST_STREAMED = 8 * 2**20
"""Bytes; smaller outputs may still be in a cache when they are read."""

_STORES = """
define void @store_past_caches(ptr %to, <WIDTH x float> %x) alwaysinline {
  store <WIDTH x float> %x, ptr %to, align BYTES, !nontemporal !0
  ret void
}

define i32 @starts_a_line(ptr %to) alwaysinline {
  %address = ptrtoint ptr %to to i64
  %rest = urem i64 %address, 64
  %aligned = icmp eq i64 %rest, 0
  %found = zext i1 %aligned to i32
  ret i32 %found
}

define void @finish_stores() alwaysinline {
  fence seq_cst
  ret void
}

!0 = !{i32 1}
"""


def import_stores(width: int) -> Expr:
    """The attribute that brings the stores into a kernel."""
    text = _STORES.replace("WIDTH", str(width)).replace("BYTES", str(4 * width))
    return T.attr(T.int32(0), "pragma_import_llvm", text)


def finish() -> None:
    """What a worker ends with: the barrier at the end of a parallel loop does not wait for such stores."""
    T.evaluate(T.call_extern("void", "finish_stores"))


def claim_rows(tensor: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """As rows.claim, which streamed rows have no use for."""
    with T.If(T.Not(_streams(tensor))), T.Then():
        rows.claim(tensor, first, valid, h)


def store_rows(tile: Tile, tensor: Buffer, of_tile: Buffer, first: Expr, valid: Expr, h: Expr) -> None:
    """As rows.store, past the caches if the tensor is large."""
    with T.If(_streams(tensor)):
        with T.Then(), T.serial(valid) as t:
            _stream(tile, tensor, (first + t, h), lambda lanes: of_tile[t, lanes])
        with T.Else():
            rows.store(tile, tensor, of_tile, first, valid, h)


def store_state(tile: Tile, tensor: Buffer, S: Buffer, index: Expr, h: Expr) -> None:
    """As states.store, past the caches if the tensor is large."""
    with T.If(_streams(tensor)):
        with T.Then(), T.serial(tile.slots) as m:
            _stream(tile, tensor, (index, h, m), lambda lanes: S[m, lanes])
        with T.Else():
            states.store(tile, tensor, S, index, h)


def _streams(tensor: Buffer) -> Expr:
    """Whether this tensor of the call is large, and its rows start where lines do."""
    count = T.int64(4)
    for size in tensor.shape:
        count = count * T.cast(size, "int64")
    origin = T.address_of(tensor[(0,) * len(tensor.shape)])
    return T.And(count >= FEWEST_STREAMED, T.call_extern("int32", "starts_a_line", origin) != 0)


def _stream(tile: Tile, tensor: Buffer, at: tuple[Expr, ...], row: Callable[[Expr], Expr]) -> None:
    """Emits stores of row(lanes) to the row of a tensor that lies `at` its leading indices."""
    features, width = extent(tensor, len(at)), tile.width
    with T.serial(features // width) as b:
        to = T.address_of(tensor[(*at, b * width)])
        T.evaluate(T.call_extern("void", "store_past_caches", to, row(T.ramp(b * width, 1, width))))
