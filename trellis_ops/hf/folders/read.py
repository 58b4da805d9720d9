"""A folder of transformers as a `TrellisLM` with its tokenizer, for commands of this project."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer

from trellis_ops.hf.errors import PretrainedError
from trellis_ops.hf.folders.convert import from_transformers
from trellis_ops.hf.modeling import TrellisForCausalLM
from trellis_ops.hf.tokenizer import training_text
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.train.data.tokenizer import ByteTokenizer, Tokenizer, from_json

_TOKENIZER = "tokenizer.json"


def read_folder(path: Path) -> tuple[TrellisLM, Tokenizer]:
    """The model of a folder, in float32, and its tokenizer; one of 256 tokens without a tokenizer reads bytes.

    Raises:
        PretrainedError: no whole model, an output map of its own, or a tokenizer that is none of this project.
        OSError: the folder cannot be read.
    """
    model = from_transformers(TrellisForCausalLM.from_pretrained(path)).float().eval()
    tokenizer = _tokenizer(path, model.config.vocab_size)
    if tokenizer.vocab_size != model.config.vocab_size:
        problem = f"its model has {model.config.vocab_size} tokens, its tokenizer {tokenizer.vocab_size}"
        raise PretrainedError(path=path, problem=problem)
    return model, tokenizer


def _tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    if not (path / _TOKENIZER).exists():
        if vocab_size == ByteTokenizer.vocab_size:
            return ByteTokenizer()
        raise PretrainedError(path=path, problem=f"it has {vocab_size} tokens and no {_TOKENIZER}")
    try:
        found = from_json(training_text(AutoTokenizer.from_pretrained(path)))
        found.decode(found.vocab_size - 1)
    except (ValueError, KeyError, AttributeError) as error:
        raise PretrainedError(path=path, problem=f"its tokenizer is none of this project ({error})") from error
    return found
