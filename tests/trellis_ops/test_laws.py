"""Laws that every implementation obeys, whatever the sizes, the maps and the values.

Rules and sizes that a kernel is compiled for come from a short list, so that compiled implementations meet few of them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from codegen.rule import Rule
from tests.support.inputs import Inputs, make_inputs
from tests.support.relative_error import assert_close
from tests.trellis_ops.implementations import IMPLEMENTATIONS, Implementation

KERNELS = [
    ("identity", "ln_silu", "identity", "head", (4, 4, 4)),
    ("silu", "softmax", "identity", "token", (5, 3, 7)),
    ("ln_silu", "ln_silu", "identity", "head", (16, 8, 12)),
    ("l2_silu", "identity", "silu", "token", (8, 8, 3)),
    ("softmax", "l2_silu", "silu", "head", (5, 3, 1)),
    ("ln_silu", "silu", "identity", "token", (8, 8, 1)),
]
"""phi, link, out, step size, and (D_k, D_v, M)."""

CHUNKS = [1, 4, 16]
FORGET_EVERYTHING = -1e4

every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.name)
few_examples = settings(deadline=None, max_examples=8, derandomize=True)


@dataclass(frozen=True)
class Case:
    """One drawn call; `inputs` makes its tensors."""

    phi: str
    link: str
    out: str
    chunk_size: int
    widths: tuple[int, int, int]
    batch: int
    tokens: int
    heads: int
    step_size: str
    seed: int

    @property
    def rule(self) -> Rule:
        return Rule(self.phi, self.link, self.out, phi_eps=1e-3, step_size=self.step_size)

    def inputs(self, dtype: torch.dtype, **options: object) -> Inputs:
        sizes = {"batch": self.batch, "tokens": self.tokens, "heads": self.heads}
        return make_inputs(
            **{**sizes, **options}, **widths(self.widths), seed=self.seed, dtype=dtype, step_size=self.step_size
        )


def widths(sizes: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("dim_k", "dim_v", "slots"), sizes, strict=True))


def cases(
    *, phi: st.SearchStrategy[str] | None = None, chunks: list[int] = CHUNKS, least_tokens: int = 1, tokens: int = 36
) -> st.SearchStrategy[Case]:
    @st.composite
    def draw_case(draw: st.DrawFn) -> Case:
        usual_phi, link, out, step_size, sizes = draw(st.sampled_from(KERNELS))
        return Case(
            phi=usual_phi if phi is None else draw(phi),
            link=link,
            out=out,
            chunk_size=draw(st.sampled_from(chunks)),
            widths=sizes,
            batch=draw(st.integers(1, 2)),
            tokens=draw(st.integers(least_tokens, tokens)),
            heads=draw(st.integers(1, 3)),
            step_size=step_size,
            seed=draw(st.integers(0, 2**16)),
        )

    return draw_case()


Result = tuple[Tensor, tuple[Tensor, Tensor]]


def assert_same(actual: Result, expected: Result, tolerance: float) -> None:
    assert_close(actual[0], expected[0], tolerance, "y")
    assert_close(actual[1][0], expected[1][0], tolerance, "S_k")
    assert_close(actual[1][1], expected[1][1], tolerance, "S_v")


def phi_pullback(rule: Rule, z: Tensor, target: Tensor) -> Tensor:
    """u for every row of z, from a Jacobian written here: no implementation's own product is used."""
    maps = {
        "identity": lambda x: x,
        "silu": torch.nn.functional.silu,
        "softmax": lambda x: torch.softmax(x, 0),
        "ln_silu": lambda x: torch.nn.functional.layer_norm(torch.nn.functional.silu(x), x.shape, eps=rule.phi_eps),
        "l2_silu": lambda x: torch.nn.functional.normalize(torch.nn.functional.silu(x), dim=0, eps=1e-6),
    }
    phi = maps[rule.phi]
    slots = z.shape[-1]
    rows = [
        torch.autograd.functional.jacobian(phi, z_i).T @ (phi(z_i) - target_i)
        for z_i, target_i in zip(z.reshape(-1, slots), target.reshape(-1, slots), strict=True)
    ]
    return torch.stack(rows).view(z.shape)


def written(state: Tensor, w: Tensor, x: Inputs, t: int, rule: Rule, at: Tensor) -> Tensor:
    """S_t in float64 from S_{t-1} = `state`, the gradient taken at `at`."""
    _, _, _, target, log_decay, step_size = (a.double() for a in x.token(t))
    w = w[:, t].double()
    u = phi_pullback(rule, (at @ w.unsqueeze(-1)).squeeze(-1), target)
    step = step_size.expand(log_decay.shape)[..., None, None] * u.unsqueeze(-1) * w.unsqueeze(-2)
    return log_decay.exp()[..., None, None] * state - step


@every_implementation
@few_examples
@given(case=cases(chunks=[1], tokens=12))
def test_law_1_a_chunk_of_one_is_the_exact_recurrence(implementation: Implementation, case: Case) -> None:
    x = case.inputs(implementation.dtype)
    _, states = implementation.run(x, case.rule, 1)
    for final, state, w in zip(states, x.initial_state, (x.k, x.v), strict=True):
        state = state.double()
        for t in range(case.tokens):
            state = written(state, w, x, t, case.rule, at=state)
        assert_close(final, state, implementation.tolerance)


@every_implementation
@few_examples
@given(case=cases(chunks=[16], tokens=16))
def test_law_1_from_a_zero_state_z_is_zero_in_the_first_chunk(implementation: Implementation, case: Case) -> None:
    x = case.inputs(implementation.dtype, state="zero")
    _, states = implementation.run(x, case.rule, 16)
    for final, start, w in zip(states, x.initial_state, (x.k, x.v), strict=True):
        state = nothing = start.double()
        for t in range(case.tokens):
            state = written(state, w, x, t, case.rule, at=nothing)
        assert_close(final, state, implementation.tolerance)


@every_implementation
@few_examples
@given(case=cases(phi=st.just("identity"), chunks=[1]))
def test_law_2_identity_is_the_gated_delta_rule(implementation: Implementation, case: Case) -> None:
    x = case.inputs(implementation.dtype)
    _, states = implementation.run(x, case.rule, 1)
    for final, state, w in zip(states, x.initial_state, (x.k, x.v), strict=True):
        state = state.double()
        for t in range(case.tokens):
            _, _, _, target, log_decay, step_size = (a.double() for a in x.token(t))
            column = w[:, t].double().unsqueeze(-1)
            residual = state @ column - target.unsqueeze(-1)
            beta, step_size = log_decay.exp()[..., None, None], step_size.expand(log_decay.shape)[..., None, None]
            state = beta * state - step_size * (residual @ column.mT)
        assert_close(final, state, implementation.tolerance)


@every_implementation
@few_examples
@given(case=cases(least_tokens=2), data=st.data())
def test_law_3_pieces_of_whole_chunks_carry_the_state(
    implementation: Implementation, case: Case, data: st.DataObject
) -> None:
    x = case.inputs(implementation.dtype)
    cut = case.chunk_size * data.draw(
        st.integers(0, (case.tokens - 1) // case.chunk_size), label="chunks before the cut"
    )
    whole = implementation.run(x, case.rule, case.chunk_size)
    outputs, states = [], x.initial_state
    for start, end in ((0, cut), (cut, case.tokens)):
        if end > start:
            y, states = implementation.run(x.tokens(start, end, states), case.rule, case.chunk_size)
            outputs.append(y)
    assert_same((torch.cat(outputs, dim=1), states), whole, implementation.tolerance)


@every_implementation
@few_examples
@given(case=cases(least_tokens=2), data=st.data())
def test_law_4_no_output_depends_on_a_later_token(
    implementation: Implementation, case: Case, data: st.DataObject
) -> None:
    t = data.draw(st.integers(1, case.tokens - 1), label="changed token")
    x = case.inputs(implementation.dtype)
    changed = x.map(torch.clone)
    for tensor in changed.args:
        if tensor.dim() > 1:
            tensor[:, t] = tensor[:, t] * 2 - 0.5
    y, _ = implementation.run(x, case.rule, case.chunk_size)
    other, _ = implementation.run(changed, case.rule, case.chunk_size)
    assert_close(other[:, :t], y[:, :t], implementation.tolerance)
    assert case.widths[2] == 1 or not torch.equal(other[:, t], y[:, t])


@every_implementation
@few_examples
@given(case=cases(), lengths=st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(any))
def test_law_5_packed_sequences_are_run_one_by_one(
    implementation: Implementation, case: Case, lengths: list[int]
) -> None:
    x = case.inputs(implementation.dtype, batch=1, tokens=sum(lengths), sequences=len(lengths))
    offsets = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    y, states = implementation.run(x, case.rule, case.chunk_size, cu_seqlens=torch.tensor(offsets))
    assert y.shape == x.v.shape
    for n, (start, end) in enumerate(itertools.pairwise(offsets)):
        first = tuple(s[n : n + 1] for s in x.initial_state)
        last = tuple(s[n : n + 1] for s in states)
        if end == start:
            assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))
            continue
        alone = implementation.run(x.tokens(start, end, first), case.rule, case.chunk_size)
        assert_same((y[:, start:end], last), alone, implementation.tolerance)


@every_implementation
@few_examples
@given(case=cases())
def test_law_6_with_beta_1_and_step_size_0_the_state_never_moves(implementation: Implementation, case: Case) -> None:
    x = case.inputs(implementation.dtype, log_decay=0.0)
    x.step_size.zero_()
    _, states = implementation.run(x, case.rule, case.chunk_size)
    assert torch.equal(states[0], x.initial_state[0])
    assert torch.equal(states[1], x.initial_state[1])


@every_implementation
@few_examples
@given(case=cases(least_tokens=2))
def test_law_6_with_beta_0_only_the_last_write_is_left(implementation: Implementation, case: Case) -> None:
    # l2_silu of a single slot is a sign, whose u is zero but for rounding: nothing would be left to compare. Of a few
    # slots, its writes are so large that z is a small difference of large products, which float32 keeps few digits of.
    assume(case.phi != "l2_silu" or (case.widths[2] > 1 and implementation.dtype == torch.float64))
    x = case.inputs(implementation.dtype, log_decay=FORGET_EVERYTHING)
    _, states = implementation.run(x, case.rule, case.chunk_size)
    last = case.tokens - 1
    before = last - last % case.chunk_size
    starts = x.initial_state
    if before:
        starts = implementation.run(x.tokens(0, before), case.rule, case.chunk_size)[1]
    for final, start, w in zip(states, starts, (x.k, x.v), strict=True):
        nothing = torch.zeros_like(start, dtype=torch.float64)
        assert_close(final, written(nothing, w, x, last, case.rule, at=start.double()), implementation.tolerance)


@every_implementation
@few_examples
@given(case=cases())
def test_law_7_slots_have_no_order(implementation: Implementation, case: Case) -> None:
    x = case.inputs(implementation.dtype)
    order = torch.randperm(case.widths[2], generator=torch.Generator().manual_seed(case.seed))
    s_k, s_v = x.initial_state
    moved = Inputs(*x.args[:3], x.target[..., order], *x.args[4:], (s_k[:, :, order], s_v[:, :, order]))
    y, states = implementation.run(x, case.rule, case.chunk_size)
    expected = (y, (states[0][:, :, order], states[1][:, :, order]))
    assert_same(implementation.run(moved, case.rule, case.chunk_size), expected, implementation.tolerance)


@every_implementation
@pytest.mark.parametrize("kept", [True, False], ids=["chunk-start-states-kept", "dropped"])
@few_examples
@given(case=cases(tokens=20))
def test_law_8_decoding_is_the_forward(implementation: Implementation, case: Case, kept: bool) -> None:
    x = case.inputs(implementation.dtype)
    forward = implementation.run(x, case.rule, case.chunk_size if kept else 1)
    outputs, state = [], x.initial_state
    for t in range(case.tokens):
        if t % case.chunk_size == 0:
            start = state
        gradient_state = start if kept else None
        y, state = implementation.step(*x.token(t), state=state, rule=case.rule, gradient_state=gradient_state)
        outputs.append(y)
    assert_same((torch.stack(outputs, dim=1), state), forward, implementation.tolerance)
