"""Writers that are killed: at every line of a commit in turn, and at random moments with others at work."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.tuning_db.examples import record
from tuning_db import Store

ROOT = Path(__file__).parents[2]
WRITERS, KILLS, PATIENCE_SECONDS = 5, 10, 120

KILL_AT_EVERY_LINE = """
import os, signal, sys
from pathlib import Path
import filelock  # loaded once, before the children are made
from tests.tuning_db.examples import record
from tuning_db import Store

folder = Path(sys.argv[1])
store = Store(folder, folder / "shipped")
package = str(Path(sys.modules["tuning_db"].__file__).parent)
store.commit(record(spec="before"))

def commit_and_die(at):
    left = at
    def trace(frame, event, argument):
        nonlocal left
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    store.commit(record(spec=f"killed at {at}"))
    sys.settrace(None)
    os._exit(0)

at = whole = 0
while True:
    child = os.fork()
    if child == 0:
        commit_and_die(at)
    _, status = os.waitpid(child, 0)
    survived = os.WIFEXITED(status)
    assert survived or os.WTERMSIG(status) == signal.SIGKILL
    known = {each.spec for each in store.records()}
    assert "before" in known and known <= {"before", f"killed at {at}"}, (at, known)
    if survived:
        assert known == {"before", f"killed at {at}"}
        break
    whole += len(known) == 2
    store.commit(record(spec="after"))
    left = sorted(each for each in os.listdir(folder))
    assert left == [".lock", "cpu-x.json"], (at, left)
    (folder / "cpu-x.json").unlink()
    store.commit(record(spec="before"))
    at += 1
print(at, whole)
"""


def test_a_commit_killed_at_any_of_its_lines_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL_AT_EVERY_LINE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines, whole = map(int, done.stdout.split())
    assert lines > 50, "the lines of a commit were not seen one by one"
    assert 0 < whole < lines, "some deaths came after the new file was there, and others before"


COMMIT_AND_SAY = """
import sys
from pathlib import Path
from tests.tuning_db.examples import record
from tuning_db import Store
store = Store(Path(sys.argv[1]), Path(sys.argv[1]) / "shipped")
for number in range(10**6):
    store.commit(record(spec=f"{sys.argv[2]} {number % 20}", trials=number))
    print(number, flush=True)
"""


def test_five_writers_of_which_one_after_another_is_killed_lose_nothing_they_were_told_is_kept(tmp_path: Path) -> None:
    chance = random.Random(0)
    said = {number: tmp_path / f"said by {number}" for number in range(KILLS)}

    def start(number: int) -> subprocess.Popen[bytes]:
        with open(said[number], "wb") as output:
            command = [sys.executable, "-c", COMMIT_AND_SAY, str(tmp_path / "db"), f"writer {number}"]
            return subprocess.Popen(command, cwd=ROOT, stdout=output)

    alive = {number: start(number) for number in range(WRITERS)}
    started, store = WRITERS, Store(tmp_path / "db", tmp_path / "shipped")
    try:
        for _ in range(KILLS):
            number = chance.choice(sorted(alive))
            _wait_for_a_line(said[number], alive[number])
            time.sleep(chance.random() * 0.02)
            killed = alive.pop(number)
            os.kill(killed.pid, signal.SIGKILL)
            killed.wait()
            if started < KILLS:
                alive[started] = start(started)
                started += 1
            assert store.records(), "a reader always finds a whole file"
    finally:
        for process in alive.values():
            process.kill()
            process.wait()
    kept = {each.spec: each.trials for each in store.records()}
    for number, path in said.items():
        last = int(path.read_text().rpartition("\n")[0].rpartition("\n")[2])
        for before in range(max(0, last - 19), last + 1):
            trials = kept[f"writer {number} {before % 20}"]
            assert trials >= before and trials % 20 == before % 20
    store.commit(record(spec="after"))
    assert sorted(os.listdir(tmp_path / "db")) == [".lock", "cpu-x.json"]


def _wait_for_a_line(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while b"\n" not in path.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline, "a writer never came to its first commit"
        time.sleep(0.005)
