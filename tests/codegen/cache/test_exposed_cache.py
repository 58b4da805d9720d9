"""Whose kernels are loaded: none that another user could have written, unless a key says that it is one of ours."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from codegen import render
from codegen.backends import backend
from codegen.backends.tvm.compile import TvmKernel
from codegen.cache import folder as cache_folder
from codegen.cache import kernels as kernel_cache
from codegen.cache.folder import KEY_VARIABLE, ExposedCacheWarning
from codegen.cache.kernels import Entry, KernelCacheWarning, entry, kernels_folder, seal
from codegen.cache.process_folder import process_folder
from codegen.device import cpu
from codegen.kernels.operator import CompiledOperator
from codegen.schedules.registry import default
from tests.support.cases.kernels import Case, check_step

OTHER = 54_321
"""A user without an account."""

ROOT = Path(__file__).parents[3]
STEP = Case("trellis_step", lengths=(1, 1), dim_k=4, dim_v=4, slots=4)
COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners and permissions as POSIX has them")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture(autouse=True)
def above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the cache of a test is in; nothing has been said yet."""
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path / "above" / "cache"))
    for variable in (kernel_cache.VARIABLE, KEY_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    for said in (kernel_cache._say_once, cache_folder.say_exposed, render._say_not_kept):
        said.cache_clear()
    kernels_folder().mkdir(parents=True, mode=0o700)
    return tmp_path / "above"


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    monkeypatch.setenv(KEY_VARIABLE, str(path))
    return path


def place() -> Entry:
    found = entry("kernel", ("a",))
    assert found is not None
    return found


def kept(content: bytes = b"library") -> Path:
    """The file of `place`, with this in place of a library."""
    path = place().store(lambda made: made.write_bytes(content) and None)
    assert path is not None
    return path


def kernel() -> TvmKernel:
    """The kernel of a step, past everything that this process remembers."""
    schedule = dataclasses.replace(default("tvm", STEP.spec, cpu()), threads=1)
    return backend("tvm").kernel("memory_step", STEP.spec, schedule, cpu())


def check(made: TvmKernel) -> None:
    check_step(lambda spec: CompiledOperator(spec, default("tvm", spec, cpu()), cpu(), (made,)), STEP)


def give(path: Path) -> None:
    os.chown(path, OTHER, OTHER, follow_symlinks=False)


def open_up(path: Path) -> None:
    path.chmod(0o777)


THEIRS = [pytest.param(give, id="owned by another", marks=root), pytest.param(open_up, id="written by everyone")]


@pytest.mark.parametrize("make_theirs", THEIRS)
@pytest.mark.parametrize("part", ["above", "above/cache", "above/cache/kernels"])
def test_a_folder_that_is_another_s_is_left_alone_and_said_once(make_theirs, part, tmp_path):
    before = kept()
    make_theirs(tmp_path / part)
    with pytest.warns(ExposedCacheWarning) as said:
        assert entry("kernel", ("a",)) is None
        assert entry("kernel", ("b",)) is None
    (only,) = said
    assert str(only.message).startswith(f"{tmp_path / part} ")
    assert "TRELLIS_OPS_CACHE" in str(only.message)
    assert sorted(kernels_folder().iterdir()) == [before]


def test_a_folder_like_tmp_may_hold_the_cache(above):
    above.chmod(0o1777)
    path = kept()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert place().find() == path


@pytest.mark.parametrize("make_theirs", THEIRS)
def test_a_file_that_is_another_s_is_made_again_and_said_once(make_theirs):
    path = kept(b"theirs")
    make_theirs(path)
    with pytest.warns(KernelCacheWarning) as said:
        assert place().find() is None
        assert place().find() is None
    (only,) = said
    assert str(path) in str(only.message)
    assert kept(b"ours") == place().find() == path
    assert os.stat(path).st_uid == os.geteuid()
    assert path.read_bytes().startswith(b"ours")


def test_a_folder_that_becomes_another_s_before_the_first_kernel_is_kept(above):
    found = place()
    shutil.rmtree(kernels_folder())
    open_up(above / "cache")
    with pytest.warns(ExposedCacheWarning, match="can be written by everyone"):
        assert found.store(lambda made: made.write_bytes(b"library") and None) is None
    assert list((above / "cache").iterdir()) == []


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "make",
    [pipe, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path.name)],
    ids=["pipe", "device", "circle"],
)
def test_what_is_no_file_is_replaced(make):
    path = kept()
    path.unlink()
    make(path)
    with pytest.warns(KernelCacheWarning, match="no regular file"):
        assert place().find() is None
    assert kept() == place().find() == path


def test_a_folder_in_place_of_a_kernel_is_worked_around():
    path = kept()
    path.unlink()
    path.mkdir()
    with pytest.warns(KernelCacheWarning) as said:
        assert place().find() is None
        assert place().store(lambda made: made.write_bytes(b"library") and None) is None
    assert [str(path.parent) in str(each.message) for each in said] == [True, True]
    assert sorted(kernels_folder().iterdir()) == [path]


PLANTED = """
#include <fcntl.h>
__attribute__((constructor)) static void run(void) {{ open("{mark}", O_CREAT | O_WRONLY, 0600); }}
"""


@pytest.fixture
def plant(tmp_path: Path) -> Callable[[Path, Path], None]:
    """Puts a library that leaves a mark when it is loaded in place of a kernel, with the digest that belongs to it."""
    if COMPILER is None:
        pytest.skip("no C compiler")

    def planted(path: Path, mark: Path) -> None:
        source, library = tmp_path / "planted.c", tmp_path / "planted.so"
        source.write_text(PLANTED.format(mark=mark))
        subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        content = library.read_bytes()
        path.write_bytes(content + seal(path.name, content, None))
        path.chmod(0o644)

    return planted


@root
def test_a_planted_kernel_is_not_run(plant, tmp_path, above, monkeypatch):
    name = kernel().library.name

    def planted(cache: str) -> tuple[Path, Path]:
        """The kernel in a cache of its own, as what was loaded from a path is not loaded again; and its mark."""
        monkeypatch.setenv("TRELLIS_OPS_CACHE", str(above / cache))
        kernels_folder().mkdir(parents=True, mode=0o700)
        plant(kernels_folder() / name, tmp_path / cache)
        return kernels_folder() / name, tmp_path / cache

    # In a folder of one's own such a library is run, so that the mark is one.
    _, mark = planted("own")
    check(kernel())
    assert mark.exists()
    for cache, part in (("file", lambda path: path), ("folder", lambda path: path.parent)):
        path, mark = planted(cache)
        give(part(path))
        with pytest.warns(UserWarning) as said:
            check(kernel())
        assert not mark.exists()
        (only,) = said
        assert str(part(path)) in str(only.message)


@root
def test_one_warning_for_a_cache_that_is_another_s_and_the_kernel_works(above):
    give(above / "cache")
    with pytest.warns(UserWarning) as said:
        made = kernel()
    check(made)
    assert made.library is None
    (only,) = said
    assert only.category is ExposedCacheWarning


READ_ONLY = """
import os, sys, warnings
warnings.simplefilter("error")
import torch, trellis_ops, numpy
from codegen.kernels import build as builder
from tuning_db import TuningDatabaseWarning
warnings.simplefilter("ignore", TuningDatabaseWarning)
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
inputs = make_inputs(1, 5, 2, 4, 4, 4)
def call(implementation):
    return trellis_ops.trellis_attention(*inputs.args, chunk_size=1, implementation=implementation)[0]
expected = call("eager")
assert_close(call("tvm"), expected, 1e-5)
folder = os.path.join(os.environ["TRELLIS_OPS_CACHE"], "kernels")
for each in (os.environ["TRELLIS_OPS_CACHE"], folder):
    os.chmod(each, 0o755)
before = sorted(os.listdir(folder))
os.setgroups([])
os.setresgid(54321, 54321, 54321)
os.setresuid(54321, 54321, 54321)
builder._build.cache_clear()
trellis_ops.forget()
compilers = [name for name in list(sys.modules) if name.startswith(("jinja2", "tvm."))]
for name in compilers:
    sys.modules[name] = None
assert_close(call("tvm"), expected, 1e-5)
assert sorted(os.listdir(folder)) == before
"""


@root
def test_another_user_loads_what_root_has_kept_and_nothing_is_said(above):
    for folder in (above, *above.parents):
        if folder.stat().st_uid == 0 and folder.name.startswith(("pytest-", "popen-", "test_", "above")):
            folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", READ_ONLY], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_holders_of_a_key_share_a_folder_that_all_may_write(key, above):
    for folder in (above, above / "cache", kernels_folder()):
        open_up(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = kept()
        found = place().find()
    # What another holder of the folder puts there by now is not what is loaded.
    assert found is not None and found.parent == process_folder()
    assert found.read_bytes() == b"library"
    path.rename(path.with_name(f"other{path.suffix}"))
    assert place().find() is None


def test_a_seal_without_the_key_is_none(key, monkeypatch):
    path = kept()
    content = b"theirs"
    for wrong in (None, b"\0" * 32):
        path.write_bytes(content + seal(path.name, content, wrong))
        assert place().find() is None
    path.write_bytes(content + seal("another.so", content, key.read_bytes()))
    assert place().find() is None
    # Nor does one of its own kernels under another name.
    path.write_bytes(content + seal(path.name, content, key.read_bytes()))
    assert place().find() == path
    monkeypatch.delenv(KEY_VARIABLE)
    assert place().path != path


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.chmod(0o644), "everyone may read it"),
        (lambda path: path.chmod(0o602), "can be written by everyone"),
        (lambda path: path.write_bytes(bytes(31)), "31 bytes"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "no regular file"),
        (lambda path: path.parent.chmod(0o777), "can be written by everyone"),
        pytest.param(give, f"belongs to the user {OTHER}", marks=root),
    ],
    ids=["read", "written", "short", "missing", "pipe", "folder", "given"],
)
def test_a_file_that_is_no_key_turns_the_cache_off(key, spoil, reason):
    before = kept()
    spoil(key)
    with pytest.warns(KernelCacheWarning, match=reason) as said:
        assert entry("kernel", ("a",)) is None
        assert entry("kernel", ("b",)) is None
    (only,) = said
    assert f"{KEY_VARIABLE}={key}" in str(only.message)
    assert before.exists()


def test_a_kernel_that_a_key_has_sealed_is_compiled_once_and_loaded_from_a_copy(key, above):
    open_up(kernels_folder())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = kernel(), kernel()
    for made in (first, second):
        check(made)
        assert made.library.parent == process_folder()
    (only,) = kernels_folder().glob("*.so")
    assert first.library.name.startswith(only.stem)


def test_a_process_removes_its_folder_and_its_fork_does_not():
    code = """
import os, sys
from codegen.cache.process_folder import process_folder
folder = process_folder()
if os.fork() == 0:
    sys.exit(0)
os.wait()
assert folder.is_dir()
print(folder)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).exists()
