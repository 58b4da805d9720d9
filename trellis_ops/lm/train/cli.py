"""The command line of training."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import torch

from codegen.errors import TrellisError
from trellis_ops.dispatch.resolve import device_of
from trellis_ops.files import regular_file
from trellis_ops.files.regular_file import regular_status, remove_unfinished
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.train import curve as curves
from trellis_ops.lm.train.curve import Curve
from trellis_ops.lm.train.data.lanes import Corpus, Lanes
from trellis_ops.lm.train.data.text import Document, hold_out, read_documents
from trellis_ops.lm.train.data.tokenizer import BpeTokenizer, ByteTokenizer, Tokenizer, from_json
from trellis_ops.lm.train.errors import CheckpointError
from trellis_ops.lm.train.loop import Texts, Trainer, run
from trellis_ops.lm.train.options.options import config_of, parser, settings_of
from trellis_ops.lm.train.options.settings import Settings, differences
from trellis_ops.lm.train.processes.allocator import keep_freed_memory
from trellis_ops.lm.train.processes.memory import memory_limits
from trellis_ops.lm.train.processes.ranks import Processes, joined
from trellis_ops.lm.train.saving import checkpoint as checkpoints
from trellis_ops.lm.train.saving.checkpoint import Checkpoint
from trellis_ops.lm.train.saving.exclusive import exclusive
from trellis_ops.lm.train.saving.resumable import check_resumable
from trellis_ops.lm.train.summary import Summary


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, or go on training, as the arguments say."""
    train(parser().parse_args(arguments))


def train(options: argparse.Namespace) -> None:
    """Train, or go on training, as options of `trellis_ops.lm.train.options.options.parser` say.

    Raises:
        SystemExit: something is wrong, or Ctrl-C was pressed; its code is the text to show.
    """
    try:
        # Before hours of work, not after them.
        checkpoints.require_safetensors()
        curves.require_matplotlib()
        settings = settings_of(options)
        keep_freed_memory()
        if options.threads is not None:
            torch.set_num_threads(options.threads)
            # TVM reads it when the first kernel is compiled.
            os.environ["TVM_NUM_THREADS"] = str(options.threads)
        with joined(options.device) as processes:
            _train(options, settings, processes)
    except (TrellisError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(_interrupted(options))


def _train(options: argparse.Namespace, settings: Settings, processes: Processes) -> None:
    processes.check_batch(settings.batch)
    documents = read_documents(options.data, options.suffix, options.exclude)
    parts = hold_out(documents, settings.held_out)
    with _holding(options.folder, processes), memory_limits():
        _train_alone(options, settings, processes, len(documents), *parts)


@contextlib.contextmanager
def _holding(folder: Path, processes: Processes) -> Iterator[None]:
    """The folder for these processes alone; the first one holds it for all."""
    with contextlib.ExitStack() as held:
        refusal: TrellisError | OSError | None = None
        if processes.is_first:
            try:
                held.enter_context(exclusive(folder, "training"))
            except (TrellisError, OSError) as error:
                refusal = error
        if processes.agree("refused" if refusal else ""):
            # The first process says why.
            raise refusal or SystemExit(1)
        for name in _FILES:
            regular_status(folder / name)
            if processes.is_first:
                remove_unfinished(folder / name)
        yield


def _train_alone(
    options: argparse.Namespace,
    settings: Settings,
    processes: Processes,
    documents: int,
    fit: Sequence[Document],
    held_out: Sequence[Document],
) -> None:
    folder: Path = options.folder
    path = _checkpoint(options)
    before = checkpoints.load(path) if path.exists() and not options.fresh else None
    # Nobody may write the file while another process still looks whether it is there.
    processes.wait()
    tokenizer = _tokenizer(settings, fit, path, before, processes)
    texts = _texts(fit, held_out, tokenizer, settings)
    config = config_of(options, tokenizer.vocab_size).resolved(device_of(processes.device))
    if before is not None:
        _check_same(path, before, config, settings, texts)
        check_resumable(path, before, config, settings)
    trainer = Trainer(config, settings, texts, processes, options.fsdp, before)
    if processes.is_first:
        sizes = [sum(len(each.text) for each in part) for part in (fit, held_out)]
        print(f"{settings.mixer}: {trainer.parameters:,} parameters on {processes.count} x {processes.device}")
        print(f"{documents} documents: {sizes[0]:,} bytes to fit, {sizes[1]:,} held out")
        if before is not None:
            print(f"going on after step {before.step} of {settings.steps}")
    with Curve(folder / "curve.csv", trainer.step) if processes.is_first else contextlib.nullcontext() as curve:
        bits = run(trainer, processes, curve, path, options.save_every)
    if processes.is_first:
        summary = Summary.of(trainer, bits, processes.count, options.data)
        regular_file.write(folder / "summary.json", json.dumps(vars(summary), indent=1) + "\n")
        curves.draw(curves.read(folder / "curve.csv"), folder / "curve.png", f"{summary.name}, seed {summary.seed}")
        print(f"held out: {bits:.4f} bits per byte after {trainer.step} steps in {trainer.seconds:.0f} s; see {folder}")


_FILES = ("checkpoint.safetensors", "curve.csv", "curve.png", "summary.json")


def _checkpoint(options: argparse.Namespace) -> Path:
    folder: Path = options.folder
    return folder / "checkpoint.safetensors"


def _interrupted(options: argparse.Namespace) -> str:
    """What is left of a run that was interrupted."""
    path = _checkpoint(options)
    if not path.exists():
        when = f"one is written every {options.save_every} steps, --save-every"
        return f"interrupted; no checkpoint yet ({when}); the same command starts anew"
    command = "the same command without --fresh" if options.fresh else "the same command"
    return f"interrupted; {command} goes on from the checkpoint in {path}"


def _tokenizer(
    settings: Settings, fit: Sequence[Document], path: Path, before: Checkpoint | None, processes: Processes
) -> Tokenizer:
    if settings.tokenizer == "bytes":
        return ByteTokenizer()
    if before is not None:
        try:
            return from_json(before.tokenizer)
        except ValueError as error:
            raise CheckpointError(path=path, problem=f"its tokenizer is none of this project: {error}") from error
    learned = BpeTokenizer.train(fit, settings.vocab).to_json() if processes.is_first else ""
    return from_json(processes.agree(learned))


def _texts(fit: Sequence[Document], held_out: Sequence[Document], tokenizer: Tokenizer, settings: Settings) -> Texts:
    corpus = Corpus.of([tokenizer.encode(each.text) for each in fit])
    measured = Corpus.of([tokenizer.encode(each.text) for each in held_out])
    return Texts(
        Lanes(corpus, settings.batch, settings.length, settings.seed),
        Lanes(measured, settings.batch, settings.length),
        tokenizer.byte_counts(),
        tokenizer.to_json(),
        corpus.fingerprint(),
    )


def _check_same(path: Path, before: Checkpoint, config: TrellisConfig, settings: Settings, texts: Texts) -> None:
    # A checkpoint of an older version lacks the fields that came since, and was made with what they are by default.
    since = {each.name: each.default for each in fields(TrellisConfig)}
    changed = differences(
        {**config.to_dict(), **settings.to_dict(), "text": texts.fingerprint},
        {**since, **before.config, **before.settings, "text": before.text},
    )
    if changed:
        problem = f"it is from another run ({'; '.join(changed)}); give --fresh to start anew, or another --folder"
        raise CheckpointError(path=path, problem=problem)
