from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from codegen.device import NAMED, cpu
from codegen.errors import MissingPackageError, WorkloadError
from codegen.rule import Rule
from codegen.rules import NAMED as RULES
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default
from codegen.spec import OPERATORS, bucket
from trellis_ops.specs.workload import load_workload
from tuner.budget import parse_budget
from tuner.errors import BudgetError
from tuner.workload import DEFAULT_FILE, RULES_FILE, parse_spec


@pytest.mark.parametrize(("kind", "backend", "device"), [("cpu", "tvm", cpu()), ("cuda", "triton", NAMED["sm_90"])])
def test_the_default_workload_has_prefill_exact_and_decode_and_can_be_tuned(kind, backend, device):
    named = load_workload(DEFAULT_FILE, kind)
    operators = {(each.spec.problem.operator, each.spec.problem.chunk == 1) for each in named}
    assert {("trellis_attention", False), ("trellis_attention", True), ("trellis_step", True)} <= operators
    assert len({each.name for each in named}) == len(named)
    for each in named:
        assert why_illegal(each.spec, default(backend, each.spec, device), device) is None


@pytest.mark.parametrize("file", [DEFAULT_FILE, RULES_FILE])
def test_no_two_specs_of_a_workload_share_a_bucket(file):
    for kind in ("cpu", "cuda"):
        buckets = [bucket(each.spec).key() for each in load_workload(file, kind)]
        assert len(set(buckets)) == len(buckets)


@pytest.mark.parametrize(("kind", "backend", "device"), [("cpu", "tvm", cpu()), ("cuda", "triton", NAMED["sm_90"])])
def test_the_workload_of_rules_has_every_record_forward_and_a_step_and_can_be_tuned(kind, backend, device):
    specs = [each.spec for each in load_workload(RULES_FILE, kind)]
    named = {bucket(replace(specs[0], rule=each.rule)).rule for each in RULES.values() if not each.rule.is_trellis}
    for is_step in (False, True):
        of_kind = [each for each in specs if each.problem.operator.startswith("memory_step") == is_step]
        assert named == {bucket(each).rule for each in of_kind if each.problem.direction == "forward"}
    assert sum(each.problem.direction == "backward" for each in specs) >= 5
    for spec in specs:
        assert why_illegal(spec, default(backend, spec, device), device) is None


def test_a_spec_of_a_rule_is_that_of_the_exact_operator():
    spec = parse_spec("mine: rule=gated_deltanet, heads=4, dim=32").spec
    assert spec.rule == RULES["gated_deltanet"].rule
    assert (spec.problem.operator, spec.problem.chunk, spec.problem.slots) == ("memory_attention", 1, 32)
    step = parse_spec("mine: rule=titans, operator=memory_step").spec.problem
    assert (step.operator, step.tokens, step.chunk) == ("memory_step", 1, 1)
    assert parse_spec("mine: rule=ttt_linear, chunk=16").spec.problem.chunk == 16
    assert parse_spec("mine: rule=trellis").spec == parse_spec("mine: heads=8").spec


def test_a_rule_is_a_text_too_and_fields_beside_it_change_it():
    text = '{"phi": "cubed(z, a) = (z - a) ** 4", "passes": 1, "decay": "slot"}'
    spec = parse_spec(f"mine: heads=3, rule={text}, momentum=true").spec
    assert spec.rule == Rule(phi="cubed(z, a) = (z - a) ** 4", passes=1, decay="slot", momentum=True)
    assert spec.problem.heads == 3
    assert parse_spec("mine: rule=omeganet, window=7").spec.rule.window == 7
    assert parse_spec("mine: phi=identity, passes=1").spec.problem.operator == "memory_attention"


def test_slots_of_a_rule_are_those_that_its_states_have():
    assert parse_spec("mine: rule=gsa, slots=24").spec.problem.slots == 24
    assert parse_spec("mine: rule=mesanet, dim_k=16, dim_v=32").spec.problem.slots == 16


def test_a_spec_of_ones_own():
    spec = parse_spec("mine: operator=trellis_step, heads=12, tokens=1, chunk=1, dim=48, phi_eps=1e-2, out=silu").spec
    assert (spec.problem.heads, spec.problem.dim_k, spec.problem.dim_v) == (12, 48, 48)
    assert (spec.rule.phi_eps, spec.rule.out) == (1e-2, "silu")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("heads=2", 'expected "name: key=value'),
        ("x: heads", "'heads' is not key=value"),
        ("x: heads=two", "heads"),
        ("x: head=2", "unknown field `head`; the fields are: name, dim, rule, operator, batch, tokens, heads, "),
        ("x: heads=0", "heads=0 is out of range"),
        ("x: heads=1, heads=2", "'heads' is given twice"),
        ("x: phi=relu", "phi='relu' is no known map"),
        ("../x: heads=1", "name"),
        ("x: dim=300", "dim_k=300 is out of range"),
        ("x: rule=delta", "rule='delta' is no known rule"),
        ("x: rule=titans, slots=3", "slots=3, but this rule has as many slots as dim_v, 64"),
        ("x: rule=titans, operator=trellis_step", "trellis_step takes rules that are TRELLIS but for maps"),
        ("x: rule=yaad, probe=mine", "rule field probe='mine': choose one of: 'w', 'own'"),
        ('x: rule={"phi": 3}', "rule field phi=3"),
        ("x: operator=block_step, layer=W8-F8-K4-unit-int8-pool", "the winner of layer W8-F8-K4-unit-int8; list that"),
    ],
)
def test_a_wrong_spec_says_what_is_wrong(text, said):
    with pytest.raises(WorkloadError) as error:
        parse_spec(text)
    assert said in str(error.value)


def test_a_workload_file_of_ones_own(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("cpu:\n  - {name: a, heads: 3}\n  - {name: b, operator: memory_update, chunk: 16}\n")
    named = load_workload(path, "cpu")
    assert [each.name for each in named] == ["a", "b"]
    assert named[0].spec.problem.heads == 3
    assert named[1].spec.problem.operator in OPERATORS


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "cpu: 3",
        "cuda: [{name: a}]",
        "cpu: [{name: a, heads: '2'}]",
        "cpu: [{name: a}, {name: a, heads: 2}]",
        "cpu: [{heads: 2}]",
        "cpu: [{name: a, unknown: 2}]",
        "cpu: [&a [*a]]",
        "cpu: [",
        "!!python/object/apply:os.system ['true']",
        b"\xff\xfe\x00",
    ],
)
def test_a_broken_workload_file_is_named(tmp_path: Path, content):
    path = tmp_path / "broken.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(WorkloadError, match=r"broken\.yaml"):
        load_workload(path, "cpu")


def test_a_workload_file_that_cannot_be_read_is_named_once(tmp_path: Path):
    for path, said in ((tmp_path / "none.yaml", "the file does not exist"), (tmp_path, "not a regular file")):
        with pytest.raises(WorkloadError) as error:
            load_workload(path, "cpu")
        assert str(error.value) == f"{path}: {said}"


LONG = "9" * 5_001


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpu: " + "[" * 100_000, "nested more than 16 deep"),
        ("cpu: " + "{a: " * 100_000, "nested more than 16 deep"),
        ("cpu:\n  " + "- " * 100_000 + "1", "nested more than 16 deep"),
        (f"cpu:\n- {{name: a, tokens: {LONG}}}", "5001 digits"),
        (f"cpu:\n- {{name: a, tokens: 0x{'f' * 6_000}}}", "tokens is out of range"),
        ("cpu:\n- {name: a, tokens: 1" + "0" * 30 + "}", "tokens is out of range"),
        ("cpu:\n- {name: 2026-99-99}", "month must be in 1..12"),
        ("a: &a [x, x]\nb: &b [*a, *a]\ncpu: *b", "Expected `object`, got `array`"),
        ("cpu: &a [*a]", "Expected `object`, got `array`"),
        ("? {a: b}\n: c", "unhashable key"),
        ("cpu: !!python/object:os.system {}", "could not determine a constructor"),
        ("#" * (2**20 + 1), "larger than"),
    ],
)
def test_a_hostile_workload_is_refused_in_a_short_line(tmp_path: Path, text, said):
    path = tmp_path / "workload.yaml"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=said) as error:
        load_workload(path, "cpu")
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize("text", [f"x: tokens={LONG}", f"x: phi_eps={LONG}", f"{LONG}: tokens=1", f"x: {LONG}=1"])
def test_a_hostile_spec_is_refused_in_a_short_line(text):
    with pytest.raises(WorkloadError) as error:
        parse_spec(text)
    assert len(str(error.value)) < 1_000


@pytest.mark.parametrize("text", [LONG, LONG + "s"])
def test_a_budget_without_end_is_refused_in_a_short_line(text):
    with pytest.raises(BudgetError, match="is not one") as error:
        parse_budget(text)
    assert len(str(error.value)) < 300


def test_a_pipe_in_place_of_a_workload_hangs_nobody(tmp_path: Path):
    os.mkfifo(tmp_path / "workload.yaml")
    with pytest.raises(WorkloadError, match="not a regular file"):
        load_workload(tmp_path / "workload.yaml", "cpu")


def test_without_yaml_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingPackageError, match=r"'PyYAML' is missing; install the extra: .*'trellis-ops\[tune\]'"):
        load_workload(DEFAULT_FILE, "cpu")
