"""Greedy tokens of prompts that are served together equal those of each prompt alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codegen.rules import NAMED
from tests.vllm.engines import add, alone, engine, finished, made, prompts, served
from trellis_ops.serve.vllm.metadata import StepMetadata, StepMetadataBuilder

MODELS: dict[str, dict[str, Any]] = {
    "chunks, a learned first state, a step size per token": {"learned_state": True, "step_size": "token"},
    "the exact recurrence": {"chunk_size": 1},
    "odd widths and no tail": {"width": 30, "dim_k": 5, "dim_v": 7, "num_slots": 3, "conv_width": 1, "chunk_size": 9},
}


@pytest.mark.parametrize("name", MODELS)
def test_prompts_that_a_budget_splits_anywhere(name: str, tmp_path: Path):
    model = made(tmp_path, **MODELS[name])
    given = prompts()
    wanted = [alone(model, each) for each in given]
    assert len({tuple(each) for each in wanted}) == len(wanted), "models that say the same to all prompts show nothing"
    with engine(tmp_path, max_num_batched_tokens=13) as llm:
        assert served(llm, given) == wanted
        # Again, in slots that other sequences have left.
        assert served(llm, given[::-1]) == wanted[::-1]


@pytest.mark.parametrize("rule", NAMED)
def test_every_rule(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Kernels have tests of their own; compiling those of every rule takes minutes.
    monkeypatch.setenv("TRELLIS_OPS_IMPLEMENTATION", "eager")
    model = made(tmp_path, layers=1, rule=rule, chunk_size=None)
    given = prompts((1, 17, 40))
    wanted = [alone(model, each, 8) for each in given]
    assert len({tuple(each) for each in wanted}) == len(wanted), "models that say the same to all prompts show nothing"
    with engine(tmp_path, max_num_batched_tokens=13) as llm:
        assert served(llm, given, 8) == wanted


def test_weights_of_bfloat16(tmp_path: Path):
    model = made(tmp_path, torch.bfloat16)
    given = prompts()
    with engine(tmp_path, dtype="bfloat16", max_num_batched_tokens=13) as llm:
        answers = served(llm, given)
    for prompt, tokens in zip(given, answers, strict=True):
        logits, _ = model(torch.tensor([prompt + tokens]), return_state=False)
        after = logits[0, len(prompt) - 1 : -1].float()
        # Batches of another size round otherwise, which may turn what is nearly equal.
        behind = after.amax(-1) - after.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        assert float(behind.detach().max()) <= 2e-2 * float(after.detach().abs().max())


def test_forty_requests_that_come_and_go(tmp_path: Path):
    model = made(tmp_path)
    given = dict(zip(map(str, range(40)), prompts([1 + 13 * each % 90 for each in range(40)]), strict=True))
    aborted = [name for name in given if int(name) % 5 == 3]
    answers: dict[str, list[int]] = {}
    with engine(tmp_path) as llm:
        waiting, step = list(given), 0
        while waiting or llm.llm_engine.has_unfinished_requests():
            if waiting and step % 2 == 0:
                add(llm, name := waiting.pop(0), given[name])
            if step % 10 == 9 and aborted:
                llm.llm_engine.abort_request([aborted.pop(0)])
            answers |= {each.request_id: list(each.outputs[0].token_ids) for each in finished(llm)}
            step += 1
    ended = {name: tokens for name, tokens in answers.items() if len(tokens) == 24}
    assert 30 <= len(ended) < 40
    assert ended == {name: alone(model, given[name]) for name in ended}


@pytest.mark.parametrize("pool", ["memories", "tail"])
def test_a_slot_that_is_not_cleared_shows(pool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = made(tmp_path)
    build = StepMetadataBuilder.build
    with engine(tmp_path) as llm:
        given = prompts()
        served(llm, given)

        def stale(builder: Any, *arguments: Any, **rest: Any) -> StepMetadata:
            step = build(builder, *arguments, **rest)
            sequences = step.sequences
            if pool == "tail":
                return replace(step, sequences=replace(sequences, fresh=None))
            begun = torch.where(sequences.positions == 0, model.config.chunk, sequences.positions)
            return replace(step, sequences=replace(sequences, positions=begun))

        monkeypatch.setattr(StepMetadataBuilder, "build", stale)
        assert served(llm, given) != [alone(model, each) for each in given]
