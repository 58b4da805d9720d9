"""A user layer that cannot be written: winners are kept elsewhere, read from there, and that is said."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.tuning_db.examples import ASKED, recommendation, record
from tuning_db import DatabaseWriteError, Store, TuningDatabaseWarning, utc_now

Warned = Callable[[], list[str]]
EARLIER, LATER = "2025-01-31T12:00:00Z", "2025-02-01T12:00:00Z"


@pytest.fixture
def read_only(ordinary_folder: Path) -> Store:
    """A store whose user layer holds one record and takes no more."""
    user = ordinary_folder / "user"
    store = Store(user, ordinary_folder / "shipped", ordinary_folder / "fallback")
    store.commit(record(created=EARLIER, trials=1))
    (user / ".lock").chmod(0o400)
    user.chmod(0o500)
    return store


def test_what_a_read_only_folder_refuses_is_kept_elsewhere_and_found_again(read_only: Store, warned: Warned) -> None:
    assert read_only.commit(record(created=LATER, trials=2))
    assert read_only.commit(record(created=LATER, spec="spec-b"))
    (text,) = warned()
    assert str(read_only.user.folder) in text
    assert f"kept in {read_only.fallback.folder}" in text
    match = read_only.lookup(**ASKED)
    assert match is not None
    assert (match.record.trials, match.layer) == (2, "user")
    assert match.path == read_only.fallback.folder / "cpu-x.json"
    assert [each.spec for each in read_only.records()] == ["spec-a", "spec-b"]


def test_a_newer_record_of_the_user_layer_hides_one_that_was_kept_elsewhere(read_only: Store, warned: Warned) -> None:
    read_only.commit(record(created=LATER, trials=2))
    read_only.user.folder.chmod(0o700)
    (read_only.user.folder / ".lock").chmod(0o600)
    read_only.commit(record(created="2025-03-01T12:00:00Z", trials=3))
    match = read_only.lookup(**ASKED)
    assert match is not None
    assert match.record.trials == 3
    assert len(warned()) == 1


def test_a_record_dated_in_the_future_hides_no_later_tuning(read_only: Store, warned: Warned) -> None:
    read_only.commit(record(created="2099-01-01T00:00:00Z", trials=2))
    read_only.recommend(recommendation(created="2099-01-01T00:00:00Z", source="2099"))
    read_only.user.folder.chmod(0o700)
    (read_only.user.folder / ".lock").chmod(0o600)
    found = read_only.lookup(**ASKED)
    assert found is not None and found.record.trials == 1, "the clock was wrong, so it is older than all others"
    read_only.commit(record(created=utc_now(), trials=3))
    read_only.recommend(recommendation(created=utc_now(), source="now"))
    found, advised = read_only.lookup(**ASKED), read_only.recommendation("cpu-x")
    assert found is not None and found.record.trials == 3
    assert advised is not None and advised.source == "now"
    assert any("dated in the future, first 2099" in text for text in warned())


def test_a_commit_to_the_user_layer_takes_the_place_of_what_was_kept_elsewhere(read_only: Store) -> None:
    # By a clock that was wrong by less than can be seen.
    soon = (datetime.now(timezone.utc) + timedelta(hours=2)).isoformat(timespec="microseconds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningDatabaseWarning)
        read_only.commit(record(created=soon, trials=2))
        read_only.commit(record(created=soon, spec="spec-b", trials=2))
    read_only.user.folder.chmod(0o700)
    (read_only.user.folder / ".lock").chmod(0o600)
    read_only.commit(record(created=utc_now(), trials=3))
    found = read_only.lookup(**ASKED)
    assert found is not None and found.record.trials == 3
    assert {each.spec: each.trials for each in read_only.records()} == {"spec-a": 3, "spec-b": 2}


def test_what_another_user_put_into_the_fallback_is_not_read(ordinary_folder: Path, warned: Warned) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a file of another user")
    fallback = ordinary_folder / "fallback"
    fallback.mkdir()
    planted = fallback / "cpu-x.json"
    Store(ordinary_folder / "theirs", ordinary_folder / "none").commit(record())
    planted.write_bytes((ordinary_folder / "theirs" / "cpu-x.json").read_bytes())
    os.seteuid(0)
    os.chown(planted, 12345, 12345)
    planted.chmod(0o644)
    os.seteuid(65534)
    store = Store(ordinary_folder / "user", ordinary_folder / "none", fallback)
    assert store.lookup(**ASKED) is None
    assert any("it belongs to user 12345" in text for text in warned())
    named = Store(fallback, ordinary_folder / "none")
    assert named.lookup(**ASKED) is not None, "a folder that was named may be a colleague's"


def test_the_fallback_is_made_for_this_user_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "db", tmp_path / "none", tmp_path / "cache" / "fallback")
    with pytest.warns(TuningDatabaseWarning, match="kept in"):
        store.commit(record())
    assert stat.S_IMODE((tmp_path / "cache" / "fallback").stat().st_mode) == 0o700


def test_recommendations_are_kept_elsewhere_too(read_only: Store, warned: Warned) -> None:
    read_only.recommend(recommendation(source="here"))
    found = read_only.recommendation("cpu-x")
    assert found is not None
    assert found.source == "here"
    assert len(warned()) == 1


def test_a_folder_that_cannot_be_made_has_a_fallback_and_without_one_an_error(tmp_path: Path, warned: Warned) -> None:
    (tmp_path / "file").touch()
    user = tmp_path / "file" / "tuning_db"
    with pytest.raises(DatabaseWriteError):
        Store(user, tmp_path / "shipped").commit(record())
    store = Store(user, tmp_path / "shipped", tmp_path / "fallback")
    assert store.commit(record())
    assert store.lookup(**ASKED) is not None
    assert any(f"kept in {store.fallback.folder}" in text for text in warned())


def test_where_nothing_can_be_written_the_error_names_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "db", tmp_path / "shipped", tmp_path / "file" / "fallback")
    with pytest.raises(DatabaseWriteError, match="file/db"):
        store.commit(record())
