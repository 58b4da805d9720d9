"""Rules whose z is taken at the start of a chunk: what their kernels are given, and the oracle that judges them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn.functional import normalize

from codegen.device import cpu
from codegen.kernels.build import build_legal
from codegen.rule import Rule
from codegen.schedules.schedule import Schedule
from tests.support.linear_rules import Named, flat, sequences_of, spec_of
from tests.trellis_ops.family.cases import Case, inputs
from tests.trellis_ops.family.runs import cut
from trellis_ops import family_reference

Results = tuple[torch.Tensor, Named]


class Form(Protocol):
    """A rule with C, and the schedule of its kernel."""

    rule: Rule
    chunk: int

    @property
    def schedule(self) -> Schedule: ...


def drawn(form: Form, dtype: torch.dtype, sequences: int, **sizes: int) -> tuple[Named, Named]:
    """What a call of 53 tokens is given and its states; keys of length one, so that no rule diverges."""
    given, first = inputs(Case(form.rule, form.chunk, **{"tokens": 53} | sizes), torch.float32, sequences)
    given["k"] = normalize(given["k"], dim=-1)
    rows = ("q", "k", "v", "probe")
    return {name: x.to(dtype) if name in rows else x for name, x in given.items()}, first


def found(form: Form, given: Named, first: Named, offsets: torch.Tensor | None = None) -> Results:
    """y and the final states, of outputs that held NaN."""
    operator = build_legal(spec_of(form.rule, given, form.chunk), form.schedule, cpu())
    final = {name: x.clone() for name, x in first.items()}
    y = torch.full_like(given["v"].flatten(0, 1), float("nan"))
    operator.forward(flat(form.rule, given) | final | {"y": y}, sequences_of(given, offsets))
    return y.view_as(given["v"]), final


def require_close(
    form: Form, given: Named, first: Named, offsets: torch.Tensor | None = None, bound: float = 1e-5
) -> Results:
    """What `found` gives, once it agrees with the oracle in float64."""
    y, final = found(form, given, first, offsets)
    exact, last = family_reference.memory_attention(form.rule, given, first, chunk_size=form.chunk, cu_seqlens=offsets)
    assert final.keys() == last.keys()
    for name, x, right in (("y", y, exact), *((name, final[name], last[name]) for name in last)):
        assert (x.double() - right).norm() <= bound * right.norm(), name
    return y, final


def require_strong_gates(form: Form, given: Named, first: Named) -> None:
    """`require_close` where gates forget a little, much, almost all and all."""
    gates = given["log_decay"]
    draw = torch.randint(0, 4, gates.shape, generator=torch.Generator().manual_seed(0))
    gates.copy_(torch.tensor([-1e-3, -5.0, -80.0, -torch.inf])[draw])
    require_close(form, given, first)


def require_carried(form: Form, given: Named, first: Named, cuts: tuple[int, int]) -> None:
    """A call begins a chunk: pieces of whole chunks are the whole, and others what the oracle makes of them."""
    y, state = [], first
    for begin, end in zip((0, *cuts), (*cuts, 53), strict=True):
        part, state = require_close(form, cut(form.rule, given, begin, end), state)
        y.append(part)
    whole, final = found(form, given, first)
    if all(place % form.chunk == 0 for place in cuts):
        torch.testing.assert_close(torch.cat(y, dim=1), whole, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-5)
