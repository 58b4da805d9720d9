"""A real PostgreSQL whose password is in the URL, or whose database has no encoding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import psycopg
import pytest

from codegen.device import cpu
from tests.tuner.conftest import STEP
from tests.tuner.studies.fleet import postgresql
from tuner.cli import main
from tuner.studies.studies import open_storage
from tuning_db import default_store

PROGRAMS = postgresql.programs()
STEP_TEXT = "step: operator=trellis_step, tokens=1, heads=2, dim=8, slots=8, chunk=1"

pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="PostgreSQL is not installed: apt-get install postgresql")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    assert PROGRAMS is not None
    with postgresql.server(PROGRAMS) as served:
        yield served


@pytest.mark.usefixtures("shared_workers")
def test_a_password_is_neither_printed_nor_stored_nor_shipped(url, tmp_path: Path, capsys):
    secret = url.replace("tuner@", "tuner:hun/Qz7xQ@") + "?sslpassword=Vk9wV"
    step = ["--spec", STEP_TEXT, "--budget", "1", "--no-slots", "--no-offline"]
    assert main(["tune", *step, "--storage", secret]) == 0
    said = capsys.readouterr().out
    assert "studies in postgresql+psycopg://tuner:***@127.0.0.1" in said
    (record,) = default_store().records(cpu().key(), layer="user")
    assert record.spec == STEP.key()
    assert f"--storage '{url.replace('tuner@', 'tuner:***@')}?sslpassword=***'" in record.source
    assert main(["show", "--why", "trellis_step-forward/B1-T1-H2", "--storage", secret]) == 0
    assert main(["report", "--storage", secret, "--file", str(tmp_path / "report.html")]) == 0
    assert main(["report", "--storage", secret, "--text"]) == 0
    assert main(["ship", "--folder", str(tmp_path / "shipped")]) == 0
    assert main(["export", str(tmp_path / "exported")]) == 0
    printed = capsys.readouterr()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix in (".json", ".html")]
    assert len(written) == 4
    texts = [said, printed.out, printed.err, *(path.read_text() for path in written)]
    with psycopg.connect(url) as connection:
        for table in ("study_user_attributes", "trial_user_attributes", "studies"):
            texts.append(str(connection.execute(f"SELECT * FROM {table}").fetchall()))
    for text in texts:
        assert "Qz7xQ" not in text and "Vk9wV" not in text


def test_a_database_without_an_encoding_serves(url):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    storage = open_storage(url.replace("/postgres", "/ascii"))
    optuna.create_study(storage=storage, study_name="kept").set_user_attr("said", "größer als 2 µs")
    storage.engine.dispose()
    again = open_storage(url.replace("/postgres", "/ascii"))
    study = optuna.load_study(study_name="kept", storage=again)
    assert study.user_attrs == {"said": "größer als 2 µs"}
    study.tell(study.ask(), 1.0)
    assert study.best_value == 1.0
    again.engine.dispose()
