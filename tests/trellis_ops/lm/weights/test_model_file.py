"""The file of a model: whole or not there, known by its digest, and only data."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from codegen.errors import FileWriteError, IrregularFileError
from tests.trellis_ops.limited_files import limited_files
from tests.trellis_ops.lm.small_models import make_model
from trellis_ops.errors import ModelFileError
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.weights import model_file

pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_model().save(tmp_path / "model.pt")
    return tmp_path / "model.pt"


def same(found: TrellisLM, expected: TrellisLM) -> bool:
    weights = expected.state_dict()
    return all(torch.equal(tensor, weights[name]) for name, tensor in found.state_dict().items())


def test_a_flipped_bit_is_found(saved: Path, tmp_path: Path) -> None:
    weights, whole, draw = make_model().state_dict(), saved.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        saved.write_bytes(damaged)
        try:
            # What the archive does not need, such as padding, may be damaged.
            _, found = model_file.load(saved)
            assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
        except ModelFileError:
            refused += 1
    assert refused > 160


def test_a_file_that_is_cut_short_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for kept in (0, 1, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        saved.write_bytes(whole[:kept])
        with pytest.raises(ModelFileError, match=r"model\.pt holds no model that TrellisLM\.save wrote"):
            TrellisLM.load(saved)


def test_a_save_that_fails_leaves_the_old_model(saved: Path) -> None:
    before = saved.read_bytes()
    with limited_files(10_000), pytest.raises(FileWriteError, match=r"model\.pt: .*File too large.* kept\. Free space"):
        make_model(layers=3).save(saved)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == ["model.pt"]


def test_a_pipe_in_its_place_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(IrregularFileError, match="a named pipe"):
        TrellisLM.load(tmp_path / "model.pt")
    with pytest.raises(IrregularFileError, match="a named pipe"):
        make_model().save(tmp_path / "model.pt")


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("planted",)


def changed(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["weights"][name] = value

    return change


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda content: content["weights"].pop("norm.weight"), "norm.weight is missing"),
        (changed("more", torch.ones(1)), "more is no weight"),
        (changed("norm.weight", torch.ones(33)), r"norm.weight has shape \[33\], expected \[32\]"),
        (changed("norm.weight", torch.ones(32, dtype=torch.int32)), "norm.weight has dtype torch.int32"),
        (lambda content: content["config"].update(width=31), "width=31"),
        (lambda content: content["config"].update(wdith=32), "wdith"),
        (lambda content: content.update(weights=[]), "its weights are something else"),
        (lambda content: content.pop("config"), "other content"),
        (lambda content: content.update(version=2), "other content"),
        (lambda content: content["config"].update(rule="of the future"), "of the future"),
        (lambda content: content.update(planted=Planted()), "plain data"),
    ],
    ids=[
        "missing",
        "too much",
        "shape",
        "integers",
        "size",
        "field",
        "list",
        "no configuration",
        "version",
        "rule",
        "code",
    ],
)
def test_what_no_save_wrote_is_refused_by_name(
    change: Callable[[dict[str, Any]], None], part: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parent)
    content = torch.load(saved, weights_only=True)
    # As a version without digests wrote it.
    del content["sha256"]
    torch.save(content, saved)
    assert same(TrellisLM.load(saved), make_model())
    change(content)
    torch.save(content, saved)
    with pytest.raises(ModelFileError, match=part):
        TrellisLM.load(saved)
    assert not Path("planted").exists()
