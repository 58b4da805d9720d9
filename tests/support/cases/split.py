"""Rules of one pass that the kernels of one memory compute: cases for both backends."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from codegen.recurrence.forms import why_no_split_form
from codegen.rule import Rule
from codegen.schedules.schedule import Schedule
from tests.support.relative_error import relative_error
from trellis_ops import explain, family_reference, memory_attention, with_schedule

RULE = Rule(passes=1, step_size="token", phi_eps=1e-2)
CASES = [("huber", 16), ("hebbian", 1), ("ln_silu", 20), ("identity", 64), ("softmax", 100)]
each_case = pytest.mark.parametrize(("phi", "chunk"), CASES)


def check_split(phi: str, chunk: int, schedule: Schedule | None, dtype: torch.dtype = torch.float32) -> None:
    """Odd sizes, packed sequences of which one is empty, carried states; against the oracle.

    Without a schedule it is the default of Triton, which has to be of this form.
    """
    rule, heads, dim_k, dim_v = replace(RULE, phi=phi), 2, 24, 20
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 70, heads, d, generator=draw) for d in (dim_k, dim_k, dim_v))
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    gates = [-0.1 * torch.rand(1, 70, heads, generator=draw), 0.3 * torch.rand(1, 70, heads, generator=draw)]
    tokens = [x.to(dtype) for x in (q, k, v)]
    state = torch.randn(3, heads, dim_v, dim_k, generator=draw)
    call = {"rule": rule, "chunk_size": chunk, "cu_seqlens": torch.tensor([0, 33, 33, 70])}
    implementation = "triton" if schedule is None else schedule.backend
    with contextlib.nullcontext() if schedule is None else with_schedule(schedule):
        used = explain(memory_attention, *tokens, None, *gates, **call, implementation=implementation).schedule
        assert used is not None and "variant=split_one_pass," in used
        y, (found,) = memory_attention(
            *(*tokens, None, *gates),
            **call,
            implementation=implementation,
            initial_state=(state,),
            output_final_state=True,
        )
    named = dict(zip(("q", "k", "v", "log_decay", "step_size"), (*tokens, *gates), strict=True))
    right, finals = family_reference.memory_attention(
        rule, named, {"S": state}, chunk_size=chunk, cu_seqlens=call["cu_seqlens"]
    )
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative_error(y, right) < tolerance
    assert relative_error(found, finals["S"]) < tolerance


NOT_COMPUTED = [
    {"passes": 2, "link": "identity"},
    {"decay": "channel"},
    {"decay": "none"},
    {"read": "before"},
    {"out": "silu"},
    {"probe": "own"},
    {"erase": True},
    {"momentum": True},
    {"window": 2},
    {"normaliser": "read"},
    {"transposed": True},
    {"view": "softmax"},
    {"phi": "layer_norm_gain"},
    {"phi": "huber", "decay_first": True},
]


def reason(fields: dict[str, object], chunk: int = 16) -> str | None:
    """Why a rule with these fields is not computed so."""
    return why_no_split_form(replace(RULE, **fields), chunk)
