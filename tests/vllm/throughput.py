"""Tokens per second of vLLM with many requests beside `TrellisLM.generate` with as many equal rows, in turn.

    OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 .venv-vllm/bin/python -m tests.vllm.throughput

Prints the median over rounds of the time of `generate` divided by that of vLLM, above 1 where vLLM is faster, and the
limit of this ratio in the same run: the time of `generate` divided by the sum of its own and vLLM's for a model that
computes nothing, which is vLLM's work for its steps and requests. All run on one thread of this process, and times are
those of its processor, so that a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from vllm import LLM

from tests.vllm.engines import engine, made, prompts, served
from trellis_ops.lm.model import TrellisLM

MODELS = {
    "tiny": {"width": 128, "heads": 4, "num_slots": 32, "chunk_size": 16},
    "21M": {"layers": 6, "width": 512, "heads": 8, "num_slots": 64, "chunk_size": 64},
}


def main() -> None:
    """Measure every model and number of requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens after each")
    options = parser.parse_args()
    for name in options.model:
        for requests in options.requests:
            rounds = _measure(name, requests, options)
            ratio = statistics.median(each.generate / each.vllm for each in rounds)
            limit = statistics.median(each.generate / each.limit for each in rounds)
            rate = requests * options.tokens / statistics.median(each.vllm for each in rounds)
            print(
                f"{name}, {requests} requests: {ratio:.2f}x generate, limit {limit:.2f}x, share {ratio / limit:.0%}, "
                f"{rate:.0f} tokens/s",
                flush=True,
            )


@dataclass(frozen=True)
class _Round:
    """Seconds of the processor for the same tokens: of `generate`, of vLLM, and of vLLM with the work of `generate`."""

    generate: float
    vllm: float
    limit: float


def _measure(name: str, requests: int, options: argparse.Namespace) -> list[_Round]:
    given = prompts((options.prompt,) * requests)
    with tempfile.TemporaryDirectory() as folder:
        model = made(Path(folder), **MODELS[name])
        memory = {"kv_cache_memory_bytes": 1 << 30, "max_num_seqs": 32, "max_num_batched_tokens": 2048}
        with engine(Path(folder), **memory) as llm:
            rows = torch.tensor(given)
            return [
                _Round(
                    _seconds(lambda: model.generate(rows, options.tokens, temperature=0)),
                    _seconds(lambda: served(llm, given, options.tokens)),
                    _limit(llm, _Steps(model, rows), lambda: served(llm, given, options.tokens)),
                )
                for _ in range(options.rounds + 1)
            ][1:]


class _Steps:
    """What `generate` computes of a batch of rows, in the place of the engine's model."""

    def __init__(self, model: TrellisLM, rows: Tensor) -> None:
        self._model, self._rows = model, rows
        self._logits, self._step = torch.empty(0), lambda tokens: tokens

    def forward(self, input_ids: Tensor, *_: object, **__: object) -> Tensor:
        """Nothing that is read; a step of all prompts, or of one token of each."""
        if len(input_ids) == self._rows.numel():
            logits, state = self._model(self._rows, logits_to_keep=1)
            self._logits, self._step = logits[:, 0], self._model._steps(state)
        else:
            self._logits = self._step(input_ids.long())
        return input_ids.new_empty(len(input_ids), 1, dtype=torch.float32)

    def compute_logits(self, _: Tensor) -> Tensor:
        """The logits of the last step."""
        return self._logits

    def enter(self, served: nn.Module) -> None:
        """Stand for a model of the engine."""
        served.forward, served.compute_logits = self.forward, self.compute_logits  # type: ignore[method-assign]


def _leave(served: nn.Module) -> None:
    del served.forward, served.compute_logits


def _limit(llm: LLM, steps: _Steps, run: Callable[[], object]) -> float:
    """The time of `run` in an engine that computes what `generate` computes."""
    llm.apply_model(steps.enter)
    try:
        return _seconds(run)
    finally:
        llm.apply_model(_leave)


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main()
