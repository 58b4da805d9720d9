from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tuning_db.examples import ASKED, recommendation, record, records
from tuning_db import DatabaseWriteError, Outcome, Record, RecordError, Store, default_store

Warned = Callable[[], list[str]]


def test_a_committed_record_is_found_exactly(store: Store, tmp_path: Path) -> None:
    assert store.commit(record())
    match = store.lookup(**ASKED)
    assert match is not None
    assert (match.record, match.layer, match.how) == (record(), "user", "exact")
    assert match.path == tmp_path / "user" / "cpu-x.json"


def test_the_order_is_exact_user_exact_shipped_bucket_user_bucket_shipped(store: Store) -> None:
    exact_user, exact_shipped = record(trials=1), record(trials=2)
    bucket_user, bucket_shipped = record(spec="spec-b", trials=3), record(spec="spec-c", trials=4)
    for user, shipped, expected in [
        ([exact_user, bucket_user], [exact_shipped, bucket_shipped], (exact_user, "user", "exact")),
        ([bucket_user], [exact_shipped, bucket_shipped], (exact_shipped, "shipped", "exact")),
        ([bucket_user], [bucket_shipped], (bucket_user, "user", "bucket")),
        ([], [bucket_shipped], (bucket_shipped, "shipped", "bucket")),
    ]:
        for folder in (store.user.folder, store.shipped.folder):
            (folder / "cpu-x.json").unlink(missing_ok=True)
        store.merge(user)
        store.ship("cpu-x", shipped)
        match = store.lookup(**ASKED)
        assert match is not None
        assert (match.record, match.layer, match.how) == expected


@pytest.mark.parametrize("field", ["device", "backend", "template_digest"])
def test_a_record_that_differs_in_its_identity_is_no_match(store: Store, field: str) -> None:
    store.commit(record(**{field: "other"}))
    store.commit(record(spec="elsewhere", bucket="elsewhere"))
    assert store.lookup(**ASKED) is None


def test_of_a_bucket_the_record_on_the_representative_wins_then_the_newest(store: Store) -> None:
    def found() -> Record:
        match = store.lookup(**{**ASKED, "spec": "unseen"})
        assert match is not None and match.how == "bucket"
        return match.record

    old, new = record(spec="z", created="2025-01-01T00:00:00Z"), record(spec="b", created="2025-01-02T00:00:00Z")
    for each in (new, old):
        store.commit(each)
    assert found() == new
    representative = record(spec="bucket-1", created="2024-01-01T00:00:00Z")
    store.commit(representative)
    assert found() == representative


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.ok])
def test_only_ok_can_win(store: Store, tmp_path: Path, outcome: Outcome) -> None:
    failed = record(outcome=outcome, created="2026-01-01T00:00:00Z")
    assert store.commit(failed) is False
    assert store.merge([failed]) == 0
    assert not (tmp_path / "user").exists() or not any((tmp_path / "user").glob("*.json"))
    store.commit(record())
    assert store.commit(failed) is False
    path = tmp_path / "user" / "cpu-x.json"
    by_hand = json.loads(path.read_text())
    by_hand["records"] += [{**by_hand["records"][0], "outcome": outcome.value, "created": "2026-01-01T00:00:00Z"}]
    by_hand["records"] += [{**by_hand["records"][1], "spec": "spec-b"}]
    path.write_text(json.dumps(by_hand))
    match = store.lookup(**ASKED)
    assert match is not None and match.record == record()
    assert store.lookup(**{**ASKED, "spec": "spec-b", "bucket": "none"}) is None
    assert [each.outcome for each in store.records("cpu-x")] == [Outcome.ok, outcome]


def test_a_commit_replaces_the_same_identity_and_nothing_else(store: Store) -> None:
    store.commit(record(trials=1))
    store.commit(record(spec="spec-b"))
    store.commit(record(template_digest="d2"))
    store.commit(record(trials=2, seconds=5.0))
    assert [(each.spec, each.template_digest, each.trials) for each in store.records("cpu-x")] == [
        ("spec-a", "d1", 2),
        ("spec-a", "d2", 0),
        ("spec-b", "d1", 0),
    ]


def test_near_misses_name_the_field_that_differed(store: Store, tmp_path: Path) -> None:
    store.commit(record())
    store.commit(record(template_digest="d0"))
    store.commit(record(device="gpu-y"))
    store.commit(record(device="gpu-y", template_digest="d0"))
    store.commit(record(backend="triton", template_digest="d0"))
    store.commit(record(spec="spec-b", template_digest="d0"))
    store.ship("cpu-x", [record(template_digest="d9", created="2024-01-01T00:00:00Z")])
    asked = {key: value for key, value in ASKED.items() if key != "bucket"}
    misses = store.near_misses(**asked)
    assert [len(miss.differs) for miss in misses] == [1, 1, 1, 2]
    assert {(miss.record.device, miss.record.template_digest, miss.layer, miss.differs) for miss in misses} == {
        ("cpu-x", "d0", "user", ("template_digest",)),
        ("gpu-y", "d1", "user", ("device",)),
        ("cpu-x", "d9", "shipped", ("template_digest",)),
        ("gpu-y", "d0", "user", ("device", "template_digest")),
    }
    assert misses[2].record.template_digest == "d9", "of equally near ones the newest goes first"
    assert {miss.record.spec for miss in store.near_misses(**ASKED)} == {"spec-a", "spec-b"}
    assert misses[3].path == tmp_path / "user" / "gpu-y.json"


def test_records_and_devices_cover_both_layers_and_the_user_hides_the_shipped(store: Store) -> None:
    store.ship("cpu-x", [record(trials=1), record(spec="spec-b", trials=2)])
    store.ship("gpu-y", [record(device="gpu-y")])
    store.commit(record(trials=3, created="2020-01-01T00:00:00Z"))
    store.commit(record(device="cpu-z"))
    assert store.devices() == ("cpu-x", "cpu-z", "gpu-y")
    assert [(each.spec, each.trials) for each in store.records("cpu-x")] == [("spec-a", 3), ("spec-b", 2)]
    assert [each.trials for each in store.records("cpu-x", layer="user")] == [3]
    assert [each.trials for each in store.records("cpu-x", layer="shipped")] == [1, 2]
    assert [each.device for each in store.records()] == ["cpu-x", "cpu-z", "gpu-y", "cpu-x"]


@given(st.lists(records(device=st.sampled_from(["a", "b"]), spec=st.sampled_from("st")), max_size=6), st.randoms())
@settings(deadline=None, max_examples=30)
def test_merging_is_independent_of_order_and_repetition(given_records: list[Record], random: object) -> None:
    import tempfile

    shuffled = [*given_records]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as name:
        one, other = (Store(Path(name) / which, Path(name) / "none") for which in ("one", "other"))
        taken = one.merge(given_records)
        for each in shuffled:
            other.merge([each])
        assert one.records() == other.records()
        assert taken == len(one.records())
        assert one.merge(shuffled) == 0


def test_a_merge_takes_the_newer_and_a_commit_takes_what_it_is_given(store: Store) -> None:
    new, old = record(created="2025-06-01T00:00:00Z"), record(created="2025-01-01T00:00:00Z", seconds=1e-6)
    assert store.merge([new]) == 1
    assert store.merge([old]) == 0
    assert store.records() == (new,)
    store.commit(old)
    assert store.records() == (old,)


def test_a_recommendation_is_found_user_first_and_lives_beside_the_records(store: Store) -> None:
    assert store.recommendation("cpu-x") is None
    shipped = recommendation(source="shipped")
    store.ship("cpu-x", [record()], recommendation=shipped)
    assert store.recommendation("cpu-x") == shipped
    store.commit(record(spec="mine"))
    store.recommend(recommendation(source="mine"))
    store.commit(record(spec="mine too"))
    found = store.recommendation("cpu-x")
    assert found is not None and found.source == "mine"
    assert len(store.records("cpu-x", layer="user")) == 2


def test_shipping_renews_the_specs_it_names_and_keeps_the_others(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    store.ship("cpu-x", [record(), record(spec="spec-b")], recommendation=recommendation(source="kept"), folder=folder)
    newer = record(template_digest="d2", created="2025-06-01T00:00:00Z")
    path = store.ship("cpu-x", [record(template_digest="d0", created="2020-01-01T00:00:00Z"), newer], folder=folder)
    assert path == folder / "cpu-x.json"
    reader = Store(None, folder)
    assert reader.records() == (newer, record(spec="spec-b"))
    assert reader.recommendation("cpu-x") == recommendation(source="kept")
    with pytest.raises(RecordError, match="device"):
        store.ship("cpu-x", [record(device="gpu-y")], folder=folder)
    with pytest.raises(RecordError, match="device"):
        store.ship("../cpu-x", [], folder=folder)


def test_files_are_readable_and_their_diffs_stable(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other", tmp_path / "shipped")
    several = [record(spec=spec, schedule={"b": 1, "a": 2.0}) for spec in ("c", "a", "b")]
    for each in several:
        store.commit(each)
    for each in reversed(several):
        other.commit(each)
    text = (tmp_path / "user" / "cpu-x.json").read_text()
    assert text == (tmp_path / "other" / "cpu-x.json").read_text()
    assert text.startswith('{\n  "schema": 1,\n  "device": "cpu-x",\n  "records": [\n    {\n      "spec": "a",\n')
    assert '"a": 2.0,\n        "b": 1\n' in text and text.endswith("}\n")


def test_what_another_store_writes_is_seen_at_once(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "user", tmp_path / "shipped")
    store.commit(record(trials=1))
    for trials in (1, 2, 3, 4, 5):
        other.commit(record(trials=trials))
        match = store.lookup(**ASKED)
        assert match is not None and match.record.trials == trials
    (tmp_path / "user" / "cpu-x.json").unlink()
    assert store.records() == ()


def test_a_settled_file_is_read_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tuning_db import layer

    store.commit(record())
    path = tmp_path / "user" / "cpu-x.json"
    os.utime(path, ns=(10**18, 10**18))
    opened: list[Path] = []
    read = layer.read
    monkeypatch.setattr(layer, "read", lambda path, device, **own: opened.append(path) or read(path, device, **own))
    for _ in range(3):
        assert store.lookup(**ASKED) is not None
    assert opened.count(path) == 1
    os.utime(path, ns=(10**18 + 1, 10**18 + 1))
    assert store.lookup(**ASKED) is not None
    assert opened.count(path) == 2


def test_a_change_under_the_same_time_stamp_is_noticed(store: Store, tmp_path: Path) -> None:
    store.commit(record(trials=1))
    path = tmp_path / "user" / "cpu-x.json"
    status = path.stat()
    assert [each.trials for each in store.records()] == [1]
    with open(path, "r+b") as file:
        changed = file.read().replace(b'"trials": 1', b'"trials": 2')
        file.seek(0)
        file.write(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size) == (status.st_ino, status.st_size)
    assert [each.trials for each in store.records()] == [2]


def test_the_user_folder_is_the_named_one_or_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import platformdirs

    def folder() -> Path:
        user = default_store().user
        assert user is not None
        return user.folder

    monkeypatch.setenv("TRELLIS_OPS_TUNING_DB", str(tmp_path / "named"))
    assert folder() == tmp_path / "named"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRELLIS_OPS_TUNING_DB", "relative")
    assert folder() == tmp_path / "relative"
    monkeypatch.setenv("TRELLIS_OPS_TUNING_DB", "~/db")
    assert folder() == Path.home() / "db"
    monkeypatch.setenv("TRELLIS_OPS_TUNING_DB", "")
    assert folder() == Path(platformdirs.user_data_dir("trellis-ops", appauthor=False)) / "tuning_db"
    monkeypatch.delenv("TRELLIS_OPS_TUNING_DB")
    assert folder() == Path(platformdirs.user_data_dir("trellis-ops", appauthor=False)) / "tuning_db"


def test_a_relative_folder_under_a_deleted_working_directory_does_not_break_reading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setenv("TRELLIS_OPS_TUNING_DB", "relative")
    monkeypatch.setenv("TRELLIS_OPS_CACHE", "relative too")
    store = default_store()
    assert store.records("cpu-x", layer="user") == ()
    with pytest.raises(DatabaseWriteError):
        store.commit(record())


def test_a_store_without_a_user_layer_is_only_read(tmp_path: Path) -> None:
    Store(None, tmp_path).ship("cpu-x", [record()])
    store = Store(None, tmp_path)
    assert store.lookup(**ASKED) is not None
    with pytest.raises(DatabaseWriteError, match="only read"):
        store.commit(record())


def test_a_device_that_neither_layer_knows_is_told_once_and_only_by_a_lookup(
    store: Store, tmp_path: Path, warned: Warned
) -> None:
    assert (store.records("cpu-x"), store.recommendation("cpu-x"), store.devices()) == ((), None, ())
    assert store.near_misses(**ASKED) == ()
    assert warned() == []
    for again in (store, store, Store(tmp_path / "user", tmp_path / "shipped")):
        assert again.lookup(**ASKED) is None
    assert len(warned()) == 1
    assert str(tmp_path / "user" / "cpu-x.json") in warned()[0] and "make tune" in warned()[0]


def test_a_known_device_with_an_unknown_spec_is_a_silent_miss(store: Store, warned: Warned) -> None:
    store.ship("cpu-x", [record()])
    assert store.lookup(**{**ASKED, "spec": "other", "bucket": "other"}) is None
    assert warned() == []
