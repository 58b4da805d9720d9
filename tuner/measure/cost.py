"""What a spec costs at least: floating-point operations and bytes, counted as EQUATIONS of the paper have them.

Source: TRELLIS, arXiv 2512.23852, section 3; per token, head and memory of width D the update takes 4 M D operations
(z, and the outer products) and the readout 2 M D + 2 C (D + M). A product of two factors has a gradient of two
products, so a backward, which includes its forward, takes three times that; first order, where z is a constant, leaves
out those of z. Of any other rule `tuner.measure.rule_cost` counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from codegen.kernels.arguments import IN_PLACE, INPUT, Argument
from codegen.kernels.between import arguments as between
from codegen.kernels.buffers import length
from codegen.kernels.glue import arguments as glue
from codegen.kernels.layer.arguments import BYTES_OF
from codegen.kernels.layer.layout import layout_of
from codegen.kernels.signatures import MOVES_STATES
from codegen.limits.extent import Extent
from codegen.spec import BLOCK_STEP, FAMILY_OPERATORS, NORM_STEP, SWIGLU_STEP, Problem, Spec
from tuner.measure import rule_cost
from tuner.measure.rule_cost import state_bytes

_STATE_BYTES = 4
_GATE_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """Least work of one call.

    Attributes:
        flops: floating-point operations, a multiply-add counted as two.
        bytes: read and written if every value moves once.
    """

    flops: int
    bytes: int


def cost_of(spec: Spec) -> Cost:
    """The least work of one call of `spec`."""
    problem = spec.problem
    if problem.operator in FAMILY_OPERATORS:
        return Cost(rule_cost.flops_of(spec), rule_cost.bytes_of(spec))
    if problem.operator in between.KERNELS:
        return _between_products(spec)
    if problem.layer is not None:
        return _of_layer(spec)
    if glue.is_of_glue(spec):
        return _of_glue(spec)
    rows = problem.batch * problem.tokens * problem.heads
    per_row = _gate_bytes(spec) + _value_bytes(problem)
    flops, moved = rows * _flops_per_row(problem), rows * per_row + _state_bytes(spec)
    if problem.direction == "forward":
        return Cost(flops, moved)
    constant = rows * 4 * problem.slots * (problem.dim_k + problem.dim_v)
    # Inputs are read by both kernels; y, its cotangent and the gradients of the inputs are as large together.
    return Cost(3 * flops - (constant if problem.direction == "backward_first_order" else 0), 3 * moved)


def _of_layer(spec: Spec) -> Cost:
    """Weights are read once and meet every row; of a block also the memories of each."""
    problem, layout = spec.problem, layout_of(spec)
    assert problem.layer is not None
    flops = 2 * problem.batch * layout.numbers
    moved = layout.numbers * BYTES_OF[problem.layer.weights] + layout.vector_numbers * _STATE_BYTES
    if problem.operator == BLOCK_STEP:
        dims = (problem.dim_k, problem.dim_v)
        one_row = sum(6 * problem.slots * dim for dim in dims)
        flops += problem.batch * problem.heads * one_row
        moved += state_bytes(spec) * (3 if problem.chunk > 1 else 2)
    return Cost(flops, moved)


def _of_glue(spec: Spec) -> Cost:
    """Every argument moves once, for one operation of each number at least; convolutions have as many as their taps."""
    problem, arguments = spec.problem, glue.operator_arguments(spec)
    flops = sum(_argument_numbers(each, spec) for each in arguments)
    moved = sum(_argument_bytes(each, spec) for each in arguments)
    if problem.inputs is None:
        return Cost(flops, moved)
    forward = 4 * problem.batch * problem.tokens * problem.heads * problem.dim_k * problem.inputs.taps
    return Cost(flops + forward * (3 if problem.operator.endswith(glue.BACKWARD) else 1), moved)


def _between_products(spec: Spec) -> Cost:
    """Every argument moves once, a state twice; of the mixer's operations memories and the gates' maps count."""
    problem, arguments = spec.problem, between.kernel_arguments(spec)
    moved = sum(_argument_bytes(each, spec) * (2 if each.access == IN_PLACE else 1) for each in arguments)
    assert problem.layer is not None
    if problem.operator == NORM_STEP:
        return Cost(problem.batch * 4 * problem.layer.width, moved)
    if problem.operator == SWIGLU_STEP:
        return Cost(problem.batch * 2 * problem.layer.hidden, moved)
    gates = between.length("gates", spec)
    assert gates is not None
    one_row = problem.heads * sum(6 * problem.slots * dim for dim in (problem.dim_k, problem.dim_v))
    return Cost(problem.batch * (one_row + 2 * gates * problem.layer.width), moved)


def _argument_bytes(argument: Argument, spec: Spec) -> int:
    return _argument_numbers(argument, spec) * BYTES_OF[spec.problem.dtype if argument.type == INPUT else argument.type]


def _argument_numbers(argument: Argument, spec: Spec) -> int:
    problem = spec.problem
    extent = Extent(problem.batch * problem.tokens, problem.heads, problem.batch, 0, 0)
    return math.prod(length(axis, spec, None, extent) for axis in argument.axes)


def _flops_per_row(problem: Problem) -> int:
    dims = (problem.dim_k, problem.dim_v)
    if problem.operator == "memory_update":
        return _update_flops(problem, problem.dim_k)
    if problem.operator.startswith("memory_readout"):
        return _readout_flops(problem, problem.dim_k)
    return sum(_update_flops(problem, dim) + _readout_flops(problem, dim) for dim in dims)


def _update_flops(problem: Problem, dim: int) -> int:
    return 4 * problem.slots * dim


def _readout_flops(problem: Problem, dim: int) -> int:
    # The exact recurrence reads the moved state, so it has no products within a chunk.
    stepwise = problem.chunk == 1 or problem.operator in MOVES_STATES
    within = 0 if stepwise else 2 * problem.chunk * (dim + problem.slots)
    return 2 * problem.slots * dim + within


def _value_bytes(problem: Problem) -> int:
    item, slots = BYTES_OF[problem.dtype], problem.slots
    codes = slots * _STATE_BYTES
    if problem.operator == "memory_update":
        return (problem.dim_k + slots) * item + codes
    if problem.operator.startswith("memory_readout"):
        return (2 * problem.dim_k + slots) * item + codes
    return (2 * problem.dim_k + 2 * problem.dim_v + slots) * item


def _gate_bytes(spec: Spec) -> int:
    return _GATE_BYTES * (2 if spec.rule.step_size == "token" else 1)


def _state_bytes(spec: Spec) -> int:
    problem = spec.problem
    sequences = problem.batch * problem.heads
    one_memory = sequences * problem.slots * problem.dim_k * _STATE_BYTES
    chunks = -(-problem.tokens // problem.chunk)
    if problem.operator == "memory_update":
        return one_memory * (2 + chunks)
    if problem.operator.startswith("memory_readout"):
        return one_memory * chunks
    gradient_states = 1 if problem.operator == "trellis_step_chunked" else 0
    return state_bytes(spec) * (2 + gradient_states)
