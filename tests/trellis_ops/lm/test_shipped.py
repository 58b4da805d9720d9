"""The model that is installed with the package, and the command that made it of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.installed import ROOT
from trellis_ops.errors import UnknownModelError
from trellis_ops.generate import cli
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.demo import bits_per_byte
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.shipped import SHIPPED, export, load_shipped, models
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.train.saving.checkpoint import Checkpoint, save
from trellis_ops.lm.train.softmax import SoftmaxLM
from trellis_ops.lm.weights import model_file

pytestmark = pytest.mark.usefixtures("eager")

VERSE = b"And God said, Let there be light: and there was light. And God saw the light, that it was good."


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_small_and_has_learned_its_text(name):
    path = Path(models.__file__).with_name(SHIPPED[name])
    assert path.stat().st_size <= 2_000_000
    _, weights = model_file.load(path)
    assert {each.dtype for each in weights.values()} == {torch.bfloat16}
    model = load_shipped(name)
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    assert load_shipped(name, dtype=torch.bfloat16).embedding.weight.dtype == torch.bfloat16
    assert bits_per_byte(model, torch.tensor(list(VERSE))) < 2.0


def test_a_name_that_is_not_shipped_is_refused():
    with pytest.raises(UnknownModelError, match=r"'kjv' is no model that is shipped, .* one of: kjv-bytes"):
        load_shipped("kjv")


def test_it_writes_text_without_a_package_of_any_extra(tmp_path):
    extras = ("tokenizers", "safetensors", "matplotlib", "rich", "transformers", "optuna", "yaml")
    lines = ["import sys", *(f"sys.modules[{package!r}] = None" for package in extras)]
    (tmp_path / "sitecustomize.py").write_text("\n".join(lines))
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "TRELLIS_OPS_IMPLEMENTATION": "eager"}
    command = [sys.executable, "-W", "ignore", "-m", "trellis_ops.generate", "In the beginning", "--tokens", "8"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("In the beginning") and len(done.stdout) == 16 + 8 + 1


@pytest.fixture
def run(tmp_path: Path):
    """What `run(...)` writes is the folder of a run that has not trained its model."""

    def written(**changes) -> Path:
        torch.manual_seed(0)
        config = TrellisConfig(vocab_size=256, layers=1, width=16, heads=1, num_slots=8, chunk_size=4)
        settings = Settings(length=16, held_out=0.5, mixer=changes.pop("mixer", "trellis"))
        model = TrellisLM(config) if settings.mixer == "trellis" else SoftmaxLM(config, settings.length)
        plain = {"step": 0, "config": config.to_dict(), "settings": settings.to_dict(), "tokenizer": "", "text": "none"}
        groups = {"weights": model.state_dict(), "optimizer": {}, "carried": {}, "random": {}}
        (tmp_path / "run").mkdir()
        save(Checkpoint(**{**plain, "seconds": 0.0, **groups, **changes}), tmp_path / "run" / "checkpoint.safetensors")
        return tmp_path / "run"

    return written


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_run_is_exported_and_measured_on_what_it_held_out(dtype, run, tmp_path, capsys):
    folder, out, text = run(), tmp_path / "model.pt", tmp_path / "text.txt"
    text.write_bytes(VERSE)
    export.main([str(folder), "--dtype", dtype, "--out", str(out), "--text", str(text)])
    model = TrellisLM.load(out)
    expected = export.trained_model(folder).to(export.DTYPES[dtype])
    for mine, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert mine.dtype == export.DTYPES[dtype] and torch.equal(mine, other)
    bits = bits_per_byte(model.float(), torch.tensor(list(VERSE[-(len(VERSE) // 2) :])))
    parameters, size = f"{model.count_parameters():,} parameters", f"{out.stat().st_size:,} bytes"
    held_out = f"{text}: {bits:.4f} bits per byte of the last {len(VERSE) // 2} bytes, held out"
    assert capsys.readouterr().out.splitlines() == [f"{out}: {parameters}, {size}", held_out]


def test_the_folder_of_a_run_is_a_model_to_write_with(run, capsys):
    folder = run()
    cli.main(["Slots", "--model", str(folder), "--tokens", "4"])
    assert capsys.readouterr().out.startswith("Slots")


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"mixer": "softmax"}, [], "its model is softmax attention, which TrellisLM.load does not read"),
        ({"tokenizer": "{}"}, ["--text", "text.txt"], "its tokens are not bytes; leave out --text"),
        ({}, ["--text", "missing.txt"], "missing.txt does not exist"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(changes, options, said, run, tmp_path):
    folder, out = run(**changes), tmp_path / "model.pt"
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        export.main([str(folder), "--out", str(out), *options])
    assert not out.exists()


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*No such file .*checkpoint\.safetensors"):
        export.main([str(tmp_path), "--out", str(tmp_path / "model.pt")])
