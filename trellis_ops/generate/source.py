"""What a model is read from: one that is shipped, a file of `TrellisLM.save`, a run, or a folder of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codegen.errors import MissingPackageError, TrellisError
from trellis_ops.errors import ModelFileError, UnknownModelError
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.shipped import SHIPPED, load_shipped
from trellis_ops.lm.train.data.tokenizer import ByteTokenizer, Tokenizer, from_json
from trellis_ops.lm.train.errors import CheckpointError

_BYTES = ByteTokenizer.vocab_size


@dataclass(frozen=True)
class Source:
    """A model with what turns text into its tokens, and its tokens into text."""

    model: TrellisLM
    tokenizer: Tokenizer


def read_model(name: str) -> Source:
    """The model of a name, a file or a folder.

    Args:
        name: one of `SHIPPED`, a file that `TrellisLM.save` wrote for a model of bytes, the checkpoint of a run of
            `trellis_ops.lm.train`, its folder, or a folder of transformers with its tokenizer. A name that is shipped
            is never taken for a file.

    Raises:
        UnknownModelError: neither a shipped model nor a file. ModelFileError, CheckpointError: another file, a damaged
            one, or one of a model whose tokens are unknown. IrregularFileError, OSError: none that can be read.
        PretrainedError: a folder of transformers without a whole model, or with the tokenizer of another project.
        MissingPackageError: a run needs the extra "train", a folder of transformers the extra "hf".
    """
    if name in SHIPPED:
        return Source(load_shipped(name), ByteTokenizer())
    path = Path(name)
    if not path.exists():
        raise UnknownModelError(name=name, known=", ".join(SHIPPED))
    if (path / "config.json").exists():
        return _of_transformers(path)
    if path.is_dir() or path.suffix == ".safetensors":
        return _of_run(path)
    model = TrellisLM.load(path).float()
    if model.config.vocab_size != _BYTES:
        problem = f"it has {model.config.vocab_size} tokens and no tokenizer; only models of bytes, {_BYTES}, need none"
        raise ModelFileError(path=path, problem=problem)
    return Source(model, ByteTokenizer())


def _of_run(path: Path) -> Source:
    # What reads checkpoints needs an extra.
    from trellis_ops.lm.shipped.export import checkpoint_of, trained_model
    from trellis_ops.lm.train.saving.checkpoint import load

    model = trained_model(path)
    file = checkpoint_of(path)
    try:
        tokenizer = from_json(load(file).tokenizer)
    except TrellisError:
        raise
    except ValueError as error:
        raise CheckpointError(path=file, problem=f"its tokenizer is none of this project: {error}") from error
    if tokenizer.vocab_size != model.config.vocab_size:
        problem = f"its model has {model.config.vocab_size} tokens, its tokenizer {tokenizer.vocab_size}"
        raise CheckpointError(path=file, problem=problem)
    return Source(model, tokenizer)


def _of_transformers(path: Path) -> Source:
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise MissingPackageError(package="transformers", extra="hf") from error
    logging.disable_progress_bar()
    from trellis_ops.hf.folders.read import read_folder

    return Source(*read_folder(path))
