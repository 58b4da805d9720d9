"""The public operators of any rule: against the oracle, under torch.compile and torch.func, and what they refuse."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.library import opcheck

from codegen.errors import (
    DtypeError,
    GradientError,
    NumberTypeError,
    OverlapError,
    RuleError,
    RuleTensorError,
    ShapeError,
    UnknownRuleError,
    ValueCheckError,
)
from codegen.maps import define
from codegen.recurrence.tensors import tensors
from codegen.rule import Rule
from codegen.rule_text import rule_of_text, rule_text
from codegen.rules import NAMED, rule_named
from tests.support.relative_error import relative_error
from tests.trellis_ops.family.cases import Case, inputs
from trellis_ops import (
    chunk_start,
    explain,
    family_reference,
    forget,
    memory_attention,
    memory_states,
    memory_step,
    trellis_attention,
)
from trellis_ops.operators import family

DELTA = Rule(phi="identity", passes=1, decay_first=True, step_size="token")
EVERYTHING = Rule(phi="huber", passes=1, decay="channel", erase=True, momentum=True, window=3, probe="own", out="silu")


def arguments(rule, given):
    """Keywords of the public functions from tensors by name."""
    named = {name: x for name, x in given.items() if not name.startswith("erase")}
    if rule.erase:
        named["erase"] = (given["erase_a"], given["erase_b"])
    if rule.link == "solve":
        del named["target"]
    return named | {"rule": rule}


def call(rule, case=None, dtype=torch.float32):
    case = case or Case(rule, batch=2, tokens=11, heads=2, dim_k=6, dim_v=5, slots=4)
    given, initial = inputs(case, dtype)
    return arguments(rule, given), tuple(initial.values()), given, initial


def weighted(results):
    """One number with random cotangents of all results: squares of what a layer norm gives have no gradient."""
    draw = torch.Generator().manual_seed(3)
    return sum((x * torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x)).sum() for x in results)


@pytest.mark.parametrize("name", NAMED)
def test_every_named_rule_agrees_with_the_oracle(name):
    rule = rule_named(name)
    named, initial, given, first = call(rule)
    chunk = 1 if rule.decay_first else 4
    y, states = memory_attention(
        **(named | {"rule": name}), chunk_size=chunk, initial_state=initial, output_final_state=True
    )
    right, finals = family_reference.memory_attention(rule, given, first, chunk_size=chunk)
    assert relative_error(y, right) < 1e-5
    for state, final in zip(states, finals.values(), strict=True):
        assert relative_error(state, final) < 1e-5


@pytest.mark.parametrize("rule", [DELTA, EVERYTHING, rule_named("mesanet"), rule_named("ttt_linear")])
@pytest.mark.parametrize("outer_gradient", ["bilevel", "first_order"])
def test_gradients_agree_with_the_oracle(rule, outer_gradient):
    _, _, given, first = call(rule)
    chunk = 1 if rule.decay_first else 4
    settings = {"chunk_size": chunk, "outer_gradient": outer_gradient}
    leaves = {name: x.clone().requires_grad_() for name, x in (given | first).items()}
    named = arguments(rule, {name: leaves[name] for name in given})
    initial = tuple(leaves[name] for name in first)
    y, states = memory_attention(**named, initial_state=initial, output_final_state=True, **settings)
    weighted((y, *states)).backward()

    exact = {name: x.double().clone().requires_grad_() for name, x in (given | first).items()}
    if rule.link == "solve":
        exact["target"] = exact["k"]
    y, states = family_reference.memory_attention(
        rule, {name: exact[name] for name in given}, {name: exact[name] for name in first}, **settings
    )
    weighted((y, *states.values())).backward()
    for name, leaf in leaves.items():
        if name == "target" and rule.link == "solve":
            continue
        if exact[name].grad is None:
            assert name == "probe" and outer_gradient == "first_order" and not leaf.grad.any()
        else:
            assert relative_error(leaf.grad, exact[name].grad) < 1e-4, name


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", ["titans", "omeganet", "infini", "in_place_ttt", "ttt_linear", "gsa", "trellis"])
def test_steps_continue_what_attention_computes(name, chunk):
    rule = rule_named(name)
    named, initial, given, _ = call(rule)
    y, finals = memory_attention(**named, chunk_size=chunk, initial_state=initial, output_final_state=True)
    state, starts = tuple(x.clone() for x in initial), None
    per_head = {each.name for each in tensors(rule) if each.per == "head"}
    for t in range(given["q"].shape[1]):
        if chunk > 1 and t % chunk == 0:
            starts = chunk_start(rule, state)
        token = arguments(rule, {key: x if key in per_head else x[:, t] for key, x in given.items()})
        assert relative_error(memory_step(**token, state=state, chunk_state=starts), y[:, t]) < 1e-5
    for moved, final in zip(state, finals, strict=True):
        assert relative_error(moved, final) < 1e-5


def test_packed_sequences_equal_each_alone():
    case = Case(EVERYTHING, batch=1, tokens=11, heads=2, dim_k=6, dim_v=5)
    given, initial = inputs(case, torch.float32, sequences=3)
    offsets = torch.tensor([0, 4, 4, 11])
    y, finals = memory_attention(
        **arguments(EVERYTHING, given),
        initial_state=tuple(initial.values()),
        cu_seqlens=offsets,
        output_final_state=True,
    )
    for n, (begin, end) in enumerate(((0, 4), (4, 4), (4, 11))):
        first = tuple(x[n : n + 1] for x in initial.values())
        if begin == end:
            assert all(torch.equal(final[n : n + 1], x) for final, x in zip(finals, first, strict=True))
            continue
        part = {name: x if x.ndim == 1 else x[:, begin:end] for name, x in given.items()}
        alone, states = memory_attention(**arguments(EVERYTHING, part), initial_state=first, output_final_state=True)
        assert relative_error(y[:, begin:end], alone) < 1e-5
        for final, state in zip(finals, states, strict=True):
            assert relative_error(final[n : n + 1], state) < 1e-5


def test_the_rule_trellis_is_trellis_attention():
    named, initial, _, _ = call(Rule())
    y, states = memory_attention(**named, chunk_size=4, initial_state=initial, output_final_state=True)
    del named["rule"]
    right, (s_k, s_v) = trellis_attention(**named, chunk_size=4, initial_state=initial, output_final_state=True)
    assert torch.equal(y, right) and torch.equal(states[0], s_k) and torch.equal(states[1], s_v)


def test_a_step_size_of_none_is_one():
    named, _, given, _ = call(DELTA)
    y, _ = memory_attention(**(named | {"step_size": None}))
    right, _ = memory_attention(**(named | {"step_size": torch.ones_like(given["step_size"])}))
    assert relative_error(y, right) < 1e-6


def test_the_operators_pass_opcheck():
    _, initial, given, _ = call(EVERYTHING)
    leaves = [x.requires_grad_() for x in given.values()]
    offsets = torch.tensor([0, 11])
    opcheck(family.attention, (leaves, list(initial), None, rule_text(EVERYTHING), 4, "bilevel", True, None))
    alone = [x if x.ndim == 1 else x[:1] for x in leaves]
    # Of packed sequences more states are allocated than are kept: what lies there may differ from run to run.
    opcheck(family.attention, (alone, [], offsets, rule_text(EVERYTHING), 4, "bilevel", False, None))
    token = [x.detach() if x.ndim == 1 else x[:, 0].detach().clone() for x in leaves]
    opcheck(family.step, (token, [x.clone() for x in initial], [], rule_text(EVERYTHING), None))


def test_torch_compile_sees_one_call():
    named, initial, _, _ = call(DELTA)
    q = named.pop("q").requires_grad_()
    named["rule"] = "gated_deltanet"

    def attend(q, initial):
        y, states = memory_attention(q, **named, initial_state=initial, output_final_state=True)
        return y.square().sum() + states[0].sum()

    expected = attend(q, initial)
    (gradient,) = torch.autograd.grad(expected, q)
    # Inductor leaves squares and sums to torch's own kernels, which saves most of its time.
    compiled = torch.compile(attend, fullgraph=True, options={"fallback_by_default": True})(q, initial)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled, q)[0], gradient)


def test_a_compiled_step_moves_its_states():
    _, initial, given, _ = call(DELTA)
    tokens = {name: x[:, 0].clone() for name, x in given.items()}
    state, moved = [tuple(x.clone() for x in initial) for _ in range(2)]
    right = memory_step(**arguments(DELTA, tokens), state=moved)
    compiled = torch.compile(lambda t, s: memory_step(**t, state=s, rule="gated_deltanet"), fullgraph=True)
    torch.testing.assert_close(compiled(tokens, state), right)
    torch.testing.assert_close(state[0], moved[0])


def test_torch_func_differentiates_the_eager_form():
    named, _, _, _ = call(DELTA, dtype=torch.float64)
    q = named.pop("q")
    gradient = torch.func.grad(lambda x: memory_attention(x, **named)[0].square().sum())(q)
    q.requires_grad_()
    memory_attention(q, **named)[0].square().sum().backward()
    torch.testing.assert_close(gradient, q.grad)


def test_gradcheck():
    _, initial, given, _ = call(DELTA, Case(DELTA, batch=1, tokens=3, heads=1, dim_k=2, dim_v=2), dtype=torch.float64)
    names = list(given)
    leaves = [given[name].requires_grad_() for name in names]
    settings = {"initial_state": initial, "rule": DELTA}
    assert torch.autograd.gradcheck(
        lambda *x: memory_attention(**dict(zip(names, x, strict=True)), **settings)[0], leaves
    )


def test_autocast_casts_inputs_and_keeps_gates():
    named, _, _, _ = call(DELTA)
    with torch.autocast("cpu", torch.bfloat16):
        y, states = memory_attention(**named, output_final_state=True)
    assert y.dtype == torch.bfloat16 and states[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"rule": "no_such_rule"}, UnknownRuleError, "gated_deltanet"),
        ({"rule": '{"passes": 3}'}, RuleError, "passes"),
        ({"log_decay": None}, RuleTensorError, "log_decay is missing"),
        ({"momentum": torch.ones(2, 11, 2)}, RuleTensorError, "momentum is given"),
        ({"target": torch.ones(2, 11, 2, 4)}, RuleTensorError, "target is given"),
        ({"erase": torch.ones(2)}, TypeError, "erase"),
        ({"probe": 3.0}, TypeError, "probe is 3.0"),
        ({"k": None}, TypeError, "k is None"),
        ({"k": torch.ones(2, 11, 2, 7)}, ShapeError, "D_k"),
        ({"log_decay": torch.ones(2, 11)}, ShapeError, "log_decay"),
        ({"log_decay": torch.ones(2, 11, 2, dtype=torch.int32)}, DtypeError, "log_decay"),
        ({"v": torch.ones(2, 11, 2, 5, dtype=torch.bfloat16)}, DtypeError, "v"),
        ({"chunk_size": 2}, RuleError, "decay_first"),
        ({"chunk_size": 0}, ValueError, "chunk_size"),
        ({"initial_state": (torch.zeros(2, 2, 5, 7),)}, ShapeError, "initial_state's S"),
        ({"initial_state": (torch.zeros(2, 2, 5, 6),) * 2}, TypeError, "tuple of 1: S"),
        ({"initial_state": torch.zeros(2, 2, 5, 6)}, TypeError, "initial_state"),
        ({"initial_state": ()}, TypeError, "initial_state is empty"),
        ({"outer_gradient": "third"}, ValueError, "third"),
        ({"output_final_state": 1}, TypeError, "output_final_state"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_by_name(change, error, says):
    named, _, _, _ = call(DELTA)
    with pytest.raises(error, match=says):
        memory_attention(**(named | change))


def test_a_target_that_is_k_is_not_taken():
    named, _, given, _ = call(rule_named("mesanet"))
    with pytest.raises(RuleTensorError, match="is k"):
        memory_attention(**named, target=given["k"])


def test_values_are_checked_where_that_is_asked_for(monkeypatch):
    named, _, given, _ = call(rule_named("mesanet"))
    monkeypatch.setenv("TRELLIS_OPS_CHECK_VALUES", "1")
    forget()
    with pytest.raises(ValueCheckError, match="regulariser"):
        memory_attention(**(named | {"regulariser": -given["regulariser"]}))
    with pytest.raises(ValueCheckError, match="log_decay"):
        memory_attention(**(named | {"log_decay": -given["log_decay"]}))
    memory_attention(**named)
    monkeypatch.delenv("TRELLIS_OPS_CHECK_VALUES")
    forget()


@pytest.mark.parametrize("name", ["titans", "omeganet", "ttt_linear"])
def test_a_step_on_its_short_way_is_that_on_its_long_one(name):
    rule = rule_named(name)
    _, initial, given, _ = call(rule)
    per_head = {each.name for each in tensors(rule) if each.per == "head"}
    token = {key: x if key in per_head else x[:, 0].contiguous() for key, x in given.items()}
    starts = chunk_start(rule, initial) if name == "ttt_linear" else None
    results = []
    forget()
    for layout in (None, None, "strided", None):
        moved = [x.clone() for x in initial]
        if layout == "strided":
            moved[0] = moved[0].mT.contiguous().mT
        versions = [x._version for x in moved]
        own = None if starts is None else tuple(x.clone() for x in starts)
        y = memory_step(**arguments(rule, token), state=tuple(moved), chunk_state=own)
        results.append((y, *moved, *(own or ())))
        assert all(x._version > version for x, version in zip(moved, versions, strict=True))
    for other in results[1:]:
        assert all(torch.equal(x, first) for x, first in zip(other, results[0], strict=True))
    moved = tuple(x.clone() for x in initial)
    with pytest.raises(ShapeError):
        memory_step(**arguments(rule, token | {"k": token["k"][..., :3]}), state=moved, chunk_state=starts)
    assert all(torch.equal(x, first) for x, first in zip(moved, initial, strict=True))


def test_a_step_refuses_gradients_and_states_that_meet():
    _, initial, given, _ = call(EVERYTHING)
    token = arguments(EVERYTHING, {name: x if x.ndim == 1 else x[:, 0] for name, x in given.items()})
    with pytest.raises(GradientError, match="memory_step"):
        memory_step(**(token | {"q": token["q"].clone().requires_grad_()}), state=initial)
    with pytest.raises(OverlapError, match="state's P"):
        memory_step(**token, state=(initial[0], initial[0], *initial[2:]))
    with pytest.raises(TypeError, match="tuple of 4"):
        memory_step(**token, state=initial[:1])


def test_states_before_any_token_are_zeros_in_the_shapes_of_the_record():
    found = memory_states(EVERYTHING, batch=3, heads=2, dim_k=6, dim_v=5)
    assert [tuple(x.shape) for x in found] == [(3, 2, 5, 6), (3, 2, 5, 6), (3, 2, 2, 5), (3, 2, 2, 6)]
    assert not any(x.any() for x in found)
    with pytest.raises(TypeError, match="slots"):
        memory_states("trellis", batch=1, heads=1, dim_k=2, dim_v=2)


def test_maps_of_one_name_are_told_apart():
    half, cube = define("mine", lambda z: z / 2), define("mine", lambda z: z**3)
    rule = Rule(phi="identity", passes=1, view=half, out=cube)
    named, initial, _, _ = call(rule)
    found = [memory_attention(**named, initial_state=initial, implementation=each)[0] for each in ("eager", "tvm")]
    half, cube = define("half_of_all", lambda z: z / 2), define("cube_of_all", lambda z: z**3)
    named["rule"] = Rule(phi="identity", passes=1, view=half, out=cube)
    right, _ = memory_attention(**named, initial_state=initial, implementation="eager")
    assert all(relative_error(y, right) < 1e-5 for y in found)


def test_a_text_means_what_its_names_mean_now():
    named, _, _, _ = call(Rule(phi="identity", passes=1))
    named["rule"] = '{"phi": "renamed", "passes": 1}'
    results = []
    for formula in (lambda z: z**3, lambda z: 2 * z):
        made = define("renamed", formula)
        results.append(memory_attention(**named)[0])
        right, _ = memory_attention(**(named | {"rule": Rule(phi=made, passes=1)}))
        assert torch.equal(results[-1], right)
    assert not torch.equal(*results)


def test_reading_a_definition_takes_no_name_away():
    mine = define("taken_name", lambda z: 2 * z)
    assert rule_of_text('{"phi": "taken_name(z) = z ** 3"}').phi != mine
    assert Rule(phi="taken_name").phi == mine


def test_a_chunk_of_a_hebbian_rule_has_no_states_of_its_own():
    rule = Rule(phi="hebbian")
    _, initial, given, _ = call(rule)
    token = arguments(rule, {name: x if x.ndim == 1 else x[:, 0] for name, x in given.items()})
    starts = chunk_start(rule, initial)
    assert starts == ()
    moved = [tuple(x.clone() for x in initial) for _ in range(2)]
    y = memory_step(**token, state=moved[0], chunk_state=starts)
    torch.testing.assert_close(y, memory_step(**token, state=moved[1]))
    with pytest.raises(TypeError, match="tuple of 2"):
        chunk_start(rule, initial[:1])


def test_explain_says_what_serves_a_call():
    named, initial, given, _ = call(DELTA)
    found = explain(memory_attention, **named, implementation="eager")
    assert found.implementation == "eager" and "decay_first=True" in found.spec
    token = arguments(DELTA, {name: x[:, 0] for name, x in given.items()})
    assert "memory_step" in explain(memory_step, **token, state=initial, implementation="eager").spec
    named, initial, given, _ = call(dataclasses.replace(Rule(), step_size="token"))
    assert "trellis_attention" in explain(memory_attention, **named, initial_state=initial).spec


@pytest.mark.parametrize("value", [True, 1.0, torch.tensor(1)])
def test_a_chunk_size_that_is_no_int_is_refused(value):
    named, *_ = call(DELTA)
    with pytest.raises(NumberTypeError):
        memory_attention(**named, chunk_size=value)


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_a_chunk_that_is_longer_than_any_sequence_is_the_sequence(implementation):
    named, *_ = call(Rule("huber", momentum=True, passes=1))
    right, _ = memory_attention(**named, chunk_size=16, implementation="eager")
    y, _ = memory_attention(**named, chunk_size=2**31 - 3, implementation=implementation)
    assert relative_error(y, right) < 1e-5
