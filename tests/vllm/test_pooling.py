"""A pooler of vLLM gets the rows that the model's last norm gives."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.vllm.engines import Prompt, engine, made, prompts
from trellis_ops.lm.model import TrellisLM

CONVERTED = {"runner": "pooling", "convert": "embed"}


def test_an_embedding_is_the_normed_row_of_the_last_token(tmp_path: Path):
    """Also where every prompt is one token, which kernels of blocks compute."""
    model = made(tmp_path)
    with engine(tmp_path, **CONVERTED) as llm:
        for given in (prompts((17, 3, 64)), prompts((1, 1))):
            outputs = llm.embed([{"prompt_token_ids": each} for each in given], use_tqdm=False)
            for prompt, output in zip(given, outputs, strict=True):
                assert (torch.tensor(output.outputs.embedding) - _embedding(model, prompt)).norm() < 1e-5


@torch.no_grad()
def _embedding(model: TrellisLM, prompt: Prompt) -> Tensor:
    rows = []
    hook = model.norm.register_forward_hook(lambda norm, inputs, normed: rows.append(normed))
    model(torch.tensor([prompt]))
    hook.remove()
    return F.normalize(rows[-1].flatten(0, -2)[-1], dim=0)
