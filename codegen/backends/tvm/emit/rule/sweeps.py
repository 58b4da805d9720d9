"""Sweeps over matrices: entries, sums over columns and sums over rows of one pass through rows and columns.

A sweep takes some rows at a time, so that the sums over their columns stay in registers and those over rows are added
to memory once for all of them. Its statements are emitted in order for every vector of columns, so one that is
written after another sees what that has written. Where rows go through a map, they are taken one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.rule.fold import fold
from codegen.backends.tvm.emit.rule.values import Columns, Matrix, pieces, row
from codegen.backends.tvm.emit.vectors import sum_of_lanes, zeros
from codegen.backends.tvm.emit.walks import Token

_ROWS = (4, 8, 4, 4, 4, 2)
"""Rows at a time of a sweep with so many sums over columns, or more."""

_CHAINS = 2
"""Sums that additions over the rows of a group are dealt to, so that they need not wait for one another."""


class Entry:
    """Entries (m, d) of a row m, for the columns d of a piece."""

    def __init__(self, m: Expr, piece: Columns, own: dict[str, Expr]) -> None:
        self.m, self.piece, self.own = m, piece, own

    def at(self, matrix: Matrix | str) -> Expr:
        """Those of a matrix, or of one that only this sweep has, by its name."""
        if isinstance(matrix, str):
            return self.own[matrix]
        return matrix.at(self.m, self.piece.index)

    def row(self, x: Buffer | Matrix, p: Expr | None = None) -> Expr:
        """x[m], of a value along the rows; x[p, m] of a ring."""
        if isinstance(x, Matrix):
            return x.at(p, self.m)
        width = extent(x, 1)
        return x[self.m // width, self.m % width]

    def column(self, x: Buffer | Matrix, p: Expr | None = None) -> Expr:
        """x[d], of a value along the columns; x[p, d] of a ring."""
        if isinstance(x, Matrix):
            return x.at(p, self.piece.index)
        return x[self.piece.v, self.piece.inside]

    def over_window(self, window: int, value: Callable[[Expr], Expr]) -> Expr:
        """The sum of value(p) over the pairs p of a ring."""
        (total,) = zeros(self.piece.lanes, 1)
        lanes = 0 if self.piece.lanes == 1 else T.ramp(0, 1, self.piece.lanes)
        with T.serial(window) as p:
            T.buffer_store(total, total[lanes] + value(p), [lanes])
        return total[lanes]


Value = Callable[[Entry], Expr]


@dataclass(frozen=True, eq=False)
class Written:
    """Entries of a matrix, or, where `to` is a name, of one that only its sweep has."""

    to: Matrix | str
    value: Value


@dataclass(frozen=True, eq=False)
class OverColumns:
    """to[m] <- the sum of value over the columns d; `to` is a row of scratch, or row `p` of a ring."""

    to: Buffer | Matrix
    value: Value
    p: Expr | None = None


@dataclass(frozen=True, eq=False)
class OverRows:
    """to[d] <- the sum of value over the rows m; `to` as of `OverColumns`."""

    to: Buffer | Matrix
    value: Value
    p: Expr | None = None


@dataclass(frozen=True, eq=False)
class OverAll:
    """Number <- the sum of value over rows and columns."""

    to: Buffer
    value: Value


@dataclass(frozen=True, eq=False)
class Mapped:
    """Rows of matrices that only their sweep has, through a function emit(walk, features, *inputs, *outputs)."""

    emit: Callable[..., None]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


Statement: TypeAlias = Written | OverColumns | OverRows | OverAll | Mapped


def sweep(width: int, rows: int, columns: int, *statements: Statement) -> None:
    """Emits statements for every row and column."""
    for each in statements:
        if isinstance(each, OverRows):
            for piece in pieces(width, columns):
                _store_along(each, T.float32(0), piece)
    totals = {each: zeros(width, 1)[0] for each in statements if isinstance(each, OverAll)}
    if any(isinstance(each, Mapped) for each in statements):
        _row_by_row(width, rows, columns, statements, totals)
    else:
        _by_groups(width, rows, columns, statements, totals)
    for each, total in totals.items():
        sum_of_lanes(total)
        T.buffer_store(each.to, total[0], [0])


def windowed(
    width: int, window: int, rows: int, columns: int, statements: Callable[[Expr], Sequence[Statement]]
) -> None:
    """Emits statements(p) for every pair p of a window, every row and every column."""
    with T.serial(window) as p:
        sweep(width, rows, columns, *statements(p))


def _by_groups(
    width: int, rows: int, columns: int, statements: Sequence[Statement], totals: dict[OverAll, Buffer]
) -> None:
    sums = sum(isinstance(each, OverColumns) for each in statements)
    # At most as many vectors of sums as vector registers of the oldest machines, which are half of those of newer ones.
    count = min(width, _ROWS[min(sums, len(_ROWS) - 1)])
    whole, rest = divmod(rows, count)
    if whole:
        with T.serial(whole) as b:
            _group(width, columns, b * count, count, statements, totals)
    if rest:
        _group(width, columns, whole * count, rest, statements, totals)


def _group(
    width: int,
    columns: int,
    first: Expr,
    count: int,
    statements: Sequence[Statement],
    totals: dict[OverAll, Buffer],
) -> None:
    """The statements for `count` rows from `first` on."""
    size = 1 << (count - 1).bit_length()
    sums = {each: zeros(width, size) for each in statements if isinstance(each, OverColumns)}
    for piece in pieces(width, columns):
        chains: dict[Statement, list[Expr]] = {each: [] for each in statements}
        for r in range(count):
            entry = Entry(first + r, piece, {})
            for each in statements:
                if isinstance(each, Written):
                    _write(each, entry)
                elif isinstance(each, OverColumns):
                    _add(sums[each][r], each.value(entry), piece)
                elif isinstance(each, OverRows | OverAll):
                    _chain(chains[each], r, each.value(entry), piece)
        for each in statements:
            if isinstance(each, OverRows):
                _store_along(each, _along(each, piece) + _joined(chains[each]), piece)
            elif isinstance(each, OverAll):
                _add(totals[each], _joined(chains[each]), piece)
    for each, vectors in sums.items():
        _store_sums(each, fold(width, vectors), first, count)


def _chain(chain: list[Buffer], r: int, value: Expr, piece: Columns) -> None:
    lanes = 0 if piece.lanes == 1 else T.ramp(0, 1, piece.lanes)
    if r < _CHAINS:
        chain.append(T.alloc_buffer((piece.lanes,), "float32"))
        T.buffer_store(chain[r], piece.vector(value), [lanes])
    else:
        T.buffer_store(chain[r % _CHAINS], chain[r % _CHAINS][lanes] + value, [lanes])


def _joined(chain: list[Buffer]) -> Expr:
    first, *later = chain
    lanes = extent(first, 0)
    index = 0 if lanes == 1 else T.ramp(0, 1, lanes)
    total = first[index]
    for each in later:
        total = total + each[index]
    return total


def _write(each: Written, entry: Entry) -> None:
    value = entry.piece.vector(each.value(entry))
    if isinstance(each.to, Matrix):
        each.to.store(value, entry.m, entry.piece.index)
        return
    lanes = 0 if entry.piece.lanes == 1 else T.ramp(0, 1, entry.piece.lanes)
    register = T.alloc_buffer((entry.piece.lanes,), "float32")
    T.buffer_store(register, value, [lanes])
    entry.own[each.to] = register[lanes]


def _add(x: Buffer, value: Expr, piece: Columns) -> None:
    T.buffer_store(x, x[piece.inside] + value, [piece.inside])


def _along(each: OverRows, piece: Columns) -> Expr:
    if isinstance(each.to, Matrix):
        return each.to.at(each.p, piece.index)
    return each.to[piece.v, piece.inside]


def _store_along(each: OverRows, value: Expr, piece: Columns) -> None:
    if isinstance(each.to, Matrix):
        each.to.store(piece.vector(value), each.p, piece.index)
    else:
        T.buffer_store(each.to, piece.vector(value), [piece.v, piece.inside])


def _store_sums(each: OverColumns, sums: Buffer, first: Expr, count: int) -> None:
    done = 0
    while done < count:
        lanes = 1 << ((count - done).bit_length() - 1)
        part = done if lanes == 1 else T.ramp(done, 1, lanes)
        start = first + done
        if isinstance(each.to, Matrix):
            index = start if lanes == 1 else T.ramp(start, 1, lanes)
            each.to.store(sums[part], each.p, index)
        else:
            width = extent(each.to, 1)
            index = start % width if lanes == 1 else T.ramp(start % width, 1, lanes)
            T.buffer_store(each.to, sums[part], [start // width, index])
        done += lanes


def _row_by_row(
    width: int, rows: int, columns: int, statements: Sequence[Statement], totals: dict[OverAll, Buffer]
) -> None:
    names = [each.to for each in statements if isinstance(each, Written) and isinstance(each.to, str)]
    names += [name for each in statements if isinstance(each, Mapped) for name in each.outputs]
    own = {name: row(width, columns) for name in names}
    with T.serial(rows) as m:
        sums = {each: zeros(width, 1)[0] for each in statements if isinstance(each, OverColumns)}
        for mapped, part in groupby(statements, lambda each: isinstance(each, Mapped)):
            if mapped:
                for each in part:
                    assert isinstance(each, Mapped)
                    each.emit(Token(width), columns, *(own[name] for name in (*each.inputs, *each.outputs)))
            else:
                _stage(width, columns, m, list(part), own, sums, totals)
        for each, total in sums.items():
            sum_of_lanes(total)
            _store_sums(each, total, m, 1)


def _stage(
    width: int,
    columns: int,
    m: Expr,
    statements: list[Statement],
    own: dict[str, Buffer],
    sums: dict[OverColumns, Buffer],
    totals: dict[OverAll, Buffer],
) -> None:
    """Statements between two maps, for one row."""
    for piece in pieces(width, columns):
        entry = Entry(m, piece, {name: x[piece.v, piece.inside] for name, x in own.items()})
        for each in statements:
            if isinstance(each, Written) and isinstance(each.to, str):
                T.buffer_store(own[each.to], piece.vector(each.value(entry)), [piece.v, piece.inside])
            elif isinstance(each, Written):
                _write(each, entry)
            elif isinstance(each, OverColumns):
                _add(sums[each], each.value(entry), piece)
            elif isinstance(each, OverRows):
                _store_along(each, _along(each, piece) + each.value(entry), piece)
            elif isinstance(each, OverAll):
                _add(totals[each], each.value(entry), piece)
