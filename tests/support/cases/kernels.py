"""Comparisons of compiled kernels with the oracle in float64, the same for every backend."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch

from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.spec import Problem, Spec
from tests.support.inputs import Inputs, make_inputs
from tests.support.operators import run_attention, run_readout, run_step, run_update
from tests.support.relative_error import TOLERANCE, assert_close
from trellis_ops import reference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FLOAT32 = TOLERANCE[torch.float32]
RULE = Rule(phi_eps=1e-2)


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and rule of one comparison; no powers of two, and lengths that no chunk divides, unless a test says so."""

    operator: str = "trellis_attention"
    chunk: int = 20
    lengths: tuple[int, ...] = (37, 37)
    packed: bool = False
    heads: int = 2
    dim_k: int = 20
    dim_v: int = 12
    slots: int = 18
    dtype: str = "float32"
    rule: Rule = RULE

    @property
    def spec(self) -> Spec:
        sizes = {"dim_k": self.dim_k, "dim_v": self.dim_v, "slots": self.slots}
        return Spec(self.rule, Problem(self.operator, chunk=self.chunk, dtype=self.dtype, **sizes))

    def inputs(self, **options: object) -> Inputs:
        batch, tokens = (1, sum(self.lengths)) if self.packed else (len(self.lengths), self.lengths[0])
        sizes = (batch, tokens, self.heads, self.dim_k, self.dim_v, self.slots)
        full = make_inputs(*sizes, sequences=len(self.lengths), step_size=self.rule.step_size, **options)
        return dataclasses.replace(full.to(DTYPES[self.dtype]), log_decay=full.log_decay, step_size=full.step_size)


Build = Callable[[Spec], CompiledOperator]


def check_attention(build: Build, case: Case, inputs: Inputs | None = None, of_states: float = FLOAT32) -> None:
    """Compare y within the tolerance of its type, and the states within `of_states`, which rounded products exceed."""
    inputs = case.inputs() if inputs is None else inputs
    offsets = torch.tensor(list(itertools.accumulate(case.lengths, initial=0))) if case.packed else None
    expected_y, expected_states = reference.attention(
        *inputs.args,
        rule=case.rule,
        chunk_size=case.chunk,
        initial_state=inputs.initial_state,
        cu_seqlens=offsets,
    )
    y, states = run_attention(build(case.spec), inputs, case.lengths)
    assert_close(y, expected_y, TOLERANCE[DTYPES[case.dtype]], "y")
    for name, state, expected in zip(("S_k", "S_v"), states, expected_states, strict=True):
        assert_close(state, expected, of_states, name)


def check_update(build: Build, case: Case, of_states: float = FLOAT32) -> None:
    inputs = case.inputs()
    memory = (inputs.k, inputs.target, inputs.log_decay, inputs.step_size)
    expected = reference.update(*memory, rule=case.rule, chunk_size=case.chunk, initial_state=inputs.initial_state[0])
    for name, one, other in zip(
        ("chunk_states", "codes", "S"), run_update(build(case.spec), inputs), expected, strict=True
    ):
        assert_close(one, other, of_states, name)


def check_readout(build: Build, case: Case) -> None:
    inputs = case.inputs()
    gates = (inputs.log_decay, inputs.step_size)
    states, codes, _ = reference.update(inputs.k, inputs.target, *gates, rule=case.rule, chunk_size=case.chunk)
    states, codes = states.float(), codes.float()
    transpose = case.operator == "memory_readout_transposed"
    read = inputs.target if transpose else inputs.q
    expected = reference.readout(read, inputs.k, states, codes, *gates, chunk_size=case.chunk, transpose=transpose)
    actual = run_readout(build(case.spec), read, inputs, states, codes)
    assert_close(actual, expected, TOLERANCE[DTYPES[case.dtype]], "y")


def check_step(build: Build, case: Case) -> None:
    inputs = case.inputs()
    chunked = case.operator == "trellis_step_chunked"
    gradient_state = tuple(2.0 * s.flip(-1).contiguous() for s in inputs.initial_state) if chunked else None
    expected_y, expected_states = reference.step(
        *inputs.token(0), inputs.initial_state, rule=case.rule, gradient_state=gradient_state
    )
    y, states = run_step(build(case.spec), inputs, gradient_state)
    assert_close(y, expected_y, TOLERANCE[y.dtype], "y")
    for name, state, expected in zip(("S_k", "S_v"), states, expected_states, strict=True):
        assert_close(state, expected, FLOAT32, name)
