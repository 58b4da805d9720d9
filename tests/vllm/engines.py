"""Small models, their checkpoints, engines of vLLM in this process, and what the model alone says to a prompt."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm import LLM, RequestOutput, SamplingParams

from trellis_ops.hf import TrellisForCausalLM, TrellisHFConfig, byte_tokenizer
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM

SMALL = {"vocab_size": 256, "layers": 2, "width": 32, "heads": 2, "num_slots": 8, "chunk_size": 16}
LENGTHS = (1, 2, 15, 16, 17, 40, 64, 130)
"""Of prompts: within a chunk, at its ends, and of several chunks."""

Prompt = list[int]


def make_model(**changes: Any) -> TrellisLM:
    """A small model whose gates, step sizes and logits differ from token to token enough for a fault to show."""
    torch.manual_seed(0)
    model = TrellisLM(TrellisConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("to_decay.bias"):
                parameter.fill_(2.0)
            elif name.endswith("mixer.step_size"):
                parameter.fill_(-2.0)
            elif name.endswith("weight") and parameter.ndim == 2 and name != "embedding.weight":
                # Not so far that rounding grows from token to token.
                parameter.mul_(2.0)
    return model


def save(model: TrellisLM, folder: Path, dtype: torch.dtype = torch.float32) -> TrellisLM:
    """Write the checkpoint of a model with a tokenizer of bytes; the model that it holds."""
    config = TrellisHFConfig.from_trellis(model.config, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    written = TrellisForCausalLM(config)
    written.model.load_state_dict(model.state_dict())
    written.to(dtype).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    return model.to(dtype)


def made(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> TrellisLM:
    """A small model whose checkpoint is in `folder`."""
    return save(make_model(**changes), folder, dtype)


@contextmanager
def engine(folder: Path, *, poisoned: bool = True, **options: Any) -> Iterator[LLM]:
    """An engine in this process, whose cache, if `poisoned`, holds NaN wherever no sequence has written."""
    defaults: dict[str, Any] = {
        # vLLM would take float32 for bfloat16.
        "dtype": "float32",
        "kv_cache_memory_bytes": 8 << 20,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 50,
        "enforce_eager": True,
        "seed": 0,
    }
    served = LLM(str(folder), **(defaults | options))
    if poisoned:
        served.apply_model(_poison)
    try:
        yield served
    finally:
        served.llm_engine.engine_core.shutdown()
        del served
        gc.collect()


def _poison(model: nn.Module) -> None:
    for block in model.blocks:
        for pool in block.pool.kv_cache:
            pool.fill_(math.nan)


def prompts(lengths: Sequence[int] = LENGTHS, seed: int = 1) -> list[Prompt]:
    """Random prompts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 256, (length,), generator=generator).tolist() for length in lengths]


def greedy(tokens: int = 24) -> SamplingParams:
    """The likeliest tokens, so many of them whatever they are."""
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)


def alone(model: TrellisLM, prompt: Prompt, tokens: int = 24) -> list[int]:
    """The likeliest tokens after one prompt, by the model alone."""
    found: list[int] = model.generate(torch.tensor([prompt]), tokens, temperature=0)[0, len(prompt) :].tolist()
    return found


def served(llm: LLM, given: Sequence[Prompt], tokens: int = 24) -> list[list[int]]:
    """The likeliest tokens after prompts that are served together."""
    outputs = llm.generate([{"prompt_token_ids": each} for each in given], greedy(tokens), use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def add(llm: LLM, name: str, prompt: Prompt, tokens: int = 24) -> None:
    """Queue a prompt under a name."""
    llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, greedy(tokens))


def finished(llm: LLM) -> Iterator[RequestOutput]:
    """Compute one step; the requests that it ends."""
    return (output for output in llm.llm_engine.step() if output.finished)
