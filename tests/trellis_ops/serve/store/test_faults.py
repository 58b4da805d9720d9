"""Faults cost a hit: no wrong token, no exception, one warning of each kind."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.errors import FileWriteError
from tests.support import redis_server
from tests.trellis_ops.limited_files import limited_files
from tests.trellis_ops.lm.small_models import SMALL, make_model, some_tokens
from tests.trellis_ops.serve.store.stores import OTHER_KEY, PROMPT, ROOM, check_same, entry, store_of
from trellis_ops.lm.model import TrellisLM
from trellis_ops.serve.store import Disk, Memory
from trellis_ops.serve.store.tiers.redis import Redis

LOGGER = "trellis_ops.serve.store"
ROOT = Path(__file__).parents[4]
TOKENS = some_tokens(1, PROMPT)
NEEDS_REDIS = pytest.mark.skipif(redis_server.PROGRAM is None, reason=redis_server.WHY_NOT)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Tells what was warned of, as "tier, kind"."""
    caplog.set_level(logging.WARNING, LOGGER)
    return lambda: ["{}, {}".format(*record.args[:2]) for record in caplog.records if record.name == LOGGER]


def filled(*tiers, model=None):
    """A store whose tiers hold the state of `TOKENS`."""
    model = model or make_model()
    store = store_of(*tiers)
    model.generate(TOKENS, 0, prefix_store=store.tenant("alice"))
    assert store.counts().saves == {tier.name: 1 for tier in tiers}
    return model, store


def state_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.state"))


def test_what_was_damaged_elsewhere_does_not_reach_memory(tmp_path, warned):
    disk = Disk(tmp_path, ROOM)
    model, _ = filled(disk)
    (path,) = state_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    store = store_of(Memory(ROOM), disk)
    for _ in range(2):
        check_same(model, TOKENS, store.tenant("alice"))
    assert warned() == ["disk, damaged"]
    assert store.counts().misses == {"damaged": 1}
    assert store.counts().hits == {"memory": 3}


def test_a_bit_flipped_in_a_file_is_a_miss(tmp_path):
    model, store = filled(Disk(tmp_path, ROOM))
    (path,) = state_files(tmp_path)
    whole = path.read_bytes()

    @settings(max_examples=30)
    @given(bit=st.integers(0, 8 * len(whole) - 1))
    def check(bit):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        before = store.counts().faults.get(("disk", "damaged"), 0)
        assert store.tenant("alice").lookup(model, TOKENS[0]).found == 0
        assert not path.exists()
        assert store.counts().faults == {("disk", "damaged"): before + 1}

    check()
    path.write_bytes(whole)
    assert store.tenant("alice").lookup(model, TOKENS[0]).found == 192


@NEEDS_REDIS
def test_a_bit_flipped_in_redis_is_a_miss(redis_url, running_redis, warned):
    model, store = filled(Redis(redis_url, ROOM))
    with running_redis.client() as client:
        (name,) = client.keys("trellis:*state:*")
        client.setrange(name, 5000, b"\x5a\xa5\x5a")
        check_same(model, TOKENS, store.tenant("alice"))
    assert warned() == ["redis, damaged"]
    assert store.counts().misses == {"unknown": 1, "damaged": 1}
    assert store.counts().hits == {"redis": 1}


def test_a_state_in_the_place_of_another_is_a_miss(tmp_path, warned):
    model, store = filled(Disk(tmp_path, ROOM))
    other = some_tokens(1, PROMPT, seed=9)
    model.generate(other, 0, prefix_store=store.tenant("alice"))
    first, second = state_files(tmp_path)
    first.write_bytes(second.read_bytes())
    for tokens in (TOKENS, other):
        check_same(model, tokens, store.tenant("alice"))
    assert warned() == ["disk, damaged"]


def test_states_that_were_cut_to_nothing_are_misses_for_a_process_that_starts(tmp_path, warned):
    """As a machine leaves files that it had not written to the end when it lost its power."""
    model, store = filled(Disk(tmp_path, ROOM))
    other = some_tokens(1, PROMPT, seed=9)
    model.generate(other, 0, prefix_store=store.tenant("alice"))
    for path in state_files(tmp_path):
        os.truncate(path, 0)
    store = store_of(Disk(tmp_path, ROOM))
    for tokens in (TOKENS, other, TOKENS):
        check_same(model, tokens, store.tenant("alice"))
    assert warned() == ["disk, damaged"]
    assert store.counts().faults == {("disk", "damaged"): 2}
    assert len([path for path in state_files(tmp_path) if path.stat().st_size]) == 2


WRITER = """
import sys
from tests.trellis_ops.serve.store.stores import ROOM, entry
from trellis_ops.serve.store import Disk
disk = Disk(sys.argv[1], ROOM)
print("ready", flush=True)
while True:
    for fill in (b"a", b"b"):
        disk.save(entry(1), fill * 1_000_000)
"""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes one state of 1 MB over and over, with one of two contents."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def is_whole(disk: Disk) -> bool:
    found = disk.load(entry(1))
    return found is None or found in (b"a" * 1_000_000, b"b" * 1_000_000)


def test_writers_of_one_state_that_are_killed_leave_it_whole(tmp_path):
    chance = random.Random(0)
    with writing(tmp_path) as first, writing(tmp_path):
        disk = Disk(tmp_path, ROOM)
        for _ in range(8):
            time.sleep(chance.uniform(0.01, 0.1))
            first.send_signal(signal.SIGSTOP)
            assert is_whole(disk)
            first.send_signal(signal.SIGCONT)
    assert is_whole(disk)


def test_what_a_killed_writer_left_is_removed_when_it_is_old(tmp_path, monkeypatch):
    unfinished = tmp_path / "ab" / "cd" / ".1-00.state.0011.unfinished"
    unfinished.mkdir(parents=True)
    Disk(tmp_path, ROOM)
    assert unfinished.exists()
    monkeypatch.setattr("trellis_ops.serve.store.tiers.disk._UNFINISHED_SECONDS", -1)
    Disk(tmp_path, ROOM)
    assert not unfinished.exists()


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of `size` at `folder`, where the system lets one be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no program mount")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_keeps_no_state_and_says_so_once(tmp_path, warned):
    with small_disk(tmp_path / "small", "100k"):
        (tmp_path / "small" / "filler").write_bytes(bytes(98_000))
        model, store = make_model(), store_of(Memory(ROOM), Disk(tmp_path / "small", ROOM))
        for seed in range(3):
            check_same(model, some_tokens(1, PROMPT, seed=seed), store.tenant("alice"))
        assert state_files(tmp_path) == []
        assert warned() == ["disk, full"]
        assert store.counts().faults == {("disk", "full"): 3}
        assert store.counts().saves == {"memory": 3}
        (tmp_path / "small" / "filler").unlink()
        model.generate(some_tokens(1, PROMPT, seed=9), 0, prefix_store=store.tenant("alice"))
        assert store.counts().saves == {"memory": 4, "disk": 1}


def test_a_limit_on_files_keeps_no_state_and_says_so_once(tmp_path, warned):
    model, store = make_model(), store_of(Disk(tmp_path, ROOM))
    with limited_files(2000):
        for seed in range(2):
            check_same(model, some_tokens(1, PROMPT, seed=seed), store.tenant("alice"))
    assert warned() == ["disk, full"]
    assert state_files(tmp_path) == []
    assert list(tmp_path.rglob("*.unfinished")) == []


@pytest.mark.parametrize("what", ["folder", "files", "replaced by a file", "replaced by another store"])
def test_a_disk_that_is_emptied_or_replaced_in_use_is_a_miss(what, tmp_path, warned):
    folder = tmp_path / "states"
    model, store = filled(Disk(folder, ROOM))
    if what == "files":
        for path in state_files(folder):
            path.unlink()
    else:
        shutil.rmtree(folder)
    if what == "replaced by a file":
        folder.write_text("no folder")
    if what == "replaced by another store":
        model.generate(TOKENS, 0, prefix_store=store_of(Disk(folder, ROOM), key=OTHER_KEY).tenant("alice"))
    for _ in range(2):
        check_same(model, TOKENS, store.tenant("alice"))
    if what == "replaced by a file":
        assert set(warned()) == {"disk, unreadable", "disk, unwritable"}
        assert len(warned()) == 2
        assert store.counts().misses["unreadable"] == 4
    else:
        assert warned() == ["disk, emptied"]
        assert store.counts().hits == {"disk": 3}


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileWriteError):
        Disk(tmp_path / "file" / "states", ROOM)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_in_the_place_of_a_state_is_not_waited_for(tmp_path, warned):
    model, store = filled(Disk(tmp_path, ROOM))
    (path,) = state_files(tmp_path)
    path.unlink()
    os.mkfifo(path)
    for each in (store, store, store_of(Disk(tmp_path, ROOM))):
        check_same(model, TOKENS, each.tenant("alice"))
    assert "disk, unreadable" in warned()


@NEEDS_REDIS
def test_an_unreachable_redis_is_a_miss_and_is_left_alone_for_a_while(warned):
    tier = Redis("redis://127.0.0.1:1/0", ROOM, retry_seconds=1e9)
    model, store = make_model(), store_of(Memory(ROOM), tier)
    for _ in range(2):
        check_same(model, TOKENS, store.tenant("alice"))
    assert warned() == ["redis, unreachable"]
    assert store.counts().hits == {"memory": 3}
    assert store.counts().misses == {"unreachable": 1}


@NEEDS_REDIS
def test_a_redis_that_is_killed_in_use_is_a_miss_until_it_is_back(tmp_path, warned):
    with redis_server.server(tmp_path) as server:
        tier = Redis(server.url, ROOM, retry_seconds=1e-9)
        model, store = filled(tier)
        check_same(model, TOKENS, store.tenant("alice"))
        assert store.counts().hits == {"redis": 2}
        server.kill()
        check_same(model, TOKENS, store.tenant("alice"))
        assert store.counts().misses == {"unknown": 1, "unreachable": 2}
    with redis_server.server(tmp_path, port=server.port):
        for _ in range(2):
            check_same(model, TOKENS, store.tenant("alice"))
    assert warned() == ["redis, unreachable", "redis, emptied"]
    assert store.counts().hits == {"redis": 5}


@NEEDS_REDIS
def test_a_redis_that_is_emptied_or_forgets_in_use_is_a_miss(redis_url, running_redis, warned):
    model, store = filled(Redis(redis_url, ROOM))
    with running_redis.client() as client:
        client.flushall()
        check_same(model, TOKENS, store.tenant("alice"))
        client.delete(*client.keys("trellis:*state:*"))
        check_same(model, TOKENS, store.tenant("alice"))
    assert warned() == ["redis, emptied", "redis, gone"]
    assert store.counts().misses == {"unknown": 1, "emptied": 1, "gone": 1}


@NEEDS_REDIS
def test_a_redis_without_memory_left_keeps_no_state(tmp_path, warned):
    with redis_server.server(tmp_path, "--maxmemory", "1mb", "--maxmemory-policy", "noeviction") as server:
        model, store = make_model(), store_of(Redis(server.url, ROOM))
        for _ in range(2):
            check_same(model, TOKENS, store.tenant("alice"))
    assert warned() == ["redis, full"]
    assert store.counts().saves == {}


@pytest.mark.parametrize("what", ["key", "weights"])
def test_states_of_another_key_or_model_are_not_used_and_that_is_said(what, tmp_path, warned):
    model, store = filled(Disk(tmp_path, ROOM))
    if what == "key":
        store = store_of(Disk(tmp_path, ROOM), key=OTHER_KEY)
    else:
        torch.manual_seed(5)
        model = TrellisLM(SMALL)
    for _ in range(2):
        check_same(model, TOKENS, store.tenant("alice"))
    assert warned() == ["disk, other states"]
    assert len(state_files(tmp_path)) == 2


def test_a_state_without_room_is_counted_and_said_once(warned):
    model, store = make_model(), store_of(Memory(1000))
    for _ in range(2):
        check_same(model, TOKENS, store.tenant("alice"))
    assert warned() == ["memory, no room"]
    assert store.counts().no_room == {"memory": 4}
