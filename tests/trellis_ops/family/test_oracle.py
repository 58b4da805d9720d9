"""The eager form is the oracle, for any rule: outputs, states and the gradients of everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given as drawn

from codegen.maps import define_loss, max, sum
from codegen.rule import Rule
from codegen.rules import NAMED
from tests.trellis_ops.family.cases import Case, cases, inputs
from tests.trellis_ops.family.runs import assert_all_same, assert_same, at_token, examples, gradients, leaves
from trellis_ops import family_reference, reference
from trellis_ops.eager import recurrence
from trellis_ops.outer_gradient import OUTER_GRADIENTS


def check(case: Case, from_zero: bool = False) -> None:
    for outer_gradient in OUTER_GRADIENTS:
        given, initial = leaves(*inputs(case))
        first = None if from_zero else initial
        options = {"chunk_size": case.chunk, "outer_gradient": outer_gradient}
        y, finals = family_reference.memory_attention(case.rule, given, first, **options)
        y_eager, finals_eager = recurrence.attention(case.rule, given, first, **options)
        finals_eager = {name: finals_eager[name] for name in finals}
        assert_same(y_eager, y, "y")
        assert_all_same(finals_eager, finals)
        groups = (given, {} if from_zero else initial)
        assert_all_same(gradients(y_eager, finals_eager, *groups), gradients(y, finals, *groups))


@examples(120)
@drawn(cases())
def test_any_rule(case: Case) -> None:
    check(case)


@examples(25)
@drawn(cases(passes=1, decay="channel", step_size="token"))
def test_rules_of_one_pass_with_a_decay_of_channels(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("name", NAMED)
def test_named_rules(name: str, chunk: int) -> None:
    rule = NAMED[name].rule
    check(Case(rule, 1 if rule.decay_first else chunk))


@pytest.mark.parametrize("name", [name for name in NAMED if name != "lattice"])
def test_named_rules_from_zero(name: str) -> None:
    """But for one that divides rows by their norm, sqrt(eps) here: its gradients grow a thousandfold a token."""
    check(Case(NAMED[name].rule, tokens=4), from_zero=True)


def test_a_loss_of_a_user_with_a_gain() -> None:
    loss = define_loss("hinge_of_gain", lambda z, a, g: sum(max(g * g - z * a, 0) ** 2))
    reference.define_loss(loss.name, lambda z, a, eps, g: torch.relu(g * g - z * a) ** 2)
    check(Case(Rule(phi=loss, passes=1, decay="slot"), chunk=2))


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("phi", ["identity", "ln_silu", "softmax"])
def test_trellis_is_what_its_own_oracle_says(phi: str, chunk: int) -> None:
    case = Case(Rule(phi=phi, step_size="token"), chunk)
    given, initial = leaves(*inputs(case))
    y, finals = family_reference.memory_attention(case.rule, given, initial, chunk_size=chunk)
    states = (initial["S_k"], initial["S_v"])
    own, (s_k, s_v) = reference.attention(**given, rule=case.rule, chunk_size=chunk, initial_state=states)
    assert_same(y, own, "y")
    assert_all_same(finals, {"S_k": s_k, "S_v": s_v})
    own_finals = {"S_k": s_k, "S_v": s_v}
    assert_all_same(gradients(y, finals, given, initial), gradients(own, own_finals, given, initial))


@examples(40)
@drawn(cases(chunks=(1, 3)))
def test_steps(case: Case) -> None:
    """Steps are the sequence, by the oracle and by eager, exact and in chunks."""
    given, initial = inputs(case)
    y, finals = family_reference.memory_attention(case.rule, given, initial, chunk_size=case.chunk)
    states, chunk_states = initial, {}
    eager_states = {name: x.clone() for name, x in initial.items()}
    for t in range(case.tokens):
        token = at_token(case.rule, given, t)
        restart = t % case.chunk == 0
        if case.chunk > 1 and restart:
            eager_chunk = {name: x.clone() for name, x in family_reference.chunk_start(eager_states).items()}
        y_t, states, chunk_states = family_reference.memory_step(
            case.rule, token, states, None if restart else chunk_states
        )
        y_eager = recurrence.step(case.rule, token, eager_states, eager_chunk if case.chunk > 1 else None)
        assert_same(y_t, y[:, t], "y")
        assert_same(y_eager, y[:, t], "y of eager")
    assert_all_same(states, finals)
    assert_all_same(eager_states, finals)


def test_float32_inputs_give_float32_states_beside_the_oracle() -> None:
    case = Case(NAMED["titans"].rule, chunk=3, tokens=20)
    given, initial = inputs(case, torch.float32)
    y, finals = recurrence.attention(case.rule, given, initial, chunk_size=3)
    y_right, finals_right = family_reference.memory_attention(case.rule, given, initial, chunk_size=3)
    assert_same(y.double(), y_right, "y", 1e-5)
    assert_all_same({name: x.double() for name, x in finals.items()}, finals_right, 1e-5)


def test_ones_stand_for_what_is_left_out() -> None:
    case = Case(replace(NAMED["omeganet"].rule, step_size="head"))
    given, initial = inputs(case)
    ones = {"step_size": torch.ones(2).double(), "window_weight": torch.ones(2, 7, 2).double()}
    without = {name: x for name, x in given.items() if name not in ones}
    y, finals = family_reference.memory_attention(case.rule, without, initial)
    expected, expected_finals = family_reference.memory_attention(case.rule, given | ones, initial)
    assert torch.equal(y, expected)
    assert_all_same(finals, expected_finals)


def test_an_outer_gradient_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="outer_gradient='second'"):
        family_reference.memory_attention(Rule(), inputs(Case(Rule()))[0], outer_gradient="second")
