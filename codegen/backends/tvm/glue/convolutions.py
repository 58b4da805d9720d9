"""Short causal depthwise convolutions: the last inputs of every channel lie in a ring, a row for each tap.

A place counts the inputs of a sequence, its tail first: token t of a sequence that begins at b has the place
t - b + taps - 1, and lies in row place % taps of a ring.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr, extent
from codegen.backends.tvm.emit.vectors import each_feature
from codegen.backends.tvm.glue import rows

Value = Callable[[Expr, Expr], Expr]
"""value(h, d): that of a channel, in float32."""


def each_channel(width: int, like: Buffer, statement: Callable[[Expr, Expr], None]) -> None:
    """Emits statement(h, d) for all channels of a buffer whose last two axes they are."""
    *_, heads, features = like.shape
    with T.serial(heads) as h:
        each_feature(width, int(features), lambda d: statement(h, d))


def fill(width: int, to: Buffer, value: Value, *places: Expr) -> None:
    """to[places] <- value of each channel."""
    each_channel(width, to, lambda h, d: rows.put(to, value(h, d), *places, h, d))


def of(tensor: Buffer, *places: Expr) -> Value:
    """The channels of a tensor behind these places."""
    return lambda h, d: rows.of(tensor, *places, h)(d)


def none(h: Expr, d: Expr) -> Expr:
    """Zeros."""
    return T.float32(0)


def turned(weights: Buffer, *taps: Buffer) -> None:
    """weights[i, j, h, d] <- tap j of the i-th convolution, in float32: channels side by side."""
    for i, each in enumerate(taps):
        for j in range(extent(each, 2)):
            fill(1, weights, partial(_tap, each, j), i, j)


def push(width: int, ring: Buffer, place: Expr, value: Value) -> None:
    """The row of a place <- value of each channel."""
    fill(width, ring, value, place % extent(ring, 0))


def begin(width: int, ring: Buffer, shared: Buffer, tails: Buffer, n: Expr, begins: Expr, first: Expr) -> None:
    """The ring <- the taps - 1 inputs before token `first` of sequence n, which begins at `begins`."""
    tail = extent(ring, 0) - 1
    with T.serial(tail) as j:
        place = first - begins + j
        of_place(tail, place, shared, tails, n, begins, lambda value: push(width, ring, place, value))


def end(width: int, after: Buffer, shared: Buffer, tails: Buffer, n: Expr, begins: Expr, ends: Expr) -> None:
    """after[n] <- the last inputs of sequence n, which are those of its tail where it is short."""
    tail = extent(after, 1)
    with T.serial(tail) as j:
        of_place(tail, ends - begins + j, shared, tails, n, begins, lambda value: fill(width, after, value, n, j))


def of_place(
    tail: int,
    place: Expr,
    shared: Buffer,
    tails: Buffer,
    n: Expr,
    begins: Expr,
    statement: Callable[[Value], None],
) -> None:
    """Emits statement(input at a place of sequence n): one of its tail, or of its tokens."""
    with T.If(place < tail):
        with T.Then():
            statement(of(tails, n, place))
        with T.Else():
            statement(of(shared, begins + place - tail))


def convolve(width: int, weights: Buffer, ring: Buffer, place: Expr, h: Expr, *to: Buffer) -> None:
    """to[i] <- the i-th convolution at a place, of the channels of one head."""
    taps = extent(ring, 0)

    def of_channel(d: Expr) -> None:
        inputs = [ring[(place + 1 + j) % taps, h, d] for j in range(taps)]
        for i, row in enumerate(to):
            T.buffer_store(row, rows.sum_of([x * weights[i, j, h, d] for j, x in enumerate(inputs)]), [d])

    each_feature(width, extent(ring, 2), of_channel)


def clear(width: int, buffer: Buffer, *places: Expr) -> None:
    """buffer[places, i, j] <- 0, for every tap of every convolution."""
    convolutions, taps = (extent(buffer, len(places) + axis) for axis in (0, 1))
    for i in range(convolutions):
        for j in range(taps):
            fill(width, buffer, none, *places, i, j)


def keep(width: int, pulls: Buffer, place: Expr, h: Expr, *cotangents: Buffer) -> None:
    """The cotangents of the convolutions of one head at a place, for the inputs before it."""
    for i, each in enumerate(cotangents):
        rows.store(width, pulls, rows.of(each), i, place % extent(pulls, 1), h)


def keep_none(width: int, pulls: Buffer, place: Expr) -> None:
    """Zeros: no token has that place."""
    for i in range(extent(pulls, 0)):
        fill(width, pulls, none, i, place % extent(pulls, 1))


@dataclass(frozen=True)
class Pulled:
    """The cotangent of one input of the convolutions.

    Attributes:
        weights, pulls: the taps, and the cotangents of the convolutions at the last places.
        place: of the input; tap j of each convolution has met it taps - 1 - j tokens later.
        after, n: the cotangents of the tails, and whose sequence it is.
        length: tokens of the sequence: inputs from that place on are in the tail after it.
    """

    weights: Buffer
    pulls: Buffer
    place: Expr
    after: Buffer
    n: Expr
    length: Expr

    def of_convolutions(self, h: Expr, d: Expr) -> Expr:
        """Of one channel, by the convolutions."""
        convolutions, taps = extent(self.pulls, 0), extent(self.pulls, 1)
        pairs = [(i, j) for i in range(convolutions) for j in range(taps)]
        rows_of = [(self.place + taps - 1 - j) % taps for j in range(taps)]
        return rows.sum_of([self.pulls[i, rows_of[j], h, d] * self.weights[i, j, h, d] for i, j in pairs])

    def of_both(self, h: Expr, d: Expr) -> Expr:
        """Of one channel, by the convolutions and the tail after the sequence."""
        return self.of_convolutions(h, d) + of(self.after, self.n, self.place - self.length)(h, d)


def pull(width: int, to: Buffer, pulled: Pulled, *places: Expr) -> None:
    """to[places] <- the cotangent of an input."""
    with T.If(pulled.place < pulled.length):
        with T.Then():
            fill(width, to, pulled.of_convolutions, *places)
        with T.Else():
            fill(width, to, pulled.of_both, *places)


def add_to_taps(width: int, sums: Buffer, part: Expr, ring: Buffer, place: Expr, h: Expr, *cotangents: Buffer) -> None:
    """sums[part, i, j, h] += cotangent of the i-th convolution at a place * the input that its tap j met."""
    taps = extent(ring, 0)

    def of_channel(d: Expr) -> None:
        for i, cotangent in enumerate(cotangents):
            for j in range(taps):
                more = cotangent[d] * ring[(place + 1 + j) % taps, h, d]
                T.buffer_store(sums, sums[part, i, j, h, d] + more, [part, i, j, h, d])

    each_feature(width, extent(ring, 2), of_channel)


def returned(sums: Buffer, *to: Buffer) -> None:
    """The cotangent of tap j of the i-th convolution <- the sum over all parts of sums[part, i, j]."""
    for i, each in enumerate(to):
        for j in range(extent(each, 2)):
            each_channel(1, sums, partial(_return, sums, each, i, j))


def _tap(taps: Buffer, j: int, h: Expr, d: Expr) -> Expr:
    return rows.of(taps, h, d)(j)


def _return(sums: Buffer, to: Buffer, i: int, j: int, h: Expr, d: Expr) -> None:
    rows.put(to, rows.sum_of([sums[part, i, j, h, d] for part in range(extent(sums, 0))]), h, d, j)
