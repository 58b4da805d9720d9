"""What is exported of TVM's kernels for CUDA, against what TVM itself makes of them."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import pytest

from codegen.backends.tvm_cuda import nvcc
from codegen.cache import ownership
from codegen.device import NAMED
from codegen.errors import BackendUnavailableError, ExportError, IllegalScheduleError
from codegen.kernels.build import parts
from codegen.kernels.exports.export import export
from codegen.kernels.exports.exported import MANIFEST, Manifest, described, image_of, operator_of_export, read_manifest
from codegen.rule import Rule
from codegen.rules import NAMED as NAMED_RULES
from codegen.schedules.cuda_block import block_of
from codegen.schedules.registry import default
from codegen.spec import OPERATORS, Problem, Spec
from tests.emulators.emulated_cuda import signature
from tests.emulators.tvm_host import both_launches

HOPPER = NAMED["sm_90"]
PREFILL = Spec(Rule(), Problem(dtype="bfloat16"))
SIZES = [
    {"tokens": b * t, "heads": h, "sequences": b, "offsets": b + 1, "chunks": b * c, "most_chunks": c, "programs": p}
    for b, t, c, h, p in ((1, 1, 1, 1, 1), (3, 70, 2, 5, 15), (2, 129, 3, 7, 42), (8, 64, 1, 16, 128))
]


@pytest.fixture(scope="module")
def prefill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "prefill"
    export(PREFILL, default("tvm", PREFILL, HOPPER), HOPPER, folder)
    return folder


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """A process in which TVM may be told that there is a card."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as started:
        yield started


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("rule", [Rule(), Rule(step_size="token")], ids=["step_size per head", "step_size per token"])
def test_a_plan_launches_what_tvm_launches(operator, rule, process):
    spec = Spec(rule, Problem(operator, dtype="bfloat16"))
    compared = process.submit(both_launches, spec, SIZES).result()
    assert len(compared) % len(SIZES) == 0
    for of_tvm, of_plan in compared:
        assert of_plan == of_tvm


def test_a_plan_has_the_parameters_of_the_source_and_the_memory_of_the_block(prefill):
    manifest = read_manifest(prefill)
    spec, schedule = described(prefill, manifest)
    for part, (kernel, problem) in zip(manifest.parts, parts(spec, schedule), strict=True):
        threads, name, declared = signature((prefill / f"{part.file}.cu").read_text())
        assert part.plan.function == name
        assert part.plan.block == (int(threads), 1, 1) == (schedule.threads, 1, 1)
        assert [each.split()[-1].removesuffix("_ptr") for each in declared.split(",")] == list(part.plan.passed)
        block = block_of(kernel, problem.problem, schedule)
        assert part.plan.shared_bytes == block.shared_bytes


def test_an_export_says_what_it_is_and_is_small(prefill):
    manifest = read_manifest(prefill)
    spec, schedule = described(prefill, manifest)
    assert (spec, schedule) == (PREFILL, default("tvm", PREFILL, HOPPER))
    assert [part.kernel for part in manifest.parts] == ["memory_update", "memory_update", "memory_readout"]
    assert manifest.parts[0] == manifest.parts[1]
    assert "apache-tvm" in manifest.toolchain
    assert sum(path.stat().st_size for path in prefill.iterdir()) < 300_000


@pytest.mark.skipif(not nvcc.is_here(), reason="nvcc is not installed")
def test_machine_code_is_there_where_nvcc_is_and_else_made_from_the_source(prefill, tmp_path):
    manifest = read_manifest(prefill)
    assert "nvcc" in manifest.toolchain
    for part in manifest.parts:
        assert (prefill / f"{part.file}.cubin").read_bytes().startswith(b"\x7fELF")
    part = manifest.parts[0]
    (copy := tmp_path / "copy").mkdir()
    shutil.copy(prefill / f"{part.file}.cu", copy)
    assert image_of(copy, part, manifest.arch).startswith(b"\x7fELF")


def test_without_nvcc_the_source_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "is_here", lambda: False)
    spec = Spec(Rule(), Problem("trellis_step", chunk=1))
    manifest = export(spec, default("tvm", spec, HOPPER), HOPPER, tmp_path)
    (part,) = manifest.parts
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, f"{part.file}.cu"}
    with pytest.raises(BackendUnavailableError, match="comes with the CUDA toolkit"):
        image_of(tmp_path, part, manifest.arch)


def test_an_export_replaces_the_one_before_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "is_here", lambda: False)
    (tmp_path / "notes.cu").write_text("mine")
    for dtype in ("float32", "float16"):
        spec = Spec(Rule(), Problem("trellis_step", chunk=1, dtype=dtype))
        manifest = export(spec, default("tvm", spec, HOPPER), HOPPER, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {MANIFEST, "notes.cu", f"{manifest.parts[0].file}.cu"}


def test_two_exports_of_one_program_are_the_same(prefill, tmp_path):
    assert (
        export(PREFILL, default("tvm", PREFILL, HOPPER), HOPPER, tmp_path).digest() == read_manifest(prefill).digest()
    )


def changed(prefill: Path, tmp_path: Path, **changes: object) -> Path:
    shutil.copytree(prefill, tmp_path / "copy")
    manifest = msgspec.structs.replace(read_manifest(prefill), **changes)
    (tmp_path / "copy" / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"version": 2}, "version 2, not 1"), ({"spec": "x"}, "no key of a spec"), ({"backend": "x"}, "no known backend")],
)
def test_what_this_version_does_not_know_is_refused(prefill, tmp_path, changes, reason):
    folder = changed(prefill, tmp_path, **changes)
    with pytest.raises(ExportError, match=reason):
        described(folder, read_manifest(folder))


def test_a_folder_without_a_manifest_and_a_changed_source_are_refused(prefill, tmp_path):
    with pytest.raises(ExportError, match="No such file"):
        operator_of_export(tmp_path)
    folder = changed(prefill, tmp_path)
    (part, *_) = read_manifest(folder).parts
    (folder / f"{part.file}.cu").write_text("// other")
    with pytest.raises(ExportError, match="not the source that the manifest describes"):
        image_of(folder, part, "sm_90")


def test_without_a_gpu_it_says_so(prefill):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BackendUnavailableError, match="sees no GPU"):
        operator_of_export(prefill)


@pytest.mark.parametrize(
    ("problem", "variant"),
    [
        (Problem("memory_attention", chunk=1), "recurrence"),
        (Problem("memory_attention", chunk=1, direction="backward"), "recurrence_backward"),
        (Problem("memory_step", tokens=1, chunk=1), "recurrence"),
    ],
    ids=["attention", "backward", "step"],
)
def test_an_operator_of_any_rule_is_refused_by_its_variant(tmp_path, problem, variant):
    spec = Spec(NAMED_RULES["titans"].rule, problem)
    with pytest.raises(IllegalScheduleError, match=f"for CUDA there are TVM templates of .* not of '{variant}'"):
        export(spec, default("tvm", spec, HOPPER), HOPPER, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_what_has_no_kernel_is_not_exported(tmp_path):
    spec = Spec(Rule(), Problem(direction="backward"))
    with pytest.raises(IllegalScheduleError):
        export(spec, default("tvm", spec, HOPPER), HOPPER, tmp_path)


HOSTILE = ["../victim", "/victim", "a/b", "..", "a\\b", "a\0b", "a.b", "a\n", "", "a" * 200, "\u00e9", "-o"]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("field", ["file", "arch", "function"])
def test_names_of_a_manifest_hold_nothing_but_letters_and_digits(prefill, tmp_path, field, name, monkeypatch):
    manifest = read_manifest(prefill)
    part, *others = manifest.parts
    if field == "function":
        part = msgspec.structs.replace(part, plan=msgspec.structs.replace(part.plan, function=name))
    elif field == "file":
        part = msgspec.structs.replace(part, file=name)
    changes = {"arch": name} if field == "arch" else {"parts": (part, *others)}
    folder = changed(prefill, tmp_path, **changes)
    for suffix in (".cu", ".cubin"):
        (tmp_path / f"victim{suffix}").write_text("mine")
    with pytest.raises(ExportError, match=r"matching regex|length <= 128|length >= "):
        read_manifest(folder)
    # What is there by such a name belongs to no earlier export.
    monkeypatch.setattr(nvcc, "is_here", lambda: False)
    spec = Spec(Rule(), Problem("trellis_step", chunk=1))
    if (field, name) == ("file", "../victim"):
        export(spec, default("tvm", spec, HOPPER), HOPPER, folder)
    assert [(tmp_path / f"victim{suffix}").read_text() for suffix in (".cu", ".cubin")] == ["mine", "mine"]


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"[" * 100_000, b"{" * 10, b"", b'{"version": 1}', b'{"version": ' + b"9" * 5_001 + b"}"],
    ids=["no UTF-8", "nested", "half", "empty", "fields missing", "a long number"],
)
def test_a_damaged_manifest_is_refused(tmp_path, content):
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(ExportError, match=MANIFEST):
        read_manifest(tmp_path)


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and permissions as POSIX has them")
@pytest.mark.parametrize(
    "make", [pipe, Path.mkdir, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "folder", "device"]
)
def test_what_is_no_file_is_refused_and_does_not_hang(prefill, tmp_path, make):
    folder = changed(prefill, tmp_path)
    part = read_manifest(folder).parts[0]
    for name in (f"{part.file}.cubin", f"{part.file}.cu", MANIFEST):
        (folder / name).unlink(missing_ok=True)
        make(folder / name)
        with pytest.raises(ExportError, match=r"no regular file|can be written by everyone"):
            image_of(folder, part, "sm_90") if name != MANIFEST else read_manifest(folder)


def test_a_source_that_is_no_text_is_refused(prefill, tmp_path):
    folder = changed(prefill, tmp_path)
    part = read_manifest(folder).parts[0]
    (folder / f"{part.file}.cu").write_bytes(b"\xff\xfe")
    with pytest.raises(ExportError, match="not the source that the manifest describes"):
        image_of(folder, part, "sm_90")


@pytest.mark.skipif(sys.platform == "win32", reason="permissions as POSIX has them")
def test_what_others_may_write_is_refused_and_whose_it_is_is_for_the_user_to_know(prefill, tmp_path):
    folder = changed(prefill, tmp_path)
    part = read_manifest(folder).parts[0]
    (folder / f"{part.file}.cubin").write_bytes(b"machine code")
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, 54_321, 54_321)
    assert image_of(folder, part, "sm_90") == b"machine code"
    for path in (folder / f"{part.file}.cubin", folder / f"{part.file}.cu", folder):
        before = path.stat().st_mode
        path.chmod(0o777)
        with pytest.raises(ExportError, match=r"can be written by everyone.*chmod go-w"):
            image_of(folder, part, "sm_90")
        path.chmod(before)
    folder.chmod(0o777)
    with pytest.raises(ExportError, match="can be written by everyone"):
        read_manifest(folder)


def test_an_export_that_is_interrupted_leaves_the_one_before_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "is_here", lambda: False)
    spec = Spec(Rule(), Problem("trellis_step", chunk=1))
    before = export(spec, default("tvm", spec, HOPPER), HOPPER, tmp_path)
    other = Spec(Rule(), Problem("trellis_step", chunk=1, dtype="float16"))
    write = ownership.write_own

    def interrupted(path: Path, content: bytes) -> None:
        if path.name == MANIFEST:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("codegen.kernels.exports.export.write_own", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(other, default("tvm", other, HOPPER), HOPPER, tmp_path)
    assert read_manifest(tmp_path) == before
    assert (tmp_path / f"{before.parts[0].file}.cu").exists()


def test_a_link_in_place_of_a_file_is_replaced_and_its_target_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(nvcc, "is_here", lambda: False)
    (tmp_path / "victim").write_text("mine")
    spec = Spec(Rule(), Problem("trellis_step", chunk=1))
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / MANIFEST).symlink_to(tmp_path / "victim")
    export(spec, default("tvm", spec, HOPPER), HOPPER, folder)
    assert (tmp_path / "victim").read_text() == "mine"
    assert read_manifest(folder).spec == spec.key()


def test_a_manifest_survives_the_file(prefill):
    manifest = read_manifest(prefill)
    assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest
