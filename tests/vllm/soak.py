"""Serve many requests of random lengths, abort some, restart the engine, and compare every hundredth answer.

    OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 .venv-vllm/bin/python -m tests.vllm.soak

Prints after each engine how many requests were answered, aborted and compared, and the memory that this process holds.
Fails if an answer differs from that of the model alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from vllm import LLM

from tests.vllm.engines import Prompt, add, alone, engine, finished, made
from trellis_ops.lm.model import TrellisLM

IN_FLIGHT = 24
COMPARED_OF = 100
ABORTED_IN_A_STEP = 0.03


@dataclass
class Counts:
    """What has become of requests so far."""

    answered: int = 0
    aborted: int = 0
    compared: int = 0
    wrong: int = 0


def main() -> int:
    """Serve; the number of wrong answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="how many in all")
    parser.add_argument("--engines", type=int, default=10, help="one after another, with as many requests each")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no engine is started")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, counts, end = random.Random(options.seed), Counts(), time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        model = made(Path(folder), chunk_size=20)
        for index in range(options.engines):
            if time.monotonic() > end:
                print(f"stopped after {index} engines: {options.minutes} minutes are over")
                break
            caching = {"enable_prefix_caching": bool(index % 2), "block_size": 32}
            with engine(Path(folder), max_num_seqs=16, max_num_batched_tokens=77, **caching) as llm:
                _serve(llm, model, draw, options.requests // options.engines, counts)
            print(f"engine {index}: {counts}, {_resident_mb():.0f} MB resident", flush=True)
    return counts.wrong


def _serve(llm: LLM, model: TrellisLM, draw: random.Random, requests: int, counts: Counts) -> None:
    asked: dict[str, tuple[Prompt, int]] = {}
    sent = 0
    while sent < requests or asked:
        while sent < requests and len(asked) < IN_FLIGHT:
            name, prompt = str(sent), [draw.randrange(1, 256) for _ in range(draw.randint(1, 120))]
            asked[name] = prompt, draw.randint(1, 40)
            add(llm, name, *asked[name])
            sent += 1
        if asked and draw.random() < ABORTED_IN_A_STEP:
            name = draw.choice(list(asked))
            llm.llm_engine.abort_request([name])
            del asked[name]
            counts.aborted += 1
        for output in finished(llm):
            if output.request_id not in asked:
                continue
            prompt, tokens = asked.pop(output.request_id)
            counts.answered += 1
            if counts.answered % COMPARED_OF == 0:
                counts.compared += 1
                counts.wrong += list(output.outputs[0].token_ids) != alone(model, prompt, tokens)


def _resident_mb() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 1e6


if __name__ == "__main__":
    sys.exit(main())
