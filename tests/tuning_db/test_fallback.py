"""A user layer that cannot be written: winners are kept elsewhere, read from there, and that is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tuning_db.examples import ASKED, recommendation, record
from tuning_db import DatabaseWriteError, Store

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
