"""A run learns, by its schedule, with every mixer and tokenizer; what it leaves behind can be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from codegen.errors import SizeError
from tests.trellis_ops.lm.train.commands import SMALL, TEXT
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.train import summary
from trellis_ops.lm.train.cli import main
from trellis_ops.lm.train.curve import read
from trellis_ops.lm.train.loop import product_type
from trellis_ops.lm.train.options.schedule import rate_share
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.train.saving.checkpoint import load, load_model
from trellis_ops.lm.train.softmax import SoftmaxLM

pytestmark = pytest.mark.usefixtures("eager")


def train(folder: Path, *options: str) -> float:
    """Bits per byte of the held-out text after a run with `options`."""
    (folder / "text.txt").write_bytes(TEXT)
    main([str(folder / "text.txt"), "--folder", str(folder / "run"), *SMALL, *options])
    bits = json.loads((folder / "run" / "summary.json").read_text())["bits_per_byte"]
    assert isinstance(bits, float)
    return bits


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--init-step-size", "0.02"], TrellisLM),
        (["--phi", "identity", "--no-carry"], TrellisLM),
        (["--mixer", "softmax"], SoftmaxLM),
        (["--tokenizer", "bpe", "--vocab", "280", "--precision", "bfloat16"], TrellisLM),
    ],
    ids=["memory", "gated delta rule", "softmax", "bpe"],
)
def test_a_run_learns(options: list[str], kind: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--steps", "40", *options) < 3.5
    rows = read(tmp_path / "run" / "curve.csv")
    assert rows[-1].bits_per_byte < rows[0].bits_per_byte - 1.5
    assert [row.step for row in rows if row.held_out is not None] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert "step 40 of 40" in capsys.readouterr().out
    model = load_model(tmp_path / "run" / "checkpoint.safetensors")
    assert isinstance(model, kind)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_the_seed_decides(tmp_path: Path) -> None:
    found = []
    for index, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(index)
        folder.mkdir()
        found.append(train(folder, "--steps", "4", "--seed", str(seed)))
    assert found[0] == found[1] != found[2]


def test_outer_gradients_differ_and_the_forward_does_not(tmp_path: Path) -> None:
    rows = []
    for name in ("bilevel", "first_order"):
        (tmp_path / name).mkdir()
        train(tmp_path / name, "--steps", "2", "--outer-gradient", name)
        rows.append(read(tmp_path / name / "run" / "curve.csv"))
        assert load(tmp_path / name / "run" / "checkpoint.safetensors").config["outer_gradient"] == name
    assert rows[0][0].bits_per_byte == rows[1][0].bits_per_byte
    assert rows[0][0].gradient_norm != rows[1][0].gradient_norm


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="lower the learning rate"):
        train(tmp_path, "--steps", "40", "--learning-rate", "1e30", "--clip", "1e30")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_the_schedule_rises_and_falls() -> None:
    shares = [rate_share(step, 100, warmup=10, final=0.1) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == pytest.approx(1.0, abs=0.03)
    assert shares[:10] == sorted(shares[:10])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] == pytest.approx(0.1, abs=0.01)


def test_products_are_lowered_only_where_that_is_asked_for_or_fast() -> None:
    cpu = torch.device("cpu")
    assert product_type("auto", cpu) is None
    assert product_type("bfloat16", cpu) == torch.bfloat16
    assert product_type("float32", torch.device("cuda")) is None


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(SizeError, match=r"held_out=1\.0 is out of range"):
        Settings(held_out=1.0)
    with pytest.raises(SizeError, match="steps=0 is out of range"):
        Settings(steps=0)
    with pytest.raises(ValueError, match="mixer='linear' is not known; choose one of: trellis, softmax"):
        Settings(mixer="linear")


def test_a_table_puts_the_seeds_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, bits in ((1, 2.5), (0, 2.3)):
        one = summary.Summary("phi = identity, M = 8, C = 1", seed, 1000, 10, 500, bits, 3.0, 1)
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "summary.json").write_text(json.dumps(vars(one)))
    summary.main([str(tmp_path / "0"), str(tmp_path / "1"), str(tmp_path / "2")])
    printed = capsys.readouterr().out
    assert "| phi = identity, M = 8, C = 1 | 1,000 | 10 | 2.400 ± 0.141 | 2.300, 2.500 | 3 s |" in printed
    assert f"not done: {tmp_path / '2'}" in printed


def test_runs_on_different_texts_are_no_seeds_of_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("one", TEXT), ("two", TEXT[::-1])):
        (tmp_path / f"{name}.txt").write_bytes(text)
        for seed in ("0", "1"):
            run = tmp_path / f"{name}-{seed}"
            main([str(tmp_path / f"{name}.txt"), "--folder", str(run), *SMALL, "--steps", "1", "--seed", seed])
    capsys.readouterr()
    folders = [str(tmp_path / f"{name}-{seed}") for name in ("one", "two") for seed in (0, 1)]
    summary.main(folders)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0].partition(", on ")[2].partition(" (")[0] for row in rows] == [
        str(tmp_path / "one.txt"),
        str(tmp_path / "two.txt"),
    ]
    assert all("±" in row for row in rows)
    summary.main(folders[:2])
    assert ", on " not in capsys.readouterr().out


def test_summaries_that_are_older_stay_one_row() -> None:
    older = [summary.Summary("softmax attention", seed, 1000, 10, 500, 2.5, 3.0, 1) for seed in (0, 1)]
    newer = summary.Summary("softmax attention", 0, 1000, 10, 500, 2.5, 3.0, 1, "0123456789abcdef", "kjv.txt")
    assert summary.table(older).count("\n") == 2
    rows = summary.table([*older, newer]).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| softmax attention, on a text that is not on record",
        "| softmax attention, on kjv.txt (01234567)",
    ]


def test_an_unknown_outer_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="outer_gradient='none' is not known"):
        TrellisConfig(outer_gradient="none")
