"""Every number on a command line at its ends: it runs, or is refused with its name and what it may be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from codegen.errors import SizeError
from tests.trellis_ops.lm.train.commands import SMALL, TEXT
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.mixer import TrellisMixer
from trellis_ops.lm.train import compare, summary
from trellis_ops.lm.train.cli import main
from trellis_ops.lm.train.data.lanes import Corpus, Lanes
from trellis_ops.lm.train.errors import OutOfMemoryError, WorkerLostError
from trellis_ops.lm.train.options import ranges as option_ranges
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.train.processes.memory import memory_limits
from trellis_ops.lm.train.processes.workers import pool

pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_bytes(TEXT)
    return [str(tmp_path / "text.txt"), "--folder", str(tmp_path / "run"), *SMALL, "--steps", "1"]


REFUSED_BY_THE_PARSER = [
    ("--save-every", "0"),
    ("--save-every", "-1"),
    ("--save-every", "1e3"),
    ("--threads", "0"),
    ("--threads", "-1"),
    ("--threads", "100000"),
    ("--slots", "many"),
    ("--steps", "9" * 5000),
]
REFUSED = [
    *((f"--{name}", value) for name in ("steps", "batch", "length", "warmup") for value in ("0", "-1", "1" + "0" * 30)),
    *((f"--{name}", value) for name in ("eval-every", "eval-tokens", "vocab") for value in ("0", "-1", "1" + "0" * 30)),
    *((f"--{name}", value) for name in ("learning-rate", "clip") for value in ("nan", "inf", "-inf", "-1", "0")),
    *((f"--{name}", value) for name in ("weight-decay", "final-rate") for value in ("nan", "inf", "-1")),
    *(("--held-out", value) for value in ("nan", "0", "1", "-1")),
    *(("--seed", value) for value in (str(2**63), str(-(2**63) - 1), "1" + "0" * 30)),
    *((f"--{name}", value) for name in ("phi-eps", "init-step-size") for value in ("nan", "inf", "-1", "0")),
    *(("--init-decay", value) for value in ("nan", "0", "1", "-1")),
    *((f"--{name}", value) for name in ("layers", "width", "heads") for value in ("0", "-1", "1" + "0" * 30)),
    *(("--slots", value) for value in ("0", "-1", "1" + "0" * 30)),
    *(("--chunk-size", value) for value in ("0", "-1")),
]


@pytest.mark.parametrize(("option", "value"), REFUSED_BY_THE_PARSER)
def test_what_the_parser_refuses(
    option: str, value: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*command, option, value])
    assert f"error: argument {option}" in capsys.readouterr().err.splitlines()[-1]


def test_what_is_out_of_range_is_refused_by_its_name(command: list[str], tmp_path: Path) -> None:
    names = {"slots": "num_slots"}
    for option, value in REFUSED:
        name = names.get(option[2:], option[2:].replace("-", "_"))
        with pytest.raises(SystemExit, match=rf"^error: {name}=.* is out of range; expected ") as refused:
            main([*command, f"{option}={value}"])
        assert len(str(refused.value.code)) < 300
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("device", "part"),
    [
        ("nosuch", "device 'nosuch': torch knows no such device; give cpu, cuda"),
        ("", "device '': torch knows no such"),
        ("meta", "device 'meta': training knows processors and GPUs only"),
        ("cuda:99", r"device 'cuda:99': \d+ GPUs are visible to torch, and cuda:99 is none of them"),
    ],
)
def test_a_device_that_is_not_there_is_named(device: str, part: str, command: list[str]) -> None:
    with pytest.raises(SystemExit, match=f"error: {part}"):
        main([*command, "--device", device])


@pytest.mark.parametrize(
    "options",
    [
        ["--seed", str(2**63 - 1)],
        ["--seed", str(-(2**63))],
        ["--learning-rate", "1e-320", "--final-rate", "0", "--weight-decay", "0"],
        ["--init-step-size", "1e6", "--init-decay", "1e-37"],
        ["--save-every", "2147483647", "--eval-every", "2147483647", "--warmup", "2147483647"],
    ],
    ids=" ".join,
)
def test_the_ends_run(options: list[str], command: list[str], tmp_path: Path) -> None:
    main([*command, *options])
    assert (tmp_path / "run" / "summary.json").exists()


def test_settings_are_whole_numbers() -> None:
    for value in (True, 2.0, "2", None):
        with pytest.raises(SizeError, match=r"batch=.* expected an int from 1 to"):
            Settings(batch=value)
    with pytest.raises(SizeError, match=r"batch \* length=4096 \* 8192 .* at most 16777216 tokens in a step"):
        Settings(batch=4096, length=8192)


def test_seeds_that_ran_before_see_the_same_windows() -> None:
    corpus = Corpus(torch.arange(60, dtype=torch.int32), (20, 20, 20))
    for seed in (0, 7, -1, 10**9):
        numbers = torch.Generator().manual_seed(seed * 1_000_003 * 7_919 + 17)
        order = torch.randperm(3, generator=numbers).tolist()
        turn = int(torch.randint(6, (), generator=numbers))
        starts = [20 * document + offset for document in order for offset in (0, 10)]
        first = Lanes(corpus, 1, 10, seed).batch(0).tokens[0, 0]
        assert int(first) == starts[-turn % 6]
    assert Lanes(corpus, 1, 10, 2**63 - 1).batch(0).tokens.shape == (1, 10)


def test_step_sizes_begin_where_the_configuration_says_at_both_ends() -> None:
    for step_size in (1e-30, 1e-3, 39.0, 41.0, 800.0, 1e30):
        config = TrellisConfig(
            vocab_size=4, layers=1, width=8, heads=1, num_slots=4, chunk_size=4, init_step_size=step_size
        )
        found = torch.nn.functional.softplus(TrellisMixer(config).step_size)
        torch.testing.assert_close(found, torch.full((1,), step_size), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("sizes", [{"layers": 10**6}, {"width": 2**21}, {"mlp_ratio": 1e30}, {"vocab_size": 2**40}])
def test_sizes_that_nothing_could_hold_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(SizeError, match=f"{next(iter(sizes))}="):
        TrellisConfig(**sizes)


def test_memory_that_there_is_not_is_an_error_that_says_what_to_do() -> None:
    for size in (2**50, 2**62):
        with pytest.raises(OutOfMemoryError, match=r"not enough memory .* make the model, --batch or"), memory_limits():
            torch.empty(size)
    for problem in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(OutOfMemoryError), memory_limits():
            raise problem
    with pytest.raises(RuntimeError, match="another"), memory_limits():
        raise RuntimeError("another")


def test_a_pipe_in_the_place_of_a_text_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "text.txt")
    for path in (tmp_path / "text.txt", Path("/dev/zero")):
        with pytest.raises(SystemExit, match=f"error: {path} is a .*, not a regular file"):
            main([str(path), "--folder", str(tmp_path / "run"), *SMALL])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [["--seeds", "0"], ["--seeds", "-1"], ["--seeds", "1000000000"], ["--workers", "0"], ["--workers", "-1"]]
)
def test_a_comparison_refuses_what_is_out_of_range(
    options: list[str], command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        compare.main([*command, *options])
    assert f"error: argument {options[0]}: {options[1]} is out of range; expected 1 to " in capsys.readouterr().err


def end() -> None:
    os._exit(1)


def test_a_worker_that_was_killed_is_no_traceback() -> None:
    with pytest.raises(WorkerLostError, match="fewer --workers"), pool(1) as executor:
        executor.submit(end).result()


def test_a_summary_that_is_damaged_is_named(tmp_path: Path) -> None:
    whole = vars(summary.Summary("softmax attention", 0, 1000, 10, 500, 2.5, 3.0, 1))
    path = tmp_path / "summary.json"
    for content in (
        b"",
        b"[]",
        b"\xff",
        b"[" * 10_000,
        json.dumps({**whole, "more": 1}).encode(),
        json.dumps({**whole, "bits_per_byte": "2.5"}).encode(),
        json.dumps({**whole, "seed": True}).encode(),
    ):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match=r"error: .*summary.json: "):
            summary.main([str(tmp_path)])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SystemExit, match="a named pipe"):
        summary.main([str(tmp_path)])


def test_numbers_are_read_as_they_are_written() -> None:
    assert option_ranges.count(-3, 3)("-3") == -3
    assert option_ranges.at_least_zero("inf") == float("inf")
