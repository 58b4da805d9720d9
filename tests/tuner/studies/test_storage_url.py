"""Where studies are stored: found whatever the folder is called, and shown without a password."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType, SimpleNamespace

import optuna
import pytest
import sqlalchemy

from tuner.cli import main
from tuner.commands import records
from tuner.commands.command import command_line, storage_url
from tuner.errors import StudyError
from tuner.studies.storage_url import file_url, parsed_url, without_secrets
from tuner.studies.storage_variable import STORAGE_VARIABLE
from tuner.studies.studies import default_url, open_storage, unusable
from tuner.workers.limits import Limits
from tuner.workers.process import WorkerProcess

SECRETS = ("hunter2", "hun/ter2", "ter2")

MALFORMED = [
    "postgresql://user:hun@ter2@127.0.0.1:1/name",
    "postgresql://us/er:hunter2@127.0.0.1:1/name",
    "postgresql://user:hunter2/name",
    "postgresql:/user:hunter2@host/name",
    "user:hunter2@host/name",
    "postgresql//user:hunter2@host/name",
    "nosuch://user:hunter2@host/name",
    "postgresql://user:hunter2@[::1/name",
]
UNREACHABLE = [
    "postgresql://user:hunter2@127.0.0.1:1/name",
    "postgresql://user:hun/ter2@127.0.0.1:1/name",
    "postgresql://127.0.0.1:1/name?user=me&password=hunter2",
    "postgresql://127.0.0.1:1/name?sslmode=nonsense&password=hunter2",
    "mysql://user:hunter2@127.0.0.1:1/name",
]


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%41b", "a%b", "a b", "a{SCHEMA_VERSION}b", "{}", "a@b:c@d", "ä&c=d"])
def test_studies_lie_where_the_folder_is_whatever_it_is_called(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(folder))
    storage = open_storage(default_url())
    optuna.create_study(storage=storage, study_name="kept").set_user_attr("here", True)
    storage.engine.dispose()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [name]
    assert {path.name for path in folder.iterdir()} >= {"studies.db"}
    again = open_storage(file_url(folder / "studies.db"))
    assert optuna.load_study(study_name="kept", storage=again).user_attrs == {"here": True}
    again.engine.dispose()


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        *((["report", "--text"], url) for url in (*MALFORMED, *UNREACHABLE)),
        (["tune", "--budget", "1"], MALFORMED[0]),
        (["show", "--why", "prefill"], UNREACHABLE[0]),
    ],
)
def test_no_command_says_the_password(url, arguments, capsys):
    assert main([*arguments, "--storage", url]) == 1
    said = capsys.readouterr()
    assert "cannot use the study storage" in said.err
    assert "Traceback" not in said.err
    for secret in SECRETS:
        assert secret not in said.out + said.err


@pytest.mark.parametrize("url", [*MALFORMED, *UNREACHABLE])
def test_the_dashboard_serves_without_saying_the_password(url, capsys, monkeypatch):
    served = []
    stand_in = ModuleType("optuna_dashboard")
    stand_in.run_server = lambda storage, host, port: served.append((storage.url, host, port))
    monkeypatch.setitem(sys.modules, "optuna_dashboard", stand_in)
    monkeypatch.setattr(records, "storage_of", lambda options: SimpleNamespace(url=options.storage))
    assert main(["dashboard", "--storage", url]) == 0
    assert served == [(url, "127.0.0.1", 8080)]
    said = capsys.readouterr()
    assert said.out.startswith("http://127.0.0.1:8080 shows ")
    for secret in SECRETS:
        assert secret not in said.out + said.err


@pytest.mark.parametrize("url", [*MALFORMED, *UNREACHABLE])
def test_no_traceback_shows_the_password(url):
    with pytest.raises(StudyError) as error:
        open_storage(url)
    shown = "".join(traceback.format_exception(error.value)) + repr(error.value.details)
    # The lines of source in a traceback are this file's.
    for secret in SECRETS:
        assert secret not in shown


def test_a_mistake_on_the_command_line_is_repeated_without_the_password(capsys):
    with pytest.raises(SystemExit):
        main(["report", "postgresql://user:hun/ter2@host/name"])
    said = capsys.readouterr().err
    assert "unrecognized arguments: postgresql://user:***@host/name" in said


def test_a_record_keeps_the_command_without_the_password():
    url = "postgresql://user:my hunter2@host/name"
    for arguments in (["tune", "--storage", url], ["tune", f"--storage={url}"], ["tune", "--stor", url]):
        line = command_line([*arguments, "--workload", "/a/b@c.yaml"], url)
        assert "hunter2" not in line
        assert "user:***@host/name" in line
        assert line.endswith("--workload /a/b@c.yaml"), "what is no URL stays as it is"
    assert "hunter2" not in command_line(["tune", "--storage", "user:hunter2@host"], "user:hunter2@host")


def test_what_a_driver_says_is_cleared_of_the_password_and_its_pieces():
    url = "postgresql://user:hunter2/winter@host/name"
    said = 'could not translate "winter@host", password "hunter2/winter", of postgresql://user:hunter2/winter@host/name'
    cleared = without_secrets(said, url)
    assert "winter" not in cleared and "hunter2" not in cleared
    assert 'could not translate "***@host"' in cleared


def test_a_url_that_can_be_read_is_read():
    assert parsed_url("postgresql://user:p%40ss@host/name").password == "p@ss"
    assert parsed_url("postgresql://user:hun/ter2@host/name").host == "host"
    with pytest.raises(StudyError, match=r"more than one @ divides it.*%40 for @"):
        parsed_url("postgresql://user:hun@ter2@host/name")


def test_the_environment_names_a_storage_that_workers_do_not_see(monkeypatch, tmp_path):
    class Options:
        storage = None

    url = f"sqlite:///{tmp_path / 'other.db'}"
    assert storage_url(Options()) == default_url()
    monkeypatch.setenv(STORAGE_VARIABLE, url)
    assert storage_url(Options()) == url
    worker = WorkerProcess(Limits())
    try:
        while not (environment := Path(f"/proc/{worker.pid}/environ").read_bytes()):
            assert worker.hear() is None, "it is still being started"
    finally:
        worker.stop()
    assert b"TRELLIS_OPS_CACHE" in environment
    assert STORAGE_VARIABLE.encode() not in environment


def test_make_puts_the_storage_on_no_command_line():
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    root = Path(__file__).parents[3]
    for target in ("tune", "report", "dashboard"):
        command = ["make", "-n", target, "STORAGE=postgresql://user:hunter2@host/name"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        assert f"-m tuner {target}" in done.stdout
        assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("suffix", ["", ".lock"])
def test_a_pipe_in_place_of_the_studies_hangs_nobody(tmp_path, suffix):
    os.mkfifo(tmp_path / f"studies.db{suffix}")
    with pytest.raises(StudyError, match="not a regular file"):
        open_storage(f"sqlite:///{tmp_path / 'studies.db'}")


def test_studies_of_another_user_are_used_only_where_they_were_named(tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of another user")
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path / "cache of several"))
    open_storage(default_url()).engine.dispose()
    os.chown(tmp_path / "cache of several" / "studies.db", 12345, 12345)
    with pytest.raises(StudyError, match="it belongs to user 12345"):
        open_storage(default_url())
    shutil.copy(tmp_path / "cache of several" / "studies.db", tmp_path / "named.db")
    os.chown(tmp_path / "named.db", 12345, 12345)
    open_storage(f"sqlite:///{tmp_path / 'named.db'}").engine.dispose()


def test_a_full_disk_is_said_to_be_full(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    study = optuna.create_study(storage=storage)
    size = (tmp_path / "studies.db").stat().st_size

    def cannot_grow(connection: object, record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {size // 4096}")  # type: ignore[attr-defined]

    storage.engine.dispose()
    sqlalchemy.event.listen(storage.engine, "connect", cannot_grow)
    with pytest.raises(optuna.exceptions.StorageInternalError) as error:
        for number in range(1000):
            study.set_user_attr(f"{number}", "x" * 1000)
    said = str(unusable(storage.url, error.value))
    assert "database or disk is full; make room on that disk" in said
    assert "invalid data" not in said
    storage.engine.dispose()


def test_the_folder_of_own_studies_is_for_the_user_alone(tmp_path, monkeypatch):
    """It is that of compiled kernels too, which nobody else may write to, whichever of the two is made first."""
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path / "made here"))
    before = os.umask(0)
    try:
        open_storage(default_url()).engine.dispose()
    finally:
        os.umask(before)
    assert (tmp_path / "made here").stat().st_mode & 0o777 == 0o700
