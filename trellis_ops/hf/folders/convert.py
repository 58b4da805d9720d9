"""Models of this project as folders of transformers, and back."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from codegen.errors import FileWriteError
from trellis_ops.files import regular_file
from trellis_ops.hf.configuration import TrellisHFConfig
from trellis_ops.hf.errors import PretrainedError
from trellis_ops.hf.modeling import TrellisForCausalLM
from trellis_ops.hf.pretrained import cast_weights
from trellis_ops.hf.tokenizer import bpe_tokenizer, byte_tokenizer
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.train.data.tokenizer import ByteTokenizer
from trellis_ops.lm.train.saving import checkpoint
from trellis_ops.lm.weights.undrawn import undrawn

_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


def to_transformers(model: TrellisLM) -> TrellisForCausalLM:
    """The same model for transformers; it shares the weights of the one given."""
    with undrawn():
        made = TrellisForCausalLM(TrellisHFConfig.from_trellis(model.config))
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    made.load_state_dict({**weights, "lm_head.weight": weights["model.embedding.weight"]}, assign=True)
    made.tie_weights()
    made.eval()
    return made


def from_transformers(model: TrellisForCausalLM) -> TrellisLM:
    """The same model as a `TrellisLM`; it shares the weights of the one given.

    Raises:
        PretrainedError: its output map is not its embedding, as a `TrellisLM` has it.
    """
    if model.lm_head.weight is not model.model.embedding.weight:
        problem = "tie_word_embeddings is False, and a TrellisLM has no output map of its own"
        raise PretrainedError(path=model.config.name_or_path or "the model", problem=problem)
    with undrawn():
        made = TrellisLM(model.config.to_trellis())
    made.load_state_dict(model.model.state_dict(), assign=True)
    return made


def convert(source: Path, destination: Path, tokenizer: str | None = None, dtype: torch.dtype | None = None) -> str:
    """Write the model of `source` to `destination` in the other form, and say what was written.

    Args:
        source: a folder of transformers; or a file that `TrellisLM.save` or training wrote.
        destination: a file for the first, a folder for the others; nothing may stand there.
        tokenizer: for a file of `TrellisLM.save`, "bytes" or the path of the JSON of a `BpeTokenizer`; None is "bytes"
            for 256 tokens, and no tokenizer for others. A file of training has its own.
        dtype: of the weights written; None keeps it. Where it is half precision, those that make gates are float32.

    Raises:
        PretrainedError, ModelFileError, CheckpointError: a source that holds no whole model.
        FileWriteError: something stands at the destination, or it cannot be written.
    """
    if destination.exists():
        raise FileWriteError(path=destination, reason="something stands there")
    if source.is_dir():
        model = from_transformers(TrellisForCausalLM.from_pretrained(source, dtype=dtype or "auto"))
        model.save(destination)
        return f"{destination}: {model.count_parameters():,} parameters, for TrellisLM.load"
    made, text = _read(source)
    if made.config.vocab_size == ByteTokenizer.vocab_size and tokenizer is None and text is None:
        text = ByteTokenizer().to_json()
    if tokenizer is not None:
        text = ByteTokenizer().to_json() if tokenizer == "bytes" else regular_file.read_bytes(Path(tokenizer)).decode()
    written = to_transformers(made)
    if dtype is not None:
        cast_weights(written, dtype)
    with _new_folder(destination) as folder:
        _save(written, text, folder)
    said = "without a tokenizer" if text is None else "with its tokenizer"
    return f"{destination}: {made.count_parameters():,} parameters, {said}, for AutoModelForCausalLM.from_pretrained"


def _read(source: Path) -> tuple[TrellisLM, str | None]:
    """The model of a file, and its tokenizer as text if the file has one."""
    if source.suffix != ".safetensors":
        return TrellisLM.load(source), None
    model = checkpoint.load_model(source)
    if not isinstance(model, TrellisLM):
        raise PretrainedError(path=source, problem="it is the model with softmax attention that training compares with")
    return model, checkpoint.load(source).tokenizer


def _save(model: TrellisForCausalLM, text: str | None, folder: Path) -> None:
    if text is not None:
        tokenizer: Any = bpe_tokenizer(text) if text else byte_tokenizer()
        tokenizer.save_pretrained(folder)
        # A token of padding behind the vocabulary is none of the model's.
        ids = {name: getattr(tokenizer, name) for name in _SPECIAL}
        for name, value in ids.items():
            if value is not None and value < model.config.vocab_size:
                setattr(model.config, name, value)
                setattr(model.generation_config, name, value)
    model.save_pretrained(folder)


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that becomes `path` when the block ends; nothing is left of it if the block raises."""
    unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(path)
    except OSError as error:
        raise FileWriteError(path=path, reason=error.strerror or error) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
