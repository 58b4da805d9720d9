"""Where the values of a token lie: rows and numbers in scratch, matrices in tensors or scratch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix, or a ring of rows.

    Attributes:
        buffer: whose last two axes are rows and columns.
        lead: the index into its other axes.
    """

    buffer: Buffer
    lead: tuple[Expr, ...] = ()

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return int(self.buffer.shape[-2])

    @property
    def columns(self) -> int:
        """How many columns it has."""
        return int(self.buffer.shape[-1])

    def at(self, m: Expr, d: Expr) -> Expr:
        """Its entries at row m, of which d, one index or a ramp of them, are the columns."""
        return self.buffer[(*self.lead, m, d)]

    def store(self, value: Expr, m: Expr, d: Expr) -> None:
        """Emits: entries <- value."""
        T.buffer_store(self.buffer, value, [*self.lead, m, d])


@dataclass(frozen=True)
class Columns:
    """A piece of a row: `lanes` columns from `offset` on of vector v.

    Attributes:
        v, offset, lanes, width: as said; `width` is that of a whole vector.
    """

    v: Expr
    offset: int
    lanes: int
    width: int

    @property
    def inside(self) -> Expr:
        """The lanes of its vector."""
        return self.offset if self.lanes == 1 else T.ramp(self.offset, 1, self.lanes)

    @property
    def index(self) -> Expr:
        """The columns."""
        first = self.v * self.width + self.offset
        return first if self.lanes == 1 else T.ramp(first, 1, self.lanes)

    def vector(self, value: Expr) -> Expr:
        """A value as one number for each lane."""
        return T.Broadcast(value, self.lanes) if self.lanes > 1 and value.ty.is_scalar() else value


def pieces(width: int, features: int) -> Iterator[Columns]:
    """Emits what follows for every piece of a row: in a loop for whole vectors, then for powers of two of the rest."""
    whole, rest = divmod(features, width)
    if whole:
        with T.serial(whole) as v:
            yield Columns(v, 0, width, width)
    yield from parts_of_rest(width, whole, rest)


def parts_of_rest(width: int, whole: int, rest: int) -> Iterator[Columns]:
    """The pieces of the features that fill no vector."""
    offset, lanes = 0, width // 2
    while offset < rest:
        if rest - offset >= lanes:
            yield Columns(whole, offset, lanes, width)
            offset += lanes
        lanes //= 2


def row(width: int, features: int) -> Buffer:
    """Scratch for one value of an axis."""
    return T.alloc_buffer((-(-features // width), width), "float32")


def values(
    width: int,
    numbers: tuple[str, ...] = (),
    rows: Mapping[str, int] | None = None,
    matrices: Mapping[str, tuple[int, int]] | None = None,
) -> SimpleNamespace:
    """Scratch for named values: numbers, rows of so many features, matrices of rows and columns."""
    found = {name: T.alloc_buffer((1,), "float32") for name in numbers}
    found |= {name: row(width, features) for name, features in (rows or {}).items()}
    found |= {name: T.alloc_buffer(shape, "float32") for name, shape in (matrices or {}).items()}
    return SimpleNamespace(**found)


def places(**found: tuple[Buffer, ...]) -> SimpleNamespace:
    """Matrices by name, each given by its buffer and the index into its leading axes."""
    return SimpleNamespace(**{name: Matrix(buffer, tuple(lead)) for name, (buffer, *lead) in found.items()})
