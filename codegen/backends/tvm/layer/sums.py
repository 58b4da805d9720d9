"""Sums of a panel of outputs over its inputs, one vector of weights after another, for several rows at a time.

float32 and bfloat16 weights are multiplied as float32. Those of int8 are multiplied by the digits of
`codegen.backends.tvm.layer.fixed_point` where an instruction multiplies pairs of 16-bit numbers, elsewhere as float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.script import tirx as T

from codegen.backends.tvm.emit.expressions import Buffer, Expr
from codegen.backends.tvm.emit.vectors import registers, zeros
from codegen.backends.tvm.layer import fixed_point, words
from codegen.backends.tvm.layer.fixed_point import Digits
from codegen.kernels.layer.layout import PANEL


@dataclass(frozen=True)
class Matrix:
    """A packed matrix of a kernel.

    Attributes:
        weights, vectors: the buffers that it and its scales lie in.
        first: where its first panel begins.
        columns: inputs.
        order: the inputs of a word, as `codegen.kernels.layer.layout.ORDER` has them.
        scales: where its scales begin; None where it has none.
    """

    weights: Buffer
    vectors: Buffer
    first: int
    columns: int
    order: tuple[int, ...]
    scales: int | None

    @property
    def words(self) -> int:
        """Those that the inputs fill."""
        return -(-self.columns // len(self.order))

    @property
    def dtype(self) -> str:
        """The type of the weights."""
        return str(self.weights.dtype)


@dataclass(frozen=True)
class Whole:
    """Inputs of products of whole numbers.

    Attributes:
        digits: of the inputs.
        width: lanes of a vector.
        dot: LLVM's name of the instruction that multiplies pairs of 16-bit numbers and adds the two products.
    """

    digits: Digits
    width: int
    dot: str

    @property
    def rows(self) -> Expr:
        """How many rows there are."""
        return self.digits.rows


Inputs = Buffer | Whole
"""Rows that are multiplied by a matrix."""


def inputs(matrix: Matrix, x: Buffer, width: int, dot: str | None) -> Inputs:
    """What a product with `matrix` takes of the rows of x: their digits where there are whole products, else x.

    Args:
        width: lanes of a vector.
        dot: LLVM's name of the instruction that multiplies pairs of 16-bit numbers; None where there is none.
    """
    if dot is None or matrix.dtype != "int8" or fixed_point.digit_bits(matrix.columns) < fixed_point.FEWEST_BITS:
        return x
    padded = matrix.words * len(matrix.order)
    return Whole(fixed_point.digits_of(width, x, matrix.columns, padded), width, dot)


def product(matrix: Matrix, panel: Expr, x: Inputs, row: Expr, rows: int) -> list[Buffer]:
    """The sums over the inputs of `rows` rows of x from `row` on with a panel, before they are scaled."""
    start = matrix.first + panel * (matrix.words * len(matrix.order) * PANEL)
    if isinstance(x, Whole):
        return _whole_product(matrix, start, x, row, rows)
    sums = zeros(PANEL, rows)
    if matrix.dtype != "float32":
        _add_words(matrix, start, x, row, sums)
        return sums
    with T.serial(matrix.columns) as i:
        words.prefetch(matrix.weights, start + i * PANEL, PANEL)
        with T.vectorized(PANEL) as lane:
            for r in range(rows):
                weight = matrix.weights[start + i * PANEL + lane]
                T.buffer_store(sums[r], sums[r][lane] + x[row + r, i] * weight, [lane])
    return sums


def _add_words(matrix: Matrix, start: Expr, x: Buffer, row: Expr, sums: list[Buffer]) -> None:
    """`product` of narrow weights, which become float32 one input after another."""
    together = len(matrix.order)

    def add(w: Expr, count: int) -> None:
        read = words.load(matrix.weights, start + w * (PANEL * together), together, PANEL)
        for i in range(count):
            weight = words.weight(read, matrix.dtype, matrix.order.index(i))
            with T.vectorized(PANEL) as lane:
                for r, total in enumerate(sums):
                    T.buffer_store(total, total[lane] + x[row + r, w * together + i] * weight(lane), [lane])

    with T.serial(matrix.columns // together) as w:
        add(w, together)
    if matrix.columns % together:
        add(matrix.columns // together, matrix.columns % together)


def _whole_product(matrix: Matrix, start: Expr, x: Whole, row: Expr, rows: int) -> list[Buffer]:
    """`product` of digits: two sums of whole numbers for each vector of outputs, put together at the end."""
    width, digits, vectors = x.width, x.digits, PANEL // x.width
    lanes = T.ramp(0, 1, width)
    high, low = ([_no_sums(width, vectors) for _ in range(rows)] for _ in range(2))
    together = len(matrix.order)
    with T.serial(matrix.words) as w:
        for v in range(vectors):
            read = words.load(matrix.weights, start + (w * PANEL + v * width) * together, together, width)
            narrow = T.reinterpret(f"int16x{2 * width}", read[lanes])
            byte = T.broadcast(T.int16(8), 2 * width)
            even, odd = (narrow << byte) >> byte, narrow >> byte
            for r in range(rows):
                for sums, digit in ((high[r][v], digits.high), (low[r][v], digits.low)):
                    total = sums[lanes]
                    for half, weights in enumerate((even, odd)):
                        pair = digits.pair(digit, row + r, w * together + 2 * half, width)
                        total = total + T.call_llvm_pure_intrin(f"int32x{width}", x.dot, weights, pair)
                    T.buffer_store(sums, total, [lanes])
    made = registers(PANEL, rows)
    for r in range(rows):
        for v in range(vectors):
            with T.vectorized(width) as lane:
                above = T.cast(high[r][v][lane], "float32") * T.float32(2 ** (digits.bits + 1))
                total = (above + T.cast(low[r][v][lane], "float32")) * digits.step[row + r]
                T.buffer_store(made[r], total, [v * width + lane])
    return made


def _no_sums(width: int, count: int) -> list[Buffer]:
    made = [T.alloc_buffer((width,), "int32") for _ in range(count)]
    for sums in made:
        with T.vectorized(width) as lane:
            T.buffer_store(sums, T.int32(0), [lane])
    return made


def rows_of(x: Inputs) -> Expr:
    """How many rows there are."""
    return x.rows if isinstance(x, Whole) else x.shape[0]


def scaled(matrix: Matrix, panel: Expr, total: Buffer, lane: Expr) -> Expr:
    """A lane of a panel's sums, times the scale of its output."""
    if matrix.scales is None:
        return total[lane]
    return total[lane] * matrix.vectors[matrix.scales + panel * PANEL + lane]
