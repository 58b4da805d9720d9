"""Generated sources: what runs is the text that was rendered, whatever lies on the disk."""

from __future__ import annotations

import hashlib
import importlib._bootstrap_external as bytecode
import importlib.util
import inspect
import linecache
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from codegen import render
from codegen.backends.source_module import module_of
from codegen.cache import folder as cache_folder
from codegen.cache.folder import ExposedCacheWarning
from codegen.cache.process_folder import process_folder
from codegen.device import cpu
from codegen.errors import CompileError
from codegen.render import Source, generated_folder
from codegen.schedules.registry import default
from tests.support.cases.kernels import Case

OTHER = 54_321
SPEC = Case("trellis_step").spec
TEXT = "def answer():\n    return 'rendered'\n\n\nclass Kernel:\n    size = 3\n"

posix = pytest.mark.skipif(sys.platform == "win32", reason="owners, permissions and pipes as POSIX has them")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cache_folder.KEY_VARIABLE, raising=False)
    for said in (cache_folder.say_exposed, render._say_not_kept):
        said.cache_clear()
    return tmp_path / "cache"


def rendered() -> Source:
    return render.render("memory_step", SPEC, default("tvm", SPEC, cpu()), cpu())


def source_of(text: str, path: Path) -> Source:
    path.write_text(text)
    return Source("kernel", text, path, hashlib.sha256(text.encode()).hexdigest())


def test_bytecode_beside_a_right_source_is_not_run_and_none_is_written(tmp_path):
    source = source_of(TEXT, tmp_path / "planted_bytecode.py")
    facts = source.path.stat()
    planted = Path(importlib.util.cache_from_source(source.path))
    planted.parent.mkdir()
    code = compile(TEXT.replace("rendered", "planted"), source.path, "exec")
    planted.write_bytes(bytecode._code_to_timestamp_pyc(code, int(facts.st_mtime), facts.st_size))
    # Python itself would run it.
    specification = importlib.util.spec_from_file_location("by_python", source.path)
    by_python = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(by_python)
    assert by_python.answer() == "planted"
    before = planted.read_bytes()
    assert module_of(source, "tvm").answer() == "rendered"
    assert planted.read_bytes() == before


def test_no_bytecode_is_written(tmp_path):
    module_of(source_of(TEXT, tmp_path / "no_bytecode.py"), "tvm")
    assert [path.name for path in tmp_path.iterdir()] == ["no_bytecode.py"]


def test_what_a_file_says_by_now_is_neither_run_nor_shown(tmp_path):
    source = source_of(TEXT, tmp_path / "changed_since.py")
    source.path.write_text(TEXT.replace("rendered", "planted"))
    module = module_of(source, "tvm")
    assert module.answer() == "rendered"
    linecache.checkcache()
    assert inspect.getsource(module.answer) == "def answer():\n    return 'rendered'\n"
    assert inspect.getsource(module.Kernel) == "class Kernel:\n    size = 3\n"
    assert inspect.getsourcefile(module.answer) == module.__file__ == str(source.path)


def test_a_source_that_does_not_run_says_where_and_is_made_again(tmp_path):
    source = source_of("first = 1\nraise ValueError('no')\n", tmp_path / "does_not_run.py")
    for _ in range(2):
        with pytest.raises(CompileError, match="ValueError: no") as caught:
            module_of(source, "tvm")
    frames = traceback.extract_tb(caught.value.__cause__.__traceback__)
    assert (frames[-1].filename, frames[-1].line) == (str(source.path), "raise ValueError('no')")
    assert "trellis_generated_does_not_run" not in sys.modules
    with pytest.raises(CompileError, match="SyntaxError"):
        module_of(source_of("first =", tmp_path / "is_no_python.py"), "tvm")


def test_a_module_is_run_once(tmp_path):
    source = source_of(TEXT, tmp_path / "run_once.py")
    assert module_of(source, "tvm") is module_of(source, "tvm") is sys.modules["trellis_generated_run_once"]


@pytest.mark.parametrize("damage", [b"\xff\xfe no text", b"", b"# other\n"], ids=["no UTF-8", "empty", "other"])
def test_a_damaged_source_is_written_anew(damage):
    source = rendered()
    source.path.write_bytes(damage)
    assert rendered() == source
    assert source.path.read_text() == source.text


@posix
@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path.name)],
    ids=["pipe", "device", "circle"],
)
def test_what_is_no_file_is_replaced(make):
    source = rendered()
    source.path.unlink()
    make(source.path)
    assert rendered() == source
    assert source.path.read_text() == source.text
    assert not source.path.is_symlink()


def test_a_folder_in_place_of_a_source_is_worked_around():
    source = rendered()
    source.path.unlink()
    source.path.mkdir()
    with pytest.warns(UserWarning, match="Is a directory") as said:
        again = rendered()
        assert rendered() == again
    assert len(said) == 1
    assert again.path == process_folder() / source.path.name
    assert again.path.read_text() == again.text == source.text


def give(path: Path) -> None:
    os.chown(path, OTHER, OTHER)


@posix
@pytest.mark.parametrize(
    "make_theirs",
    [pytest.param(give, marks=root), lambda path: path.chmod(0o666)],
    ids=["owned by another", "written by everyone"],
)
def test_a_file_that_is_another_s_is_written_anew(make_theirs: Callable[[Path], None]):
    source = rendered()
    make_theirs(source.path)
    assert rendered() == source
    facts = source.path.stat()
    assert (facts.st_uid, facts.st_mode & 0o022) == (os.geteuid(), 0)


@posix
@pytest.mark.parametrize("part", [".", "generated", "generated/tvm"])
def test_a_folder_that_is_another_s_is_left_alone_and_said_once(part, cache):
    before = rendered()
    (cache / part).chmod(0o777)
    with pytest.warns(ExposedCacheWarning) as said:
        again = rendered()
        rendered()
    (only,) = said
    assert str(only.message).startswith(f"{cache / part} can be written by everyone")
    assert again.path.parent == process_folder()
    assert again.text == before.text
    assert [path.name for path in before.path.parent.iterdir()] == [before.path.name]


@posix
def test_with_a_key_others_may_write_and_nothing_is_said(cache, monkeypatch):
    monkeypatch.setenv(cache_folder.KEY_VARIABLE, str(cache / "key"))
    rendered()
    cache.chmod(0o777)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rendered().path.parent == process_folder()


@posix
def test_folders_are_made_for_the_user_alone(cache):
    before = os.umask(0)
    try:
        rendered()
    finally:
        os.umask(before)
    folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
    assert len(folders) == 3
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    assert generated_folder() in folders
