"""Compiled kernels on disk: what an entry depends on, and what becomes of it when things go wrong."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from codegen import render
from codegen.backends import backend
from codegen.backends.tvm import compile as tvm_backend
from codegen.backends.tvm.compile import TvmKernel
from codegen.cache import kernels as kernel_cache
from codegen.cache.kernels import _SEAL_BYTES as SEAL_BYTES
from codegen.cache.kernels import VARIABLE, KernelCacheWarning, entry, kernels_folder, seal
from codegen.device import cpu
from codegen.errors import SizeError
from codegen.kernels import build as builder
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.schedules.registry import default
from tests.support.cases.kernels import Case, check_attention, check_step

ROOT = Path(__file__).parents[3]
STEP = Case("trellis_step", lengths=(1, 1), dim_k=4, dim_v=4, slots=4)

CALL = """
import sys, warnings
warnings.simplefilter("always")
import torch, trellis_ops
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
inputs = make_inputs(1, 5, 2, 4, 4, 4)
y, _ = trellis_ops.trellis_attention(*inputs.args, chunk_size=1, implementation="tvm")
compilers = [name for name in ("tvm", "jinja2") if name in sys.modules]
expected, _ = trellis_ops.trellis_attention(*inputs.args, chunk_size=1, implementation="eager")
assert_close(y, expected, 1e-5)
print("imported", *compilers)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    kernel_cache._say_once.cache_clear()
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel on disk, in another folder than the test's, as what was loaded from a path is not loaded again."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("TRELLIS_OPS_CACHE", str(tmp_path_factory.mktemp("whole")))
        return kernel().library


def kernel(case: Case = STEP) -> TvmKernel:
    """The kernel of a step, past everything that this process remembers."""
    schedule = dataclasses.replace(default("tvm", case.spec, cpu()), threads=1)
    return backend("tvm").kernel("memory_step", case.spec, schedule, cpu())


def check(made: TvmKernel, case: Case = STEP) -> None:
    check_step(lambda spec: CompiledOperator(spec, default("tvm", spec, cpu()), cpu(), (made,)), case)


def entries() -> list[Path]:
    return sorted(kernels_folder().glob("*.so"))


def processes(count: int, **environment: str) -> list[str]:
    """What `count` processes that all do `CALL` at once printed."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CALL],
            cwd=ROOT,
            env={**os.environ, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(count)
    ]
    said = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * count, said
    return said


def test_one_entry_serves_every_batch_length_and_number_of_heads():
    for sizes in ({"lengths": (7,)}, {"lengths": (33, 33), "heads": 3}, {"lengths": (1, 20, 5), "packed": True}):
        case = Case(dim_k=8, dim_v=8, slots=8, chunk=16, **sizes)
        shape = {"batch": len(case.lengths), "tokens": max(case.lengths), "heads": case.heads}
        spec = dataclasses.replace(case.spec, problem=dataclasses.replace(case.spec.problem, **shape))
        schedule = dataclasses.replace(default("tvm", spec, cpu()), variant="fused")
        builder._build.cache_clear()
        made = build(spec, schedule, cpu())
        check_attention(lambda _, made=made: made, case)
    (only,) = entries()
    assert only.name.startswith("trellis_fused_")


def test_the_second_process_needs_no_compiler():
    (first,) = processes(1)
    assert "imported tvm jinja2" in first
    shutil.rmtree(render.generated_folder())
    (second,) = processes(1)
    assert second.strip().endswith("imported")
    assert not render.generated_folder().exists()


def test_of_many_processes_one_compiles():
    said = processes(3)
    assert sum("imported tvm" in each for each in said) == 1, said
    assert len(entries()) == 1
    assert list(kernels_folder().glob("*.tmp*")) == []


def test_a_child_that_is_forked_while_a_kernel_is_compiled_does_not_hold_its_lock(monkeypatch):
    monkeypatch.setattr(kernel_cache, "_PATIENCE_SECONDS", 0.2)
    place, (ready, go) = entry("memory_step", ("forked",)), os.pipe()
    with place.locked():
        child = os.fork()
        if child == 0:
            os.read(ready, 1)  # It lives until the parent is done.
            os._exit(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", KernelCacheWarning)
            with place.locked():
                pass
    finally:
        os.write(go, b".")
        assert os.waitpid(child, 0)[1] == 0


def test_an_entry_is_found_again():
    first, second = kernel(), kernel()
    assert first.library == second.library == entries()[0]
    check(first)
    check(second)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, name: b"",
        lambda content, name: content[: len(content) // 2],
        lambda content, name: content[:-1],
        lambda content, name: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        lambda content, name: seal(name, b"", None),
        lambda content, name: b"no library" + seal(name, b"no library", None),
        lambda content, name: content[:-SEAL_BYTES] + seal("another.so", content[:-SEAL_BYTES], None),
    ],
    ids=["empty", "half", "last byte", "one bit", "sealed nothing", "sealed text", "another's name"],
)
def test_a_damaged_entry_is_made_again(damage, whole):
    kernels_folder().mkdir(parents=True)
    place = kernels_folder() / whole.name
    place.write_bytes(damage(whole.read_bytes(), whole.name))
    made = kernel()
    check(made)
    assert made.library == place
    assert place.stat().st_size == whole.stat().st_size


def test_the_identity_has_every_part(tmp_path, monkeypatch):
    def identity(case: Case = STEP, template: str = "memory_step", **changes: object) -> tuple[str, ...]:
        schedule = dataclasses.replace(default("tvm", case.spec, cpu()), **changes)
        return tvm_backend._identity(template, case.spec, schedule, cpu())

    same = identity()
    different = [
        identity(dataclasses.replace(STEP, slots=5)),
        identity(dataclasses.replace(STEP, dtype="float16")),
        identity(dataclasses.replace(STEP, rule=Rule(phi_eps=3e-3))),
        identity(threads=cpu().cores + 1),
        tvm_backend._identity(
            "memory_step", STEP.spec, default("tvm", STEP.spec, cpu()), dataclasses.replace(cpu(), vector_bits=64)
        ),
    ]
    for function, other in (("cpu_identity", "another"), ("_code_digest", "0"), ("toolchain", {"apache-tvm": "0.1"})):
        with monkeypatch.context() as changed:
            changed.setattr(tvm_backend, function, lambda other=other: other)
            different.append(identity())
    copy = tmp_path / "templates"
    shutil.copytree(render.TEMPLATES, copy)
    with (copy / "tvm" / "parts" / "head.j2").open("a") as file:
        file.write("{# another #}\n")
    monkeypatch.setattr(render, "TEMPLATES", copy)
    render.template_digest.cache_clear()
    different.append(identity())
    render.template_digest.cache_clear()
    assert same not in different
    assert len({entry("memory_step", each).path for each in (same, *different)}) == len(different) + 1


def test_the_folder_is_bounded_and_the_oldest_goes(monkeypatch):
    cases = [dataclasses.replace(STEP, slots=slots) for slots in (2, 3, 4)]
    first, second = (kernel(case).library for case in cases[:2])
    for age, path in ((500, first), (1000, second)):
        os.utime(path, (time.time() - age,) * 2)
    assert kernel(cases[1]).library == second  # Used just now, so the first is the oldest.
    monkeypatch.setenv(VARIABLE, str(2.5 * first.stat().st_size / 1e6))
    third = kernel(cases[2])
    check(third, cases[2])
    assert entries() == sorted([second, third.library])


def test_what_dead_processes_left_goes():
    kernels_folder().mkdir(parents=True)
    old, young = kernels_folder() / "a.tmp.so", kernels_folder() / "b.tmp.so"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    kernel()
    assert not old.exists()
    assert young.exists()


def test_the_cache_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(VARIABLE, "0")
    made = kernel()
    check(made)
    assert made.library is None
    assert not kernels_folder().exists()


@pytest.mark.parametrize("value", ["much", "-1", "inf", "nan"])
def test_a_limit_that_is_no_size_is_an_error(monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(SizeError, match=rf"{VARIABLE}='{value}'"):
        kernel()


def test_a_folder_that_cannot_be_written_is_said_once_and_kernels_work(folder):
    folder.mkdir()
    (folder / "kernels").write_text("in the way")
    with pytest.warns(KernelCacheWarning) as said:
        made = kernel()
        check(kernel())
    check(made)
    assert made.library is None
    assert len({str(each.message) for each in said}) == len(said) <= 2
    assert str(folder / "kernels") in str(said[0].message)


def test_no_folder_at_all(tmp_path, monkeypatch):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(in_the_way))
    render._say_not_kept.cache_clear()
    with pytest.warns(UserWarning) as said:
        check(kernel())
    assert {"generated sources", "compiled kernels"} == {" ".join(str(each.message).split()[:2]) for each in said}


def test_without_a_c_compiler_kernels_work(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.warns(KernelCacheWarning, match="no C compiler"):
        made = kernel()
    check(made)
    assert made.library is None
    assert entries() == []


def test_a_c_compiler_that_fails_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.warns(KernelCacheWarning, match="cannot be kept"):
        check(kernel())
    assert list(kernels_folder().glob("*.so")) == []


def test_a_kernel_that_is_there_needs_no_c_compiler(whole, monkeypatch):
    shutil.copytree(whole.parent, kernels_folder())
    monkeypatch.setenv("PATH", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = kernel()
    check(made)
    assert made.library == kernels_folder() / whole.name
