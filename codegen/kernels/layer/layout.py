"""Where the weights of a block lie once they are packed for a decode step: panels of outputs, in the order of use.

A panel has the weights of `PANEL` outputs in words of 32 bits: word `w * PANEL + o` has those of its output o and of as
many inputs as fit, in the order of `ORDER`. So a product reads memory in one stream, with outputs in the vector lanes.
Outputs and inputs past the last one are zeros.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from codegen.layer import Layer
from codegen.spec import LOGITS_STEP, Spec

PANEL = 32
"""Outputs of a panel: four vectors of AVX2, two of AVX-512."""

ORDER = {"float32": (0,), "bfloat16": (0, 1), "int8": (0, 2, 1, 3)}
"""Of each type of weights the inputs of a word, from its lowest bits on.

The even bytes of int8 are two neighbouring inputs, and so are the odd ones: a vector of 16-bit numbers then meets two
neighbours of an input row.
"""


@dataclass(frozen=True)
class Matrix:
    """One product of a step.

    Attributes:
        name: of the product.
        parts: what it is made of, by name with its outputs, one after another; of `gate_up` a panel of each in turn.
        columns: inputs.
        order: the inputs of a word, see `ORDER`.
        first: where its panels begin among the packed weights.
        scales: where the scale of its first output is among the vectors; None where weights are not scaled.
    """

    name: str
    parts: dict[str, int]
    columns: int
    order: tuple[int, ...]
    first: int
    scales: int | None

    @property
    def outputs(self) -> int:
        """Of all parts."""
        return sum(self.parts.values())

    @property
    def panels(self) -> int:
        """Those that the outputs fill."""
        return math.ceil(self.outputs / PANEL)

    @property
    def words(self) -> int:
        """Those that the inputs fill."""
        return math.ceil(self.columns / len(self.order))

    @property
    def numbers(self) -> int:
        """Weights with their padding."""
        return self.panels * PANEL * self.words * len(self.order)

    def start(self, part: str) -> int:
        """The first output of a part; of `gate_up`, whose parts take turns, it has no meaning."""
        names = list(self.parts)
        return sum(self.parts[name] for name in names[: names.index(part)])


@dataclass(frozen=True)
class Vector:
    """Numbers that are no matrix: norms, taps, biases, scales; always float32."""

    first: int
    length: int


@dataclass(frozen=True)
class Layout:
    """The packed weights of one kernel.

    Attributes:
        matrices, vectors: by name, in the order in which they lie.
        numbers: packed weights in all.
        vector_numbers: float32 numbers in all.
    """

    matrices: dict[str, Matrix]
    vectors: dict[str, Vector]
    numbers: int
    vector_numbers: int


@functools.cache
def layout_of(spec: Spec) -> Layout:
    """The layout of the weights that a step of `spec`, whose problem has a layer, reads."""
    layer = spec.problem.layer
    assert layer is not None
    logits = spec.problem.operator == LOGITS_STEP
    products = _of_logits(layer) if logits else _of_block(spec, layer)
    lengths = {"eps": 1, "norm": layer.width} if logits else _vectors_of_block(spec, layer)
    matrices, first, scales = {}, 0, sum(lengths.values())
    for name, (parts, columns) in products.items():
        made = Matrix(name, parts, columns, ORDER[layer.weights], first, scales if layer.weights == "int8" else None)
        matrices[name] = made
        first += made.numbers
        if made.scales is not None:
            lengths[f"{name}_scales"] = made.panels * PANEL
            scales += made.panels * PANEL
    vectors, place = {}, 0
    for name, length in lengths.items():
        vectors[name] = Vector(place, length)
        place += length
    return Layout(matrices, vectors, first, place)


def padded(outputs: int) -> int:
    """Outputs of whole panels."""
    return math.ceil(outputs / PANEL) * PANEL


Products = dict[str, tuple[dict[str, int], int]]
"""Of each product its parts with their outputs, and its inputs."""


def _of_logits(layer: Layer) -> Products:
    return {"embedding": ({"embedding": layer.hidden}, layer.width)}


def _of_block(spec: Spec, layer: Layer) -> Products:
    problem = spec.problem
    keys, values = problem.heads * problem.dim_k, problem.heads * problem.dim_v
    projections = {"qk": keys, "v": values, "target": problem.heads * problem.slots, "gate": values}
    projections["decay"] = problem.heads
    if spec.rule.step_size == "token":
        projections["step_size"] = problem.heads
    hidden = padded(layer.hidden)
    return {
        "projections": (projections, layer.width),
        "out": ({"out": layer.width}, values),
        "gate_up": ({"gate": hidden, "up": hidden}, layer.width),
        "down": ({"down": layer.width}, layer.hidden),
    }


def _vectors_of_block(spec: Spec, layer: Layer) -> dict[str, int]:
    problem = spec.problem
    keys = problem.heads * problem.dim_k
    return {
        "eps": 1,
        "mixer_norm": layer.width,
        "taps_q": layer.taps * keys,
        "taps_k": layer.taps * keys,
        "decay_bias": problem.heads,
        "step_size": problem.heads,
        "out_norm": problem.dim_v,
        "mlp_norm": layer.width,
    }
