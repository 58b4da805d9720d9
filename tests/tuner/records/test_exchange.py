from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from codegen.device import cpu
from codegen.errors import SpecKeyError
from codegen.rule import Rule
from codegen.spec import OPERATORS, Problem, Spec, spec_of_key
from tests.support.winner_record import winner_record
from tests.tuner.conftest import UPDATE
from tuner.cli import main
from tuner.errors import ExchangeError
from tuner.measure.timed import Timing
from tuner.records.exchange import Merged, export_records, import_records, merge_records
from tuner.space.space import space_of
from tuner.workers.worker import Finals
from tuning_db import Record, Store

EARLIER, LATER = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
SCHEDULES = list(space_of(UPDATE, "tvm", cpu()).schedules.values())


def record(place: int = 0, **changes) -> Record:
    return winner_record(UPDATE, SCHEDULES[place], **({"created": EARLIER} | changes))


@pytest.fixture
def elsewhere(tmp_path: Path) -> Store:
    return Store(tmp_path / "elsewhere", tmp_path / "none")


def merged(store: Store, elsewhere: Store, measure=None) -> Merged:
    (found,) = merge_records(store, elsewhere.user.folder, cpu(), measure)
    (held,) = store.records(layer="user")
    assert (held == found.record) == found.taken
    return found


def timed(*samples: tuple[float, ...]):
    """What a measurement of some candidates gave, by place; it checks that the one from elsewhere comes first."""

    def measure(finals: Finals) -> dict[int, Timing]:
        assert [candidate.settings for candidate in finals.candidates] == [
            SCHEDULES[1].settings(),
            SCHEDULES[0].settings(),
        ]
        return {place: Timing(each) for place, each in enumerate(samples) if each}

    return measure


def test_an_older_record_that_lacks_a_younger_setting_has_the_same_schedule(store, elsewhere):
    older = record(created=LATER)
    older.schedule.pop("dot_precision")
    store.put([record()])
    elsewhere.put([older])
    found = merged(store, elsewhere)
    assert found.taken and "the same schedule" in found.reason


def test_what_is_exported_can_be_imported(store, elsewhere, tmp_path):
    store.put([record(), record(spec="another", device="cpu-other")])
    paths = export_records(store, tmp_path / "out")
    assert sorted(path.name for path in paths) == sorted([f"{cpu().key()}.json", "cpu-other.json"])
    assert import_records(elsewhere, tmp_path / "out") == 2
    assert elsewhere.records() == store.records()
    assert export_records(store, tmp_path / "one", "cpu-other") == [tmp_path / "one" / "cpu-other.json"]


def test_an_import_replaces_even_newer_records(store, elsewhere):
    store.put([record(0, created=LATER)])
    elsewhere.put([record(1, created=EARLIER)])
    import_records(store, elsewhere.user.folder)
    assert store.records() == elsewhere.records()


def test_a_folder_without_records_is_refused(store, tmp_path):
    for use in (import_records, lambda *given: list(merge_records(*given, cpu(), None))):
        with pytest.raises(ExchangeError, match="no tuning records"):
            use(store, tmp_path / "nothing")


def test_what_is_not_known_here_is_taken(store, elsewhere):
    elsewhere.put([record()])
    assert merged(store, elsewhere).reason == "nothing was known here"


def test_of_records_with_one_schedule_the_newer_stays(store, elsewhere):
    store.put([record(created=EARLIER)])
    elsewhere.put([record(created=LATER, trials=5)])
    assert merged(store, elsewhere, timed()).taken


@pytest.mark.parametrize(
    ("samples", "taken", "said"),
    [
        (((1.0,) * 9, (1.2,) * 9), True, "measured here: 1.20x"),
        (((1.2,) * 9, (1.0,) * 9), False, "measured here: 0.83x"),
        (((1.0, 1.3, 0.9, 1.2) * 3, (1.1, 1.0, 1.2, 0.9) * 3), False, "noise"),
        (((), (1.0,) * 9), False, "this one was not right here"),
        (((1.0,) * 9, ()), True, "the one known here was not right"),
    ],
)
def test_a_record_is_taken_if_it_is_surely_faster_here(store, elsewhere, samples, taken, said):
    store.put([record(0, created=LATER)])
    elsewhere.put([record(1)])
    found = merged(store, elsewhere, timed(*samples))
    assert (found.taken, said in found.reason) == (taken, True), found.reason


def test_a_real_measurement_decides_as_it_says(store, elsewhere, workers):
    store.put([record(0, created=LATER)])
    elsewhere.put([record(1)])
    found = merged(store, elsewhere, workers.finals)
    assert found.reason.startswith("measured here: ")


@pytest.mark.parametrize("changes", [{"device": "cpu-other"}, {"template_digest": "0123456789abcdef"}])
def test_where_nothing_can_be_measured_the_newer_toolchain_stays(store, elsewhere, changes):
    def fails(finals: Finals) -> dict[int, Timing]:
        raise AssertionError("it was measured")

    old, new = {"apache-tvm": "0.9.0"}, {"apache-tvm": "0.27.0"}
    store.put([record(0, created=LATER, toolchain=old, **changes)])
    elsewhere.put([record(1, created=EARLIER, toolchain=new, **changes)])
    found = merged(store, elsewhere, fails)
    assert found.taken
    assert "apache-tvm 0.27.0 against 0.9.0" in found.reason
    elsewhere.put([record(2, created=LATER, toolchain=old, **changes)])
    assert not merged(store, elsewhere, fails).taken


def test_with_equal_toolchains_the_newer_record_stays(store, elsewhere):
    store.put([record(0, created=LATER)])
    elsewhere.put([record(1, created=EARLIER)])
    found = merged(store, elsewhere)
    assert not found.taken
    assert "the newer record stays" in found.reason


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_spec_comes_back_from_its_key(operator):
    rule = Rule(phi="l2_silu", phi_eps=1e-2, step_size="token")
    spec = Spec(rule, Problem(operator, batch=3, tokens=17, dim_k=33, dtype="bfloat16"))
    assert spec_of_key(spec.key()) == spec
    backward = replace(spec, problem=replace(spec.problem, direction="backward_first_order"))
    assert spec_of_key(backward.key()) == backward


@pytest.mark.parametrize("text", ["", "spec", UPDATE.key() + " ", UPDATE.key().replace("ln_silu", "relu")])
def test_a_text_that_is_no_key_is_refused(text):
    with pytest.raises(SpecKeyError, match="is no key of a spec"):
        spec_of_key(text)


def test_the_commands(store, tmp_path, capsys):
    store.put([record()])
    folder = str(tmp_path / "out")
    assert main(["export", folder]) == 0
    assert main(["merge", "--no-measuring", folder]) == 0
    assert "the same schedule" in capsys.readouterr().out
    assert main(["import", folder]) == 0
    assert "1 records taken" in capsys.readouterr().out
    assert main(["import", str(tmp_path / "nothing")]) == 1
    assert "no tuning records" in capsys.readouterr().err


def test_a_backend_that_is_not_known_here_is_not_measured(store, elsewhere):
    store.put([record(0, backend="another", toolchain={"another": "1"})])
    elsewhere.put([record(1, backend="another", toolchain={"another": "2"})])
    assert "newer toolchain" in merged(store, elsewhere, timed()).reason
