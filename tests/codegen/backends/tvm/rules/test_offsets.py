"""TVM's kernels of any rule find elements from number 2^31 on: of tokens, kept states, states and slots of a pool.

Only the last rows of a tensor have memory of their own. Where the states of all sequences are copied, though none but
the last has a token, they share a window of memory.
"""

from __future__ import annotations

import math

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.pool.arguments import CAPACITY
from codegen.kernels.sequences import Sequences
from codegen.rule import Rule
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Problem, Spec
from tests.codegen.backends.tvm.rules.test_chunks import WIDTH, schedule
from tests.codegen.backends.tvm.rules.test_chunks_backward import LONG, SCHEDULE
from tests.codegen.backends.tvm.rules.test_recurrence import case, compiled
from tests.support.cases.recurrence import Run
from tests.support.far_calls import Tensors, axes_of, behind, tensors_of, that_differ
from tests.support.far_memory import far_in_place, untouched
from tests.support.linear_rules import RULES, inputs, spec_of

TOKENS, SIZE = 37, 16
TWO_PASSES = Rule(phi_eps=1e-2, decay="slot", momentum=True)


def walk(name: str) -> CompiledOperator:
    """Token by token, as `test_recurrence` compiles it."""
    return compiled(Run(case(name), "backward").spec())


def tiles(name: str) -> CompiledOperator:
    """The tokens of a tile at once, as `test_chunks_backward` compiles it."""
    return build(spec_of(RULES[name], inputs(RULES[name], LONG)[0], direction="backward"), SCHEDULE, cpu())


def of_size(rule: Rule, operator: str, chunk: int = 1, how: TvmSchedule | None = None) -> CompiledOperator:
    """A forward whose states have as many numbers each."""
    sizes = {"dim_k": SIZE, "dim_v": SIZE, "slots": SIZE}
    spec = Spec(rule, Problem(operator, chunk=chunk, **sizes))
    return build(spec, how or TvmSchedule.default(spec, cpu()), cpu())


OPERATORS = {
    "walk of two passes": (walk, "two_passes"),
    "walk with a probe": (walk, "probe"),
    "walk that erases": (walk, "erase"),
    "tiles with gates of channels": (tiles, "kda"),
    "tiles that erase": (tiles, "rwkv7"),
}


def run(made: CompiledOperator, tensors: Tensors, sequences: Sequences) -> None:
    made.forward(tensors, sequences)
    if made.spec.problem.direction != "forward":
        made.backward(tensors, sequences)


def check(
    made: CompiledOperator, tensors: Tensors, distant: Tensors, first: int = 0, kept: int = 0, others: int = 0
) -> None:
    """A call of one sequence, and one where it begins that late and others without a token are before it."""
    tokens = len(tensors["y"])
    chunks = -(-tokens // made.chunk_tokens)

    def sequences(first: int, kept: int, others: int) -> Sequences:
        offsets, chunk_offsets = (untouched(others + 2, dtype=torch.int32) for _ in range(2))
        offsets[-2], offsets[-1] = first, first + tokens
        chunk_offsets[-2], chunk_offsets[-1] = kept, kept + chunks
        return Sequences(offsets, chunk_offsets, kept + chunks, chunks)

    near = {name: x.clone() for name, x in tensors.items()}
    run(made, near, sequences(0, 0, 0))
    run(made, distant, sequences(first, kept, others))
    assert any(not torch.equal(x, tensors[name]) for name, x in near.items())
    assert not that_differ(distant, near)


@pytest.mark.parametrize("name", OPERATORS)
def test_tokens_and_kept_states(name):
    made, rule = OPERATORS[name]
    check_tokens(made(rule))


@pytest.mark.parametrize("name", ["walk that erases", "tiles with gates of channels"])
def test_states_and_their_gradients(name):
    made, rule = OPERATORS[name]
    check_states(made(rule), TOKENS)


def test_tiles_of_two_passes():
    made = of_size(RULES["gsa"], "memory_attention", how=schedule(RULES["gsa"]))
    check_tokens(made)
    check_states(made, TOKENS)


def test_tiles_of_stale_chunks():
    # The smallest state decides how many sequences there are: the longest window makes them fewest.
    made = of_size(
        *(Rule("identity", passes=1, window=SIZE), "memory_attention", SIZE),
        TvmSchedule("stale_chunks", WIDTH, WIDTH, 8, threads=2),
    )
    check_tokens(made)
    check_states(made, TOKENS)


@pytest.mark.parametrize("rule", [RULES["kda"], TWO_PASSES], ids=["one_pass", "two_passes"])
def test_states_of_a_step(rule):
    check_states(of_size(rule, "memory_step_chunked"), 1)


@pytest.mark.parametrize("position", [0, 3])
def test_pool(position):
    """A row that starts from what it is given, and one inside a chunk."""
    made = of_size(TWO_PASSES, "memory_pool", 4)
    tensors = tensors_of(made, TOKENS, position)
    tokens, slots = rows_before(tensors, axes_of(made), "tokens"), rows_before(tensors, axes_of(made), CAPACITY)
    check(made, tensors, behind(made, tensors, {"tokens": tokens, CAPACITY: slots}), tokens)


def check_tokens(made: CompiledOperator) -> None:
    tensors, axes = tensors_of(made, TOKENS), axes_of(made)
    tokens, chunks = rows_before(tensors, axes, "tokens"), rows_before(tensors, axes, "chunks")
    check(made, tensors, behind(made, tensors, {"tokens": tokens, "chunks": chunks}), tokens, chunks)


def check_states(made: CompiledOperator, tokens: int) -> None:
    tensors, axes = tensors_of(made, tokens), axes_of(made)
    others = rows_before(tensors, axes, "sequences")
    distant = {
        name: far_in_place(x, others) if axes[name][0] == "sequences" else x.clone() for name, x in tensors.items()
    }
    check(made, tensors, distant, others=others)


def rows_before(tensors: Tensors, axes: dict[str, tuple[str, ...]], axis: str) -> int:
    """Rows of that axis before those that are touched: as many as take every tensor with rows of vectors to 2^31."""
    sizes = [math.prod(x.shape[1:]) for name, x in tensors.items() if axes[name][0] == axis]
    return 2**31 // min((size for size in sizes if size > 1), default=2**31)
