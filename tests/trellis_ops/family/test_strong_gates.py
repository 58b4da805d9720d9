"""Gates that forget almost everything, or everything: nothing overflows and nothing is NaN, gradients included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from codegen.rules import NAMED
from tests.trellis_ops.family.cases import Case, cases, inputs
from tests.trellis_ops.family.runs import Attention, assert_same, cut, every_form, examples, gradients, leaves

DECAYS = [name for name, each in NAMED.items() if each.rule.decay != "none"]


def strong(case: Case, gates: list[float]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors whose log gates are drawn from `gates`, entry by entry."""
    given, initial = inputs(case, torch.float32)
    draw = torch.Generator().manual_seed(case.seed)
    chosen = torch.randint(len(gates), given["log_decay"].shape, generator=draw)
    given["log_decay"] = torch.tensor(gates)[chosen]
    # Small steps: a cubic loss may diverge by itself.
    given["step_size"] = 0.1 * given["step_size"]
    return leaves(given, initial)


def check(attention: Attention, case: Case, gates: list[float]) -> None:
    given, initial = strong(case, gates)
    y, finals = attention(case.rule, given, initial, chunk_size=case.chunk)
    found = {"y": y, **finals, **gradients(y, finals, given, initial)}
    assert [name for name, x in found.items() if not x.isfinite().all()] == []


GATES = [[-80.0], [float("-inf")], [0.0, -80.0], [0.0, -1.0, float("-inf")], [-80.0, float("-inf")]]


@every_form
@pytest.mark.parametrize("gates", GATES, ids=str)
@pytest.mark.parametrize("name", DECAYS)
def test_named_rules(attention: Attention, name: str, gates: list[float]) -> None:
    check(attention, Case(NAMED[name].rule, tokens=9, chunk=1), gates)


@every_form
@examples(40)
@drawn(
    case=cases(view_gradient=False), gates=st.sampled_from(GATES), decay=st.sampled_from(("scalar", "slot", "channel"))
)
def test_any_rule(attention: Attention, case: Case, gates: list[float], decay: str) -> None:
    allowed = case.rule.decay != "none" and case.rule.step_size != "reader_writer" and case.rule.normaliser == "none"
    if allowed and case.rule.link != "solve" and (decay != "channel" or case.rule.passes == 1):
        case = replace(case, rule=replace(case.rule, decay=decay))
    if case.rule.decay != "none":
        check(attention, case, gates)


@every_form
@pytest.mark.parametrize("name", ["linear", "gla", "gated_deltanet", "kda", "gdn2", "oja"])
def test_a_gate_of_minus_infinity_begins_anew(attention: Attention, name: str) -> None:
    """Where z is taken at the decayed memory, or u does not depend on it, nothing is left of what came before."""
    case = Case(NAMED[name].rule, tokens=8)
    given, initial = inputs(case)
    given["log_decay"][:, 5] = float("-inf")
    y, finals = attention(case.rule, given, initial)
    anew, finals_anew = attention(case.rule, cut(case.rule, given, 5, None), {"S": torch.zeros_like(initial["S"])})
    assert_same(y[:, 5:], anew, "y")
    assert_same(finals["S"], finals_anew["S"], "S")
