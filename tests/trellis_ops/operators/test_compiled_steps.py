"""Decode steps under torch.compile, over several chunks: what uncompiled ones give, and the same states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from codegen.errors import OverlapError
from tests.support.inputs import make_inputs
from tests.support.relative_error import TOLERANCE, assert_close
from tests.trellis_ops.lm.small_models import SMALL, make_model, some_tokens
from trellis_ops import trellis_step
from trellis_ops.lm.model import TrellisLM

CHUNK = 3
LEARNED = {"learned_state": True, "step_size": "token"}
COPIES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda g, s: g.copy_(s),
    lambda g, s: g[:].copy_(s[:]),
    lambda g, s: s.clone(),
    lambda g, s: s * 1.0,
)
"""Ways to keep the states at the start of a chunk that Inductor takes for the states themselves."""


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_by_inductor(function: Callable[..., Any]) -> Callable[..., Any]:
    # It rewrites the graph as ever, but leaves what is in it to torch's own kernels, which saves most of its time.
    return torch.compile(function, fullgraph=True, options={"fallback_by_default": True})


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, torch.float32),
        (LEARNED, torch.float32),
        (LEARNED, torch.bfloat16),
        ({"decode": "exact"} | LEARNED, torch.bfloat16),
    ],
    ids=["chunked", "learned", "bfloat16", "exact"],
)
def test_a_compiled_step_of_a_model_decodes_as_the_model_does(
    eager: None, changes: dict[str, Any], dtype: torch.dtype
) -> None:
    model = make_model(layers=1, chunk_size=CHUNK, **changes).to(dtype)
    check_steps(model, TOLERANCE[dtype])


def test_a_compiled_step_of_a_rule_with_chunks_decodes_as_the_model_does(eager: None) -> None:
    torch.manual_seed(0)
    check_steps(TrellisLM(replace(SMALL, layers=1, chunk_size=CHUNK, rule="ttt_linear")), TOLERANCE[torch.float32])


def check_steps(model: TrellisLM, tolerance: float) -> None:
    tokens = some_tokens(length=3 * CHUNK + 2)
    step = compiled_by_inductor(model.step)
    compiled, uncompiled = model.first_state(len(tokens)), model.first_state(len(tokens))
    for token in tokens.unbind(1):
        assert_close(step(token, compiled), model.step(token, uncompiled), tolerance)
    for name, tensor in uncompiled.layers[0].tensors().items():
        assert_close(compiled.layers[0].tensors()[name], tensor, tolerance, name)


def test_states_copied_in_a_compiled_graph_stay_what_they_were_when_copied() -> None:
    inputs = make_inputs(2, 2, 3, 8, 8, 5)

    def two_tokens(*states: Tensor) -> list[Tensor]:
        results = []
        for place, copy in enumerate(COPIES):
            S_k, S_v, G_k, G_v = states[4 * place : 4 * place + 4]
            # A state whose size is looked at first is the first input of the graph, and the first to be written back.
            assert S_k.shape[0] == 2 and S_v.shape[0] == 2
            options = {"phi_eps": 1e-2, "gradient_state": (copy(G_k, S_k), copy(G_v, S_v))}
            results += [trellis_step(*inputs.token(t), (S_k, S_v), **options) for t in range(2)]
        return results

    def run(function: Callable[..., list[Tensor]]) -> list[Tensor]:
        first = inputs.initial_state or ()
        states = [x for _ in COPIES for x in (*(s.clone() for s in first), *(torch.full_like(s, 7.0) for s in first))]
        with torch.no_grad():
            return [*function(*states), *states]

    for compiled, expected in zip(run(compiled_by_inductor(two_tokens)), run(two_tokens), strict=True):
        assert_close(compiled, expected, 1e-5)


def test_states_that_share_memory_are_refused_in_a_compiled_graph_too() -> None:
    inputs = make_inputs(2, 1, 3, 8, 8, 5)
    compiled = compiled_by_inductor(lambda S_k, S_v: trellis_step(*inputs.token(0), (S_k, S_v)))
    state, long = torch.zeros(2, 3, 5, 8), torch.zeros(3, 3, 5, 8)
    for pair in ((state, state), (long[:2], long[1:])):
        with pytest.raises(OverlapError, match="state's S_v shares memory with state's S_k"):
            compiled(*pair)
