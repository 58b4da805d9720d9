"""Passwords in URLs: none is shown, however it was written, and none stays in a record that is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tuning_db.examples import recommendation, record
from tuning_db import Outcome, Store
from tuning_db.masking import masked, masked_url

SECRET = "hunter2"
CHARACTERS = "/@:?#%&=;+ '\"[]{}\\|!$^~`<>,.-_azAZ09é"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:hunter2@host/db", "postgresql://user:***@host/db"),
        ("postgresql+psycopg://user:hun/ter2@host:5432/db", "postgresql+psycopg://user:***@host:5432/db"),
        ("postgresql://user:hun@ter2@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:a?hun/ter2#@host/db", "postgresql://user:***@host/db"),
        ("postgresql://:hunter2@host", "postgresql://:***@host"),
        ("postgresql:///user:hunter2@host/db", "postgresql:///user:***@host/db"),
        ("postgresql://user:hunter2/db", "postgresql://user:***/db"),
        ("postgresql:/user:hunter2@host/db", "***@host/db"),
        ("user:hunter2@host/db", "***@host/db"),
        ("postgresql://host/db?user=me&password=hunter2", "postgresql://host/db?user=me&password=***"),
        ("postgresql://me@host/db?sslpassword=hunter2&a=b", "postgresql://me@host/db?sslpassword=***&a=b"),
        ("postgresql://host/db?p%61ssword=hunter2", "postgresql://host/db?p%61ssword=***"),
        ("postgresql://host/db?password=hun@ter2", "postgresql://host/db?password=***"),
        ("postgresql://host/db?password=hun&ter2", "postgresql://host/db?password=***"),
        ("mysql://host/db?passwd=hunter2", "mysql://host/db?passwd=***"),
        ("mssql+pyodbc://?odbc_connect=UID%3Dme%3BPWD%3Dhunter2", "mssql+pyodbc://?odbc_connect=***"),
    ],
)
def test_a_password_is_masked_wherever_it_is_in_a_url(url, shown):
    assert masked_url(url) == shown
    assert masked_url(shown) == shown, "what is masked stays as it is"
    assert masked(f"tune --storage {url} --budget 2").count("--") == 2
    if "://" in url:
        assert masked(f"tune --storage '{url}' --budget 2") == f"tune --storage '{shown}' --budget 2"


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "postgresql://host/name",
        "postgresql://user@host:5432/name?sslmode=require",
        "postgresql://[::1]:5432/name",
        "sqlite:////home/me:x@y/studies.db",
        "sqlite:///studies.db",
        "https://github.com/a/b/issues/1",
    ],
)
def test_a_url_without_a_password_stays_as_it_is(url):
    assert masked_url(url) == masked(url) == url


@given(st.text(CHARACTERS, max_size=8), st.text(CHARACTERS, max_size=8))
def test_no_password_is_shown_whatever_surrounds_it(before, after):
    url = f"postgresql://user:{before}{SECRET}{after}@host/name"
    assert SECRET not in masked_url(url)
    assert masked_url(url).startswith("postgresql://user:***@host")


def test_a_password_in_quotes_may_hold_blanks():
    assert masked("--storage 'postgresql://u:my hunter2@h/d' -x") == "--storage 'postgresql://u:***@h/d' -x"
    assert SECRET not in masked("""--storage 'postgresql://u:a'"'"'hunter2@h/d' -x""")


LEAKING = f"python -m tuner tune --storage postgresql://me:{SECRET}@host/db --budget 5"


def older(folder: Path) -> Path:
    """A file of an earlier version, whose records and recommendation hold a password."""
    store = Store(folder, folder / "shipped")
    store.commit(record(source="SOURCE"))
    store.commit(record(spec="spec-b", reason="SOURCE"))
    store.recommend(recommendation(source="SOURCE"))
    path = folder / "cpu-x.json"
    path.write_text(path.read_text().replace("SOURCE", LEAKING))
    assert path.read_text().count(SECRET) == 3
    return path


def test_what_an_older_version_kept_is_neither_shown_nor_shipped_nor_merged(tmp_path, warned):
    path = older(tmp_path / "old")
    store = Store(tmp_path / "old", tmp_path / "none")
    records, advised = store.records(), store.recommendation("cpu-x")
    assert "postgresql://me:***@host/db" in records[0].source
    assert SECRET not in str((records, advised))
    shipped = store.ship("cpu-x", records, recommendation=advised, folder=tmp_path / "shipped")
    other = Store(tmp_path / "other", tmp_path / "none")
    other.put(records)
    assert SECRET not in shipped.read_text() + (tmp_path / "other" / "cpu-x.json").read_text()
    assert SECRET in path.read_text(), "reading changes nothing"
    assert warned() == []


def test_the_next_write_takes_passwords_out_of_a_file_even_if_it_changes_nothing_else(tmp_path, warned):
    path = older(tmp_path / "old")
    store = Store(tmp_path / "old", tmp_path / "none")
    store.put(store.records())
    assert SECRET not in path.read_text()
    assert [each["spec"] for each in json.loads(path.read_text())["records"]] == ["spec-a", "spec-b"]
    (text,) = warned()
    assert "without the passwords that 3 of its entries held; change them" in text


def test_a_record_made_with_a_password_is_written_without(tmp_path):
    store = Store(tmp_path / "db", tmp_path / "none")
    store.commit(record(source=LEAKING))
    assert store.failures.remember(record(outcome=Outcome.crashed, seconds=None, source=LEAKING))
    for path in (tmp_path / "db" / "cpu-x.json", tmp_path / "db" / "failures" / "cpu-x.json"):
        assert SECRET not in path.read_text()
