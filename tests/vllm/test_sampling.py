"""What vLLM does with logits: several samples of one prompt, log-probabilities, and structured output."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from tests.vllm.engines import Prompt, engine, greedy, made, prompts
from trellis_ops.lm.model import TrellisLM


def check_sampled(model: TrellisLM, prompt: Prompt, tokens: list[int], said: Any) -> None:
    """Every token of a sample was drawn from what the model alone gives after those before it."""
    with torch.no_grad():
        logits, _ = model(torch.tensor([prompt + tokens]), return_state=False)
    right = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    for token, of_model, of_engine in zip(tokens, right, said, strict=True):
        assert of_engine[token].logprob == pytest.approx(float(of_model[token]), abs=1e-4)


def test_samples_log_probabilities_and_structured_output(tmp_path: Path):
    model = made(tmp_path)
    (prompt,) = prompts((40,))
    given = {"prompt_token_ids": prompt}
    with torch.no_grad():
        logits, _ = model(torch.tensor([prompt]), return_state=False)
    expected = logits[0].log_softmax(-1)
    with engine(tmp_path, max_num_batched_tokens=13) as llm:
        drawn = SamplingParams(n=4, temperature=1.0, max_tokens=12, ignore_eos=True, logprobs=0)
        (output,) = llm.generate([given], drawn, use_tqdm=False)
        assert len({tuple(each.token_ids) for each in output.outputs}) > 1
        for each in output.outputs:
            check_sampled(model, prompt, list(each.token_ids), each.logprobs)
        asked = greedy(1)
        asked.logprobs, asked.prompt_logprobs = 3, 0
        (output,) = llm.generate([given], asked, use_tqdm=False)
        (first,) = output.outputs[0].logprobs
        best = expected[-1].topk(3)
        assert sorted(first) == sorted(best.indices.tolist())
        for token, found in first.items():
            assert found.logprob == pytest.approx(float(expected[-1, token]), abs=1e-4)
        for index, found in enumerate(output.prompt_logprobs[1:]):
            token = prompt[index + 1]
            assert found[token].logprob == pytest.approx(float(expected[index, token]), abs=1e-4)
        shape = SamplingParams(
            temperature=0, max_tokens=20, structured_outputs=StructuredOutputsParams(regex="[ab]{5}!")
        )
        (output,) = llm.generate([given], shape, use_tqdm=False)
        # Not its text: the random prompt is no UTF-8, and what it lacks is looked for in what follows.
        assert re.fullmatch(b"[ab]{5}!\0?", bytes(output.outputs[0].token_ids))
