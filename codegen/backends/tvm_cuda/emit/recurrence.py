"""Token by token: a thread has the numbers [m, d] of a state for itself.

m is every `groups`-th slot, d every `across`-th dimension. The numbers lie in its registers or in the tensor of states;
no other thread ever reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm_cuda.emit.threads import Threads, each_feature, register

Move = Callable[[Expr, Expr, Expr], Expr]
"""move(S[m, d], m, d): what a number of a state becomes."""


@dataclass(frozen=True)
class Step(Threads):
    """What a kernel without tiles is generated for.

    Attributes:
        slots: M.
        across: threads that share a row of a state.
        resident: whether the states lie in registers.
    """

    slots: int
    across: int
    resident: bool

    @property
    def groups(self) -> int:
        """Groups of `across` threads, which share out the rows."""
        return self.threads // self.across

    def of_row(self, features: int) -> int:
        """How many numbers of a row a thread has."""
        return (features + self.across - 1) // self.across

    def numbers(self, features: int) -> int:
        """How many numbers of a state a thread has."""
        return (self.slots + self.groups - 1) // self.groups * self.of_row(features)


def load_state(step: Step, kept: Buffer, S: Buffer, n: Expr, h: Expr) -> None:
    """The thread's registers <- its numbers of a state."""
    _each_own(step, extent(S, 3), lambda m, d, place: T.buffer_store(kept, S[n, h, m, d], [place]))


def store_state(step: Step, S: Buffer, kept: Buffer, n: Expr, h: Expr) -> None:
    """The thread's numbers of a state <- its registers."""
    _each_own(step, extent(S, 3), lambda m, d, place: T.buffer_store(S, kept[place], [n, h, m, d]))


def load(step: Step, row: Buffer, tensor: Buffer, token: Expr, h: Expr) -> None:
    """row <- one token of a tensor [tokens, heads, features] in float32."""
    each_feature(
        *(step, extent(tensor, 2)),
        lambda d: T.buffer_store(row, T.cast(tensor[token, h, d], "float32"), [d]),
    )


def load_for_both(step: Step, rows: Buffer, tensor: Buffer, token: Expr, h: Expr) -> None:
    """Both rows, one for each memory, <- one token of a tensor in float32."""
    with T.serial(2) as memory:
        each_feature(
            *(step, extent(tensor, 2)),
            lambda m: T.buffer_store(rows, T.cast(tensor[token, h, m], "float32"), [memory, m]),
        )


def store(step: Step, tensor: Buffer, rows: Buffer, token: Expr, h: Expr) -> None:
    """One token of a tensor <- the first row, in the tensor's type."""
    each_feature(
        *(step, extent(tensor, 2)),
        lambda d: T.buffer_store(tensor, T.cast(rows[0, d], tensor.dtype), [token, h, d]),
    )


def product(
    step: Step, of_rows: Buffer, memory: int, S: Buffer, n: Expr, h: Expr, w: Buffer, move: Move | None = None
) -> None:
    """of_rows[memory, m, :] <- each thread's part of <S[m, :], w>.

    With `move`, S is moved first and in the same sweep.
    """
    features, total = extent(w, 0), register()

    def row(i: Expr, m: Expr) -> None:
        def column(j: Expr, d: Expr) -> None:
            place = _own(step, S, n, h, features, i, m, j, d)
            if move is not None:
                T.buffer_store(S, move(S[tuple(place)], m, d), place)
            T.buffer_store(total, total[0] + S[tuple(place)] * w[d], [0])

        T.buffer_store(total, T.float32(0), [0])
        _each_own_column(step, features, column)
        T.buffer_store(of_rows, total[0], [memory, m, step.thread % step.across])

    _each_own_row(step, row)


def transposed_product(step: Step, of_columns: Buffer, S: Buffer, n: Expr, h: Expr, r: Buffer, move: Move) -> None:
    """of_columns[:, d] <- each group's part of <S[:, d], r>, with S moved first and in the same sweep."""
    features, total = extent(of_columns, 1), register()

    def column(j: Expr, d: Expr) -> None:
        def row(i: Expr, m: Expr) -> None:
            place = _own(step, S, n, h, features, i, m, j, d)
            T.buffer_store(S, move(S[tuple(place)], m, d), place)
            T.buffer_store(total, total[0] + S[tuple(place)] * r[0, m], [0])

        T.buffer_store(total, T.float32(0), [0])
        _each_own_row(step, row)
        T.buffer_store(of_columns, total[0], [step.thread // step.across, d])

    _each_own_column(step, features, column)


def sum_rows(step: Step, X: Buffer, memory: int, of_rows: Buffer) -> None:
    """X[memory, m] <- the sum of the parts that `product` has left for every slot m."""
    _add_up(step, X, memory, step.slots, step.across, lambda part, m: of_rows[memory, m, part])


def sum_columns(step: Step, Y: Buffer, of_columns: Buffer) -> None:
    """Y[0, d] <- the sum of the parts that `transposed_product` has left for every dimension d."""
    _add_up(step, Y, 0, extent(of_columns, 1), step.groups, lambda part, d: of_columns[part, d])


def _add_up(step: Step, X: Buffer, row: int, features: int, parts: int, part: Callable[[Expr, Expr], Expr]) -> None:
    total = register()

    def one(d: Expr) -> None:
        T.buffer_store(total, T.float32(0), [0])
        with T.serial(parts) as p:
            T.buffer_store(total, total[0] + part(p, d), [0])
        T.buffer_store(X, total[0], [row, d])

    each_feature(step, features, one)


def _each_own(step: Step, features: int, statement: Callable[[Expr, Expr, Expr], None]) -> None:
    """Emits statement(m, d, place) for every number that the thread has, with its place in the registers."""
    across = step.of_row(features)
    _each_own_row(step, lambda i, m: _each_own_column(step, features, lambda j, d: statement(m, d, i * across + j)))


def _each_own_row(step: Step, statement: Callable[[Expr, Expr], None]) -> None:
    """Emits statement(i, m) for every slot m of which the thread has a part."""
    with _loop(step, (step.slots + step.groups - 1) // step.groups) as i:
        m = i * step.groups + step.thread // step.across
        with T.If(m < step.slots), T.Then():
            statement(i, m)


def _each_own_column(step: Step, features: int, statement: Callable[[Expr, Expr], None]) -> None:
    """Emits statement(j, d) for every dimension d of which the thread has a part."""
    with _loop(step, step.of_row(features)) as j:
        d = j * step.across + step.thread % step.across
        with T.If(d < features), T.Then():
            statement(j, d)


def _loop(step: Step, count: int) -> Expr:
    """A loop, which is unrolled where it counts registers: those have no addresses."""
    return T.unroll(count) if step.resident else T.serial(count)


def _own(step: Step, S: Buffer, n: Expr, h: Expr, features: int, i: Expr, m: Expr, j: Expr, d: Expr) -> list[Expr]:
    """The indices of a state's number [m, d]: of the thread's registers, or of the tensor of states."""
    return [i * step.of_row(features) + j] if len(S.shape) == 1 else [n, h, m, d]
