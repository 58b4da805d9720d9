"""The command that writes on from a prompt: what it prints, what it reads models from, what it refuses."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.installed import ROOT
from trellis_ops.generate import cli, prefill, source
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.train.data.text import Document
from trellis_ops.lm.train.data.tokenizer import BpeTokenizer

pytestmark = pytest.mark.usefixtures("eager")


def byte_model(**changes) -> TrellisLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 256, "layers": 1, "width": 16, "heads": 1, "num_slots": 8, "chunk_size": 4, **changes}
    return TrellisLM(TrellisConfig(**sizes))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A model of bytes that nobody has trained."""
    byte_model().save(tmp_path / "model.pt")
    return tmp_path / "model.pt"


def stdin_of(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature": 0.9, "top_k": 5}, {"temperature": 1.0, "top_p": 0.5}]
)
def test_it_prints_what_generate_returns(settings, file, capsys):
    model = byte_model()
    prompt = torch.tensor([list(b"Slots")])
    expected = model.generate(prompt, 30, **settings, generator=torch.Generator().manual_seed(3))
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    cli.main(["Slots", "--model", str(file), "--tokens", "30", "--seed", "3", *options])
    printed = capsys.readouterr()
    assert printed.out == bytes(expected[0].tolist()).decode(errors="replace") + "\n"
    assert "prompt: 5 tokens in " in printed.err and "text: 30 tokens in " in printed.err
    assert "tokens per second" in printed.err
    assert f"state: {model.first_state(1).nbytes():,} bytes after 35 tokens" in printed.err


def test_nothing_stands_between_the_prompt_and_its_text(file, monkeypatch, tmp_path):
    """What reading the prompt has to say comes before both, on a terminal that shows both streams."""
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    cli.main(["Slots", "--model", str(file), "--tokens", "3", "--store", str(tmp_path / "states")])
    assert terminal.getvalue().startswith("store: ") and "again\nSlots" in terminal.getvalue()


def test_a_prompt_from_the_standard_input_is_read_in_pieces_and_not_repeated(file, capsys, monkeypatch):
    prompt = b"Slots and chunks, " * 3
    cli.main([prompt.decode(), "--model", str(file), "--tokens", "9", "--temperature", "0"])
    whole = capsys.readouterr().out
    monkeypatch.setattr(prefill, "PIECE", 10)
    monkeypatch.setattr(prefill, "_LINE_EVERY_SECONDS", 0.0)
    stdin_of(monkeypatch, prompt)
    cli.main(["--model", str(file), "--tokens", "9", "--temperature", "0"])
    printed = capsys.readouterr()
    assert prompt.decode() + printed.out == whole
    # 10 tokens are rounded up to whole chunks.
    assert [line.partition(" of 54 tokens of the prompt")[0] for line in printed.err.splitlines()[:4]] == [
        "12",
        "24",
        "36",
        "48",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar_while_a_long_prompt_is_read(file, monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setattr(prefill, "PIECE", 10)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    for prompt, shown in (("Slots and chunks, " * 3, True), ("Slots", False)):
        sys.stderr.truncate(0)
        cli.main([prompt, "--model", str(file), "--tokens", "2"])
        assert ("reading the prompt" in sys.stderr.getvalue()) is shown
        assert ("48/54" in sys.stderr.getvalue()) is shown


def test_bytes_that_are_no_utf8_are_taken_and_a_character_of_several_is_not_torn(file, capsys, monkeypatch):
    stream = iter("né".encode())
    monkeypatch.setattr(TrellisLM, "stream", lambda *given, **named: (torch.tensor([byte]) for byte in stream))
    stdin_of(monkeypatch, b"\xff\x00")
    cli.main(["--model", str(file), "--tokens", "3"])
    assert capsys.readouterr().out == "né\n"


def test_a_bpe_model_of_a_run_writes_its_own_tokens(tmp_path, capsys, monkeypatch):
    learned = BpeTokenizer.train([Document("text", ("slots and chunks, für immer " * 20).encode())], 280)
    model = byte_model(vocab_size=280)
    prompt = learned.encode("slots für".encode())
    assert b"".join(map(learned.decode, prompt.tolist())) == "slots für".encode()
    monkeypatch.setattr(cli, "read_model", lambda name: source.Source(model, learned))
    cli.main(["slots für", "--tokens", "6", "--temperature", "0"])
    written = model.generate(prompt.long()[None], 6, temperature=0)[0].tolist()
    assert capsys.readouterr().out == b"".join(map(learned.decode, written)).decode(errors="replace") + "\n"


def test_a_folder_of_transformers_writes_what_its_model_does(tmp_path, capsys):
    pytest.importorskip("transformers")
    from trellis_ops.hf.__main__ import main as convert

    learned = BpeTokenizer.train([Document("text", ("slots and chunks, für immer " * 20).encode())], 280)
    model = byte_model(vocab_size=learned.vocab_size)
    model.save(tmp_path / "model.pt")
    (tmp_path / "bpe.json").write_text(learned.to_json())
    convert(["convert", str(tmp_path / "model.pt"), str(tmp_path / "mine"), "--tokenizer", str(tmp_path / "bpe.json")])
    capsys.readouterr()
    cli.main(["slots für", "--model", str(tmp_path / "mine"), "--tokens", "6", "--temperature", "0"])
    prompt = learned.encode("slots für".encode()).long()[None]
    written = model.generate(prompt, 6, temperature=0)[0].tolist()
    assert capsys.readouterr().out == b"".join(map(learned.decode, written)).decode(errors="replace") + "\n"
    (tmp_path / "mine/tokenizer.json").unlink()
    with pytest.raises(SystemExit, match=r"error: .*it has \d+ tokens and no tokenizer\.json"):
        cli.main(["Slots", "--model", str(tmp_path / "mine")])


def test_a_prompt_that_was_stored_is_not_read_again(file, capsys, monkeypatch, tmp_path):
    options = ["Slots and chunks, " * 10, "--model", str(file), "--tokens", "9", "--temperature", "0"]
    monkeypatch.setattr(prefill, "PIECE", 40)
    cli.main(options)
    whole = capsys.readouterr().out
    for known in (0, 128):
        cli.main([*options, "--store", str(tmp_path / "states")])
        printed = capsys.readouterr()
        assert printed.out == whole
        assert f"store: {known} of 180 tokens of the prompt were not read again" in printed.err
    assert (tmp_path / "states/key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "states/key").write_bytes(b"short")
    with pytest.raises(SystemExit, match=r"error: .*key"):
        cli.main([*options, "--store", str(tmp_path / "states")])


def _cut_short(file: Path) -> str:
    file.write_bytes(file.read_bytes()[:-100])
    return "holds no model that TrellisLM.save wrote"


def _other_tokens(file: Path) -> str:
    byte_model(vocab_size=300).save(file)
    return "it has 300 tokens and no tokenizer; only models of bytes, 256, need none"


def _no_run(file: Path) -> str:
    file.unlink()
    file.mkdir()
    return "No such file or directory: .*checkpoint.safetensors"


def _gone(file: Path) -> str:
    file.unlink()
    return "is no model that is shipped, and no file; name a file, or choose one of: kjv-bytes"


@pytest.mark.parametrize("spoil", [_cut_short, _other_tokens, _no_run, _gone])
def test_a_model_that_cannot_be_read_is_one_line(spoil, file, capsys):
    said = spoil(file)
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        cli.main(["Slots", "--model", str(file)])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--temperature", "-1"], "error: temperature=-1.0 is out of range"),
        (["--temperature", "nan"], "error: temperature=nan is out of range"),
        (["--top-k", "0"], "error: top_k=0 is out of range"),
        (["--top-p", "1.5"], "error: top_p=1.5 is out of range"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_the_model_is_read(options, said):
    with pytest.raises(SystemExit, match=said):
        cli.main(["Slots", "--model", "missing.pt", *options])


def test_an_empty_prompt_is_refused(file, monkeypatch):
    with pytest.raises(SystemExit, match=r"error: the prompt is empty \(the argument\)"):
        cli.main(["", "--model", str(file)])
    stdin_of(monkeypatch, b"")
    with pytest.raises(SystemExit, match=r"error: the prompt is empty \(the standard input\)"):
        cli.main(["--model", str(file)])


def test_a_reader_that_has_seen_enough_ends_it_without_a_traceback(file):
    command = [sys.executable, "-W", "ignore", "-m", "trellis_ops.generate", "Slots", "--model", str(file)]
    environment = {"PYTHONPATH": str(ROOT), "TRELLIS_OPS_IMPLEMENTATION": "eager", "PATH": ""}
    with subprocess.Popen(
        [*command, "--tokens", "1000000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, cwd=ROOT
    ) as process:
        assert process.stdout.read(5) == b"Slots"
        process.stdout.close()
        assert process.stderr.read() == b""
