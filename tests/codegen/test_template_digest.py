"""The digest of templates: what a pattern finds in them is what Jinja would find, and any change to it counts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jinja2.meta
import pytest

from codegen import render
from codegen.device import NAMED
from codegen.render import TEMPLATES, template_digest
from codegen.schedules.triton import TritonSchedule
from codegen.schedules.tvm import TvmSchedule
from tests.test_imports import ROOT, imported

GOLDEN = ROOT / "tests" / "golden"
NAMES = sorted(str(path.relative_to(TEMPLATES)) for path in TEMPLATES.rglob("*.j2"))


def _forget() -> None:
    template_digest.cache_clear()
    render._of_python.cache_clear()


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    copy = tmp_path / "templates"
    shutil.copytree(TEMPLATES, copy)
    monkeypatch.setattr(render, "TEMPLATES", copy)
    _forget()
    yield copy
    _forget()


@pytest.mark.parametrize("name", NAMES)
def test_the_pattern_finds_what_jinja_finds(name):
    tree = render._environment().parse((TEMPLATES / name).read_text())
    assert sorted(render._referenced(name)) == sorted(jinja2.meta.find_referenced_templates(tree))


@pytest.mark.parametrize(
    "text",
    [
        '{% import "a.j2" as a %}',
        "{%- from 'a.j2' import b with context -%}",
        '{%+ include "a.j2" ignore missing %}',
        '{% extends\n  "a.j2" %}',
    ],
)
def test_every_way_to_name_a_template(text, templates):
    (templates / "own.j2").write_text(text)
    assert render._referenced("own.j2") == ["a.j2"]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("tvm/memory_step.py.j2", True),
        ("tvm/parts/head.j2", True),
        ("tvm/parts/spans.j2", False),
        ("tvm_cuda/memory_step.py.j2", True),
        ("tvm/trellis_fused.py.j2", False),
        ("triton/parts/maps.j2", False),
    ],
)
def test_a_change_counts_where_it_is_imported(name, counts, templates):
    before = template_digest(TvmSchedule, ("memory_step",))
    with (templates / name).open("a") as file:
        file.write("{# a remark #}\n")
    _forget()
    assert (template_digest(TvmSchedule, ("memory_step",)) != before) is counts


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("derive.py", True),
        ("registry.py", True),
        ("emit/tvm.py", True),
        ("emit/tvm_reverse.py", True),
        ("emit/triton.py", False),
        ("emit/pytorch.py", False),
    ],
)
def test_a_change_of_what_writes_maps_counts_for_its_backend(name, counts, tmp_path, monkeypatch):
    copy = tmp_path / "maps"
    shutil.copytree(render.MAPS, copy)
    monkeypatch.setattr(render, "MAPS", copy)
    _forget()
    before = template_digest(TvmSchedule, ("memory_step",))
    with (copy / name).open("a") as file:
        file.write("# a remark\n")
    _forget()
    assert (template_digest(TvmSchedule, ("memory_step",)) != before) is counts
    _forget()


def test_a_change_counts_that_keeps_size_and_time(templates):
    changed = templates / "tvm" / "memory_step.py.j2"
    before, found = template_digest(TvmSchedule, ("memory_step",)), changed.stat()
    text = changed.read_text()
    changed.write_text(text[:-2] + "~" + text[-1])
    os.utime(changed, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert changed.stat().st_size == found.st_size
    _forget()
    assert template_digest(TvmSchedule, ("memory_step",)) != before


def test_a_template_that_does_not_parse_has_a_digest(templates):
    before = template_digest(TvmSchedule, ("memory_step",))
    (templates / "tvm" / "parts" / "head.j2").write_text("{% if %}")
    _forget()
    assert template_digest(TvmSchedule, ("memory_step",)) != before


CODEGEN = Path(render.__file__).parent
OWN_PYTHON = ["schedules/tvm_fields.py", "schedules/cuda_block.py"]
EMIT = sorted(str(path.relative_to(CODEGEN)) for path in (CODEGEN / "backends" / "tvm" / "emit").rglob("*.py"))


@pytest.mark.parametrize("name", [*OWN_PYTHON, *EMIT])
def test_a_change_of_a_backend_s_own_python_counts_for_it_alone(name, tmp_path, monkeypatch):
    other = template_digest(TritonSchedule, ("memory_step",))
    before = template_digest(TvmSchedule, ("memory_step",))
    changed = tmp_path / Path(name).name
    changed.write_text((CODEGEN / name).read_text() + "# a remark\n")
    emitters = [changed if path == CODEGEN / name else path for path in TvmSchedule.emitters]
    monkeypatch.setattr(TvmSchedule, "emitters", tuple(emitters))
    _forget()
    assert template_digest(TvmSchedule, ("memory_step",)) != before
    assert template_digest(TritonSchedule, ("memory_step",)) == other
    _forget()


@pytest.mark.parametrize("path", sorted(GOLDEN.rglob("tvm*/*.py.txt")), ids=lambda path: path.name)
def test_what_a_generated_module_imports_of_this_package_is_in_its_digest(path):
    names = [name for name in imported(path.read_text(), "generated") if name.startswith("codegen")]
    files = [ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names]
    assert names
    # Those of layers are in the digest of their kernels alone.
    folders = {"tvm.layer": render.LAYER, "tvm.glue": render.GLUE}
    text = path.read_text()
    of_layers = [file for name, own in folders.items() if name in text for each in own for file in each.glob("*.py")]
    assert [file for file in files if file not in (*TvmSchedule.emitters, *of_layers)] == []


def test_what_emits_layers_is_in_the_digest_of_their_kernels_alone(monkeypatch, tmp_path):
    before = {kernel: template_digest(TvmSchedule, (kernel,)) for kernel in ("block_step", "memory_step")}
    (tmp_path / "more.py").write_text("MORE = 1\n")
    monkeypatch.setattr(render, "LAYER", (*render.LAYER, tmp_path))
    _forget()
    assert template_digest(TvmSchedule, ("block_step",)) != before["block_step"]
    assert template_digest(TvmSchedule, ("memory_step",)) == before["memory_step"]
    _forget()


def test_the_kernels_of_one_backend_for_two_devices_have_two_digests():
    on_cpu, on_cuda = (template_digest(TvmSchedule, ("memory_step",), NAMED[name]) for name in ("x86-64-v3", "sm_90"))
    assert len({on_cpu, on_cuda, template_digest(TvmSchedule, ("memory_step",))}) == 3  # Without a device, of both.
