"""Ctrl-C at any step of a first call: the next call is as if there had been none."""

from __future__ import annotations

import ast
import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from codegen.backends.source_module import module_of
from codegen.backends.tvm import runtime as tvm_runtime
from codegen.backends.tvm.executable import compiler, executable
from codegen.cache.kernels import entry, kernels_folder
from codegen.device import cpu
from codegen.interruption.collection import without_collection
from codegen.interruption.unforked import unforked
from codegen.interruption.uninterrupted import uninterrupted
from codegen.interruption.whole_imports import whole_imports
from codegen.kernels.build import build
from codegen.render import Source, render
from codegen.schedules.registry import default
from tests.support.cases.kernels import Case

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C as POSIX has it")


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


CALL = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
import torch
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import trellis_attention

where, implementation, presses = sys.argv[1], sys.argv[2], 1
inputs = make_inputs(1, 5, 2, 4, 4, 4)
expected, _ = trellis_attention(*inputs.args, chunk_size=1, implementation="eager")

class Press:
    # Presses Ctrl-C when a module is looked for, which is in the middle of whatever imports it.
    def find_spec(self, name, path=None, target=None):
        global presses
        if name == where and presses:
            presses -= 1
            os.kill(os.getpid(), signal.SIGINT)
        return None

sys.meta_path.insert(0, Press())
stopped = 0
for _ in range(3):
    try:
        y, _ = trellis_attention(*inputs.args, chunk_size=1, implementation=implementation)
    except KeyboardInterrupt:
        stopped += 1
        assert where in sys.modules, "the import was left half-way"
assert_close(y, expected, 1e-5)
print(stopped)
"""


@pytest.mark.parametrize(
    ("where", "implementation"),
    [("tvm_ffi.module", "tvm"), ("tvm.relax", "tvm"), ("jinja2.nodes", "tvm"), ("triton.language.standard", "triton")],
)
def test_an_import_that_is_interrupted_does_not_break_the_next_call(where, implementation, tmp_path):
    interprets = {"TRITON_INTERPRET": "1"} if implementation == "triton" else {}
    done = subprocess.run(
        [sys.executable, "-c", CALL, where, implementation],
        cwd=ROOT,
        env={**os.environ, "TRELLIS_OPS_CACHE": str(tmp_path), **interprets},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "1\n"


def test_a_source_that_is_interrupted_is_run_again(tmp_path):
    let = tmp_path / "let"
    text = f"""
import os, signal
if not os.path.exists({str(let)!r}):
    os.kill(os.getpid(), signal.SIGINT)
Module = 1
"""
    path = tmp_path / "interrupted_source.py"
    path.write_text(text)
    source = Source("kernel", text, path, "0")
    with pytest.raises(KeyboardInterrupt):
        module_of(source, "tvm")
    assert "trellis_generated_interrupted_source" not in sys.modules
    let.touch()
    assert module_of(source, "tvm").Module == 1


def test_ctrl_c_is_answered_at_the_end():
    done = []
    with pytest.raises(KeyboardInterrupt):
        with uninterrupted():
            press()
            press()
            done.append("the rest")
        done.append("what comes after")
    assert done == ["the rest"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with uninterrupted():
        done.append("no Ctrl-C, no interruption")


def test_ctrl_c_is_answered_while_another_thread_compiles():
    held, done = threading.Event(), threading.Event()

    def compiles():
        with unforked():
            held.set()
            done.wait(60)

    thread, timer = threading.Thread(target=compiles), threading.Timer(0.2, press)
    thread.start()
    held.wait()
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt), whole_imports():
            pass
        assert thread.is_alive()
    finally:
        done.set()
        thread.join()


def test_an_error_is_not_hidden_by_ctrl_c():
    with pytest.raises(KeyboardInterrupt) as caught, uninterrupted():
        press()
        raise ValueError("first")
    assert isinstance(caught.value.__context__, ValueError)


def test_a_process_that_ignores_ctrl_c_and_other_threads_are_left_alone():
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            press()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
    failed = []

    def work() -> None:
        try:
            with uninterrupted():
                assert signal.getsignal(signal.SIGINT) is handler
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_lock_is_free_after_an_interruption_though_its_traceback_lives(cache):
    place = entry("kernel", ("a",))
    with pytest.raises(KeyboardInterrupt) as kept, place.locked():
        press()
    assert kept.value.__traceback__ is not None
    (lock,) = (kernels_folder() / "locks").iterdir()
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_another_process_waits_for_the_lock(cache):
    place = entry("kernel", ("a",))
    order: list[str] = []

    def work() -> None:
        with place.locked():
            order.append("second")

    thread = threading.Thread(target=work)
    with place.locked():
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_kernel_that_is_interrupted_while_it_is_kept_leaves_nothing(cache):
    place = entry("kernel", ("a",))

    def export(path: Path) -> None:
        path.write_bytes(b"half")
        press()

    with pytest.raises(KeyboardInterrupt):
        place.store(export)
    assert list(kernels_folder().iterdir()) == []
    assert [path.name for path in cache.iterdir()] == ["cache"]
    assert place.store(lambda path: path.write_bytes(b"whole") and None) == place.find()


def test_workers_are_those_of_the_last_number_that_was_not_interrupted(monkeypatch):
    number = tvm_runtime.load().get_global_func("runtime.NumThreads")
    tvm_runtime.limit_workers(1)
    configure = tvm_runtime._configure()

    def interrupted(*arguments: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tvm_runtime, "_configure", lambda: interrupted)
        with pytest.raises(KeyboardInterrupt):
            tvm_runtime.limit_workers(2)
    assert tvm_runtime._configure() is configure
    tvm_runtime.limit_workers(2)
    assert number() == min(2, int(os.environ["TVM_NUM_THREADS"]))


def test_garbage_is_collected_again_after_an_interruption():
    with pytest.raises(KeyboardInterrupt), without_collection():
        press()
    assert gc.isenabled()


def test_ctrl_c_in_a_pass_of_the_compiler_is_an_interruption_and_no_error_of_the_compiler():
    tvm, spec, sent = compiler(), Case("trellis_step", dim_k=7, dim_v=9, slots=5, lengths=(1,)).spec, []

    class Interrupting:
        def run_before_pass(self, module, info):
            if not sent:
                sent.append(info.name)
                press()

    source = render("memory_step", spec, default("tvm", spec, cpu()), cpu())
    with pytest.raises(KeyboardInterrupt):
        executable(source, cpu(), [tvm.instrument.pass_instrument(Interrupting)()])
    assert sent
    assert executable(source, cpu())["memory_step"]


def pressing_once(function, sent):
    """`function`, whose first call is interrupted, and noted in `sent`."""

    def interrupting(*arguments, **options):
        if not sent:
            sent.append(arguments)
            press()
        return function(*arguments, **options)

    return interrupting


def test_ctrl_c_that_the_parser_of_tvm_would_swallow_is_an_interruption(monkeypatch):
    """TVM's parser has an `except:` around `ast.parse`, after which it parses once more."""
    compiler()
    spec, sent = Case("trellis_step", dim_k=7, dim_v=9, slots=6, lengths=(1,)).spec, []
    source = render("memory_step", spec, default("tvm", spec, cpu()), cpu())
    monkeypatch.setattr("tvm.script.parser.core.doc.ast.parse", pressing_once(ast.parse, sent))
    with pytest.raises(KeyboardInterrupt):
        executable(source, cpu())
    assert sent
    assert executable(source, cpu())["memory_step"]


def test_ctrl_c_while_a_kernel_is_linked_is_an_interruption(monkeypatch, tmp_path):
    """Removing TVM's temporary files is up to `__del__`, where Python loses it."""
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path))
    compiler()
    spec, sent = Case("trellis_step", dim_k=7, dim_v=9, slots=7, lengths=(1,)).spec, []
    monkeypatch.setattr("tvm.support.utils.shutil.rmtree", pressing_once(shutil.rmtree, sent))
    with pytest.raises(KeyboardInterrupt):
        build(spec, default("tvm", spec, cpu()), cpu())
    assert sent
    assert build(spec, default("tvm", spec, cpu()), cpu()).kernels
