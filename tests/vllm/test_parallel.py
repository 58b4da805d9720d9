"""Heads and hidden units shared by two processes, which sum over gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engines import alone, engine, greedy, made, prompts, served

MODELS: dict[str, dict[str, Any]] = {
    "TRELLIS, a learned first state": {"learned_state": True, "step_size": "token"},
    "a rule with maps of low rank and parameters of heads": {"rule": "kda", "chunk_size": None},
}


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_say_what_the_model_says_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Two ranks and the process that schedules are three, which two cores could not give one each.
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    model = made(tmp_path, layers=1, **MODELS[name])
    given = prompts((1, 17, 40, 75))
    wanted = [alone(model, each, 8) for each in given]
    assert len({tuple(each) for each in wanted}) == len(wanted), "models that say the same to all prompts show nothing"
    kept = {"enable_prefix_caching": True, "block_size": 32}
    with engine(tmp_path, tensor_parallel_size=2, poisoned=False, **kept) as llm:
        assert served(llm, given, 8) == wanted
        # Again, the longer ones from what every rank has kept of its heads.
        asked = [{"prompt_token_ids": each} for each in given]
        again = llm.generate(asked, greedy(8), use_tqdm=False)
        assert [list(each.outputs[0].token_ids) for each in again] == wanted
        assert [each.num_cached_tokens for each in again] == [0, 0, 32, 64]
