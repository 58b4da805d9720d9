"""The TVM kernels of any rule, against the eager walk in float64 and its autograd."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Spec
from tests.support.cases.recurrence import Run, Strong, check_attention, check_step
from tests.trellis_ops.family.cases import Case
from trellis_ops.memory import memory_attention

ONE = {"passes": 1}
PLAIN = {"phi": "identity", **ONE}
RULES = {
    "trellis": Rule(phi_eps=1e-2),
    "two_passes": Rule(phi_eps=1e-2, step_size="token", decay="slot", momentum=True, window=3),
    "reader_writer": Rule("softmax", decay="none", step_size="reader_writer"),
    "gated_delta": Rule(decay_first=True, step_size="token", **PLAIN),
    "erase": Rule("hebbian", erase=True, decay="channel", **ONE),
    "momentum": Rule("huber", momentum=True, **ONE),
    "probe": Rule(probe="own", decay="channel", decay_first=True, **PLAIN),
    "gain": Rule("layer_norm_gain", step_size="reader_writer", decay="none", phi_eps=1e-2, **ONE),
    "window": Rule(window=4, **PLAIN),
    "divided_twice": Rule(normaliser="both", decay="none", read="chunk_start", **PLAIN),
    "transposed": Rule(transposed=True, decay="slot", decay_first=True, **PLAIN),
    "solve": Rule("hebbian", link="solve"),
    "through_the_view": Rule(view="softmax", view_gradient=True, decay_first=True, out="softmax", **PLAIN),
    "views_before": Rule("identity", link="softmax", view="softmax", view_gradient=True, read="before"),
}
SEGMENT = 16
"""Tokens between kept states: the fewest that are legal."""


def compiled(spec: Spec, **settings: object) -> CompiledOperator:
    """With short segments, so that few tokens fill several."""
    schedule = TvmSchedule.default(spec, cpu())
    if spec.problem.direction != "forward":
        settings = {"checkpoint_spacing": SEGMENT, **settings}
    if "vector_width" in settings:
        settings["tile_tokens"] = settings["vector_width"]
    return build(spec, replace(schedule, **settings), cpu())


def with_settings(**settings: object):
    return functools.partial(compiled, **settings)


def case(name: str, **changes: object) -> Case:
    """Several vectors and some features more, more than two segments, and chunks that no segment divides.

    What is decayed first has chunks of one token.
    """
    chunk = 1 if RULES[name].decay_first else 6
    given = Case(RULES[name], chunk, batch=1, tokens=2 * SEGMENT + 5, dim_k=24, dim_v=40, slots=5)
    return replace(given, **changes)


# One compiled kernel serves every batch, length and number of heads: chunk and direction are the same throughout.
@pytest.mark.parametrize("name", RULES)
def test_several_segments(name):
    check_attention(compiled, Run(case(name), "backward"))


@pytest.mark.parametrize("name", RULES)
def test_packed_sequences_of_which_one_is_empty(name):
    check_attention(compiled, Run(case(name), "backward", packed=(0, 1, 1, 37)))


@pytest.mark.parametrize("name", ["trellis", "gain"])
def test_exact(name):
    check_attention(compiled, Run(case(name, chunk=1, dim_k=3, dim_v=5), "backward"))


@pytest.mark.parametrize("name", ["trellis", "divided_twice"])
def test_first_order(name):
    check_attention(compiled, Run(case(name), "backward_first_order"))


@pytest.mark.parametrize("name", ["two_passes", "reader_writer", "solve", "divided_twice", "views_before"])
@pytest.mark.parametrize("chunked", [False, True])
def test_step(name, chunked):
    check_step(compiled, Run(case(name, batch=2, tokens=1)), chunked)


@pytest.mark.parametrize("name", ["gated_delta"])
def test_bfloat16(name):
    check_attention(compiled, Run(case(name, tokens=9), "backward", "bfloat16"))


@pytest.mark.parametrize("width", [width for width in (4, 8, 16) if width * 32 <= cpu().vector_bits])
@pytest.mark.parametrize("name", ["erase", "through_the_view"])
def test_vectors_of_every_width(name, width):
    check_attention(with_settings(vector_width=width), Run(case(name, dim_k=17, dim_v=9, tokens=6)))


@pytest.mark.parametrize("threads", [threads for threads in (1, 2) if threads <= cpu().cores])
def test_threads(threads):
    check_attention(with_settings(threads=threads), Run(case("trellis", batch=3, heads=3)))


@pytest.mark.parametrize("name", ["two_passes", "momentum"])
def test_whole_vectors(name):
    check_attention(compiled, Run(case(name, dim_k=32, dim_v=16, slots=16), "backward"))


@pytest.mark.parametrize("name", ["trellis", "gated_delta"])
def test_one_slot_and_one_token(name):
    check_attention(compiled, Run(case(name, tokens=1, slots=1, dim_v=1, dim_k=1), "backward"))


@pytest.mark.parametrize("name", ["trellis", "two_passes", "erase", "momentum", "probe", "transposed"])
def test_strong_gates_forget_exactly(name):
    check_attention(compiled, Strong(case(name), "backward"))


@pytest.mark.parametrize("name", ["two_passes", "divided_twice"])
def test_a_head_of_nan_spoils_no_other(name):
    """A worker computes several heads in turn, in the same scratch."""
    given, initial = (as_float32(x) for x in Run(case(name, batch=2, heads=3)).inputs())
    clean = results(name, given, initial)
    for key in ("q", "k", "v"):
        given[key][:, :, 0] = torch.nan
    found = results(name, given, initial)
    assert found["y"][:, :, 0].isnan().any()
    for key, x in found.items():
        head = 0 if x.ndim == 1 else 2 if key in ("y", *given) else 1
        assert torch.equal(x.narrow(head, 1, 2), clean[key].narrow(head, 1, 2)), key


def as_float32(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: x.float() for key, x in tensors.items()}


def results(name: str, given: dict[str, torch.Tensor], initial: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs, final states, and the gradients of all that is given."""
    leaves = {key: x.clone().requires_grad_() for key, x in (given | initial).items()}
    y, finals = memory_attention(
        **{key: leaves[key] for key in given},
        rule=RULES[name],
        chunk_size=6,
        initial_state=tuple(leaves[key] for key in initial),
        output_final_state=True,
        implementation="tvm",
    )
    outputs = [y, *finals]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), [torch.ones_like(x) for x in outputs])
    named = {f"final {key}": x.detach() for key, x in zip(initial, finals, strict=True)}
    return named | dict(zip(leaves, gradients, strict=True)) | {"y": y.detach()}
