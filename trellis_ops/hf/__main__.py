"""Convert a model of this project to a folder of transformers, or back.

python -m trellis_ops.hf convert model.pt folder
python -m trellis_ops.hf convert folder model.pt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from codegen.errors import TrellisError
from trellis_ops.hf.folders.convert import convert

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    try:
        print(convert(options.source, options.destination, options.tokenizer, _DTYPES.get(options.dtype)))
    except (TrellisError, OSError) as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trellis_ops.hf", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser("convert", help="write a model in the other form")
    command.add_argument("source", type=Path, help="a folder of transformers, or a file of TrellisLM.save or training")
    command.add_argument("destination", type=Path, help="what is written: a file for a folder, a folder for a file")
    command.add_argument("--tokenizer", help='"bytes", or a JSON file of a BPE (default: that of the source)')
    command.add_argument("--dtype", choices=_DTYPES, help="type of the weights written (default: the source's)")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
