"""States that vLLM keeps at the ends of blocks: hits, blocks that are no multiple of C, and preemptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm import LLM
from vllm.model_executor.layers.mamba.mamba_utils import MambaCopySpec

from tests.vllm.engines import Prompt, add, alone, engine, finished, made, prompts, served
from trellis_ops.serve.vllm.model import TrellisForCausalLM

BLOCK = 32
CACHING: dict[str, Any] = {"enable_prefix_caching": True, "block_size": BLOCK, "max_num_batched_tokens": 77}
MODELS: dict[str, dict[str, Any]] = {
    "blocks that end inside a chunk": {"chunk_size": 20},
    "blocks of whole chunks": {"chunk_size": 16},
    "a rule with states of its own": {"rule": "yaad", "chunk_size": 12},
}


def hits(llm: LLM, given: list[Prompt]) -> int:
    """Tokens that are not computed again when these prompts are served one after another."""
    outputs = []
    for each in given:
        add(llm, "one", each, 1)
        while not (done := list(finished(llm))):
            pass
        outputs += done
    return sum(each.num_cached_tokens or 0 for each in outputs)


@pytest.mark.parametrize("name", MODELS)
def test_prompts_that_go_on_from_a_kept_state(name: str, tmp_path: Path):
    model = made(tmp_path, **MODELS[name])
    (prefix,), tails = prompts((3 * BLOCK + 5,)), prompts((1, 7, 40), seed=2)
    given = [prefix + tail for tail in tails]
    with engine(tmp_path, **CACHING) as llm:
        assert served(llm, [prefix]) == [alone(model, prefix)]
        assert hits(llm, given) >= 2 * BLOCK * len(given)
        assert served(llm, given) == [alone(model, each) for each in given]


@pytest.mark.parametrize("name", ["S_k", "S_v", "start_k", "start_v", "tail"])
def test_a_state_that_is_not_copied_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = made(tmp_path, chunk_size=20)
    (prompt,) = prompts((3 * BLOCK + 5,))
    every = TrellisForCausalLM.get_mamba_state_copy_funcs

    def without(served_model: Any, types: Any) -> Any:
        index = list(served_model.blocks[0].pool.shapes).index(name)
        return {
            each: (*found[:index], _nothing, *found[index + 1 :]) for each, found in every(served_model, types).items()
        }

    monkeypatch.setattr(TrellisForCausalLM, "get_mamba_state_copy_funcs", without)
    with engine(tmp_path, **CACHING) as llm:
        assert served(llm, [prompt]) != [alone(model, prompt)]


def _nothing(state: Any, block_ids: list[int], index: int, accepted: int) -> MambaCopySpec:
    return MambaCopySpec(start_addr=state.data_ptr(), num_elements=0)


def test_twenty_preemptions(tmp_path: Path):
    model = made(tmp_path, chunk_size=20)
    given = dict(zip("abcdef", prompts((5, 31, 32, 40, 70, 100)), strict=True))
    answers, preempted, step = {}, 0, 0
    with engine(tmp_path, **CACHING) as llm:
        for name, prompt in given.items():
            add(llm, name, prompt, 60)
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        while llm.llm_engine.has_unfinished_requests():
            if step % 7 == 6 and preempted < 24:
                preempted += len(scheduler.running)
                llm.reset_prefix_cache(reset_running_requests=True)
            answers |= {each.request_id: list(each.outputs[0].token_ids) for each in finished(llm)}
            step += 1
    assert preempted >= 20
    assert answers == {name: alone(model, prompt, 60) for name, prompt in given.items()}
