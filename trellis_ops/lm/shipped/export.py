"""A run of training as one file that `TrellisLM.load` reads: weights and configuration, rounded to a smaller type.

    python -m trellis_ops.lm.shipped.export runs/kjv --dtype bfloat16 --out kjv.pt

The moments of the optimizer, the random states and the tokenizer of the run are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from codegen.errors import TrellisError
from trellis_ops.lm.demo import bits_per_byte
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.train.data.text import Document, hold_out, read_documents
from trellis_ops.lm.train.data.tokenizer import ByteTokenizer
from trellis_ops.lm.train.errors import CheckpointError
from trellis_ops.lm.train.processes.memory import memory_limits
from trellis_ops.lm.train.saving.checkpoint import load, load_model, require_safetensors

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    try:
        with memory_limits():
            _export(options)
    except (TrellisError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def trained_model(run: Path) -> TrellisLM:
    """The model of a run, or of its checkpoint, on the CPU.

    Args:
        run: the folder of a run of `trellis_ops.lm.train`, or its checkpoint.

    Raises:
        CheckpointError: no checkpoint of a `TrellisLM`, or a damaged one. OSError: none that can be read.
        MissingPackageError: safetensors is not installed.
    """
    path = checkpoint_of(run)
    model = load_model(path)
    if not isinstance(model, TrellisLM):
        raise CheckpointError(path=path, problem="its model is softmax attention, which TrellisLM.load does not read")
    return model


def checkpoint_of(run: Path) -> Path:
    """The checkpoint of a run, of which the folder is named or the file.

    Raises:
        MissingPackageError: safetensors is not installed, without which nothing can read it.
    """
    require_safetensors()
    return run / "checkpoint.safetensors" if run.is_dir() else run


def _export(options: argparse.Namespace) -> None:
    model = trained_model(options.run)
    # Before anything is written, so that a wrong name costs nothing.
    measured = [] if options.text is None else _held_out(options.run, options.text)
    model.to(DTYPES[options.dtype]).save(options.out)
    print(f"{options.out}: {model.count_parameters():,} parameters, {options.out.stat().st_size:,} bytes")
    for document in measured:
        bits = bits_per_byte(TrellisLM.load(options.out).float(), ByteTokenizer().encode(document.text).long())
        print(f"{document.name}: {bits:.4f} bits per byte of the last {len(document.text):,} bytes, held out")


def _held_out(run: Path, text: Path) -> list[Document]:
    """What the run held out of its text.

    Raises:
        CheckpointError: its tokens are not bytes. TextError: too short a text.
    """
    path = checkpoint_of(run)
    checkpoint = load(path)
    if checkpoint.tokenizer:
        raise CheckpointError(path=path, problem="its tokens are not bytes; leave out --text")
    return hold_out(read_documents([text]), checkpoint.settings["held_out"])[1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trellis_ops.lm.shipped.export", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("run", type=Path, help="the folder of a run of trellis_ops.lm.train, or its checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default: bfloat16)")
    parser.add_argument("--text", type=Path, help="the text of the run, to measure on what was held out of it")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
