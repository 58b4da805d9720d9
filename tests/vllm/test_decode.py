"""Steps in which every sequence decodes run one kernel for each block, on the slots of vLLM's cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.vllm.engines import alone, engine, made, prompts, served
from trellis_ops.lm.decode import pooled
from trellis_ops.lm.decode.decoder import Decoder, Kernels
from trellis_ops.lm.sequences import Pooled

STATES = ("S_k", "S_v", "start_k", "start_v", "tail")
"""In the order of the kernel."""

BEFORE = 4
"""Arguments before them: how many rows, the rows, their positions and their slots."""


def test_slots_fresh_rows_and_every_state_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = made(tmp_path, learned_state=True)
    # Those of one token begin in a step in which every sequence decodes.
    given = {"after a prompt": prompts((17, 3, 40)), "from the first token on": prompts((1, 1, 1), seed=3)}
    wanted = {name: [alone(model, each) for each in of_name] for name, of_name in given.items()}
    with engine(tmp_path) as llm:
        for name, of_name in given.items():
            assert _kernels_of(llm, of_name, monkeypatch) == (wanted[name], 23 + (name == "from the first token on"))
        for fault in (_other_slots, _stale_slots, *(_left_as_it_is(index) for index in range(len(STATES)))):
            with monkeypatch.context() as patch:
                fault(patch)
                found = {name: served(llm, of_name) for name, of_name in given.items()}
            assert found != wanted, fault
        assert {name: served(llm, of_name) for name, of_name in given.items()} == wanted


def test_a_vocabulary_that_vllm_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its embedding has rows past the vocabulary, of which no kernel makes a logit."""
    model = made(tmp_path, vocab_size=261)
    given, shapes = prompts((17, 3)), set()

    def seen(*arguments: Any) -> Tensor | None:
        logits = pooled.pooled_logits(*arguments)
        assert logits is not None
        shapes.add(tuple(logits.shape))
        return logits

    with engine(tmp_path) as llm:
        monkeypatch.setattr("trellis_ops.serve.vllm.decode.pooled_logits", seen)
        assert served(llm, given) == [alone(model, each) for each in given]
        (rows,) = llm.apply_model(lambda served: served.embedding.weight.shape[0])
    assert rows > 261 and shapes == {(2, 261)}


def test_whoever_sees_the_model_at_work_sees_all_of_it(tmp_path: Path):
    """By a hook of the last block or of the embedding every token, and by another logits processor every logit."""
    model = made(tmp_path)
    given, seen, embedded = prompts((17, 3)), [], []

    def looked_at(served: nn.Module) -> None:
        served.embedding.register_forward_hook(lambda table, inputs, rows: embedded.append(len(rows)))

    def hooked(served: nn.Module) -> None:
        served.blocks[-1].register_forward_hook(lambda block, inputs, rows: seen.append(len(rows)))

    def masked(served: nn.Module) -> None:
        processed = served.logits_processor.forward

        def only_seven(*arguments: Any) -> Tensor:
            logits = processed(*arguments)
            logits[:, torch.arange(logits.shape[1]) != 7] = -torch.inf
            return logits

        served.logits_processor.forward = only_seven

    with engine(tmp_path) as llm:
        assert served(llm, given) == [alone(model, each) for each in given]
        assert seen == []
        llm.apply_model(looked_at)
        assert served(llm, given) == [alone(model, each) for each in given]
        assert sum(embedded) == 17 + 3 + 2 * 23 and seen == []
        llm.apply_model(hooked)
        assert served(llm, given) == [alone(model, each) for each in given]
        assert sum(seen) == 17 + 3 + 2 * 23
        llm.apply_model(lambda served: served.blocks[-1]._forward_hooks.clear())
        llm.apply_model(masked)
        assert served(llm, given) == [[7] * 24] * 2
        assert sum(seen) == 17 + 3 + 2 * 23


def _kernels_of(llm: Any, given: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[int]], int]:
    """The tokens after prompts, and how many steps ran kernels of blocks."""
    steps = []

    def counted(*arguments: Any) -> Tensor | None:
        made = pooled.through_pools(*arguments)
        steps.append(made is not None)
        return made

    with monkeypatch.context() as patch:
        patch.setattr("trellis_ops.serve.vllm.decode.through_pools", counted)
        return served(llm, given), sum(steps)


def _other_slots(patch: pytest.MonkeyPatch) -> None:
    """Rows in the slots of their numbers."""
    where = pooled._where

    def of_numbers(decoder: Decoder, sequences: Pooled) -> tuple[Tensor, ...]:
        *positions, slots = where(decoder, sequences)
        return (*positions, torch.arange(len(slots)))

    patch.setattr(pooled, "_where", of_numbers)


def _stale_slots(patch: pytest.MonkeyPatch) -> None:
    """Sequences that begin go on from what their slots hold."""
    patch.setattr(Pooled, "begin", lambda sequences, pools, first: None)


def _left_as_it_is(index: int) -> Any:
    """A state that kernels do not write."""

    def fault(patch: pytest.MonkeyPatch) -> None:
        kernels_for = Decoder.kernels_for

        def without(decoder: Decoder, *arguments: Any, **rest: Any) -> Kernels | None:
            found = kernels_for(decoder, *arguments, **rest)
            assert found is not None

            def block(*arguments: Any) -> None:
                state = torch.from_dlpack(arguments[BEFORE + index])
                kept = state.clone()
                found.block(*arguments)
                state.copy_(kept)

            return replace(found, block=block, logits=None)  # type: ignore[arg-type]

        patch.setattr(Decoder, "kernels_for", without)

    fault.__name__ = f"{STATES[index]} is left as it is"
    return fault
