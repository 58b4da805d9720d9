"""What a stored prefix costs to find and load, whatever its length, and the first token after it:

    python -m tests.benchmarks.studies.serving.prefix_loads
    python -m tests.benchmarks.studies.serving.prefix_loads --prefill 16384

All of one thread; milliseconds of the clock, the median and the least of the rounds, and of the processor, the median.
A machine that does something else beside raises the former. The states are of the model `125M`; the numbers in them do
not matter, so that a long prefix is stored without being read.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.support import redis_server
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.serve.store import Disk, Memory, PrefixStore, Request
from trellis_ops.serve.store.chain import TENANT, Chain, Secrets, segment_of
from trellis_ops.serve.store.tiers.redis import Redis
from trellis_ops.serve.store.tiers.tier import Tier

LENGTHS = (1_024, 16_384, 100_032)
"""Tokens of the stored prefixes, whole segments."""

_ROOM = 2**30


@dataclass(frozen=True)
class Cost:
    """Of one call, in milliseconds: the median and the least of the clock, and the median of the processor."""

    median: float
    least: float
    processor: float

    def __str__(self) -> str:
        return f"{self.median:.1f} | {self.least:.1f} | {self.processor:.1f}"


def cost(call: Callable[[], object], rounds: int) -> Cost:
    """That of `call`, after one call that is not counted."""
    call()
    clock, processor = [], []
    for _ in range(rounds):
        began, used = time.perf_counter(), time.process_time()
        call()
        clock.append(1e3 * (time.perf_counter() - began))
        processor.append(1e3 * (time.process_time() - used))
    return Cost(statistics.median(clock), min(clock), statistics.median(processor))


def lookup_cost(model: TrellisLM, tier: Tier, length: int, rounds: int) -> Cost:
    """Of a lookup that finds a prefix of `length` tokens in `tier`: keys, finding, checking, and loading."""
    request = PrefixStore(secrets.token_bytes(32), [tier]).tenant("a tenant")
    prompt = torch.randint(model.config.vocab_size, (length + 1,))
    request.lookup(model, prompt).save(length, model.carried(model.first_state(1)))
    assert request.lookup(model, prompt).found == length
    return cost(lambda: request.lookup(model, prompt), rounds)


def keys_cost(model: TrellisLM, length: int, rounds: int) -> Cost:
    """Of the chain of keys over `length` tokens alone."""
    keys = Secrets.of(secrets.token_bytes(32))
    owner, segment = keys.owner("a model", TENANT, "a tenant"), segment_of(model.config.chunk)
    tokens = torch.randint(model.config.vocab_size, (length,))
    return cost(lambda: Chain(keys, owner, segment).extend(tokens), rounds)


def first_token(model: TrellisLM, prompt: Tensor, request: Request | None) -> None:
    """Read a prompt up to its first new token."""
    next(model.stream(prompt, 1, temperature=0, prefix_store=request))


def print_loads(model: TrellisLM, rounds: int) -> None:
    """The table of lookups."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tiers: dict[str, Callable[[], Tier]] = {"memory": lambda: Memory(_ROOM)}
        tiers["disk"] = lambda: Disk(folder / "states", _ROOM)
        if redis_server.PROGRAM is not None:
            server = stack.enter_context(redis_server.server(folder))
            tiers["Redis on this machine"] = lambda: Redis(server.url, _ROOM, timeout_seconds=30.0)
        print("| tokens of the prefix | found in | ms, median | ms, least | processor ms |\n|---|---|---|---|---|")
        for length in LENGTHS:
            for name, make in tiers.items():
                print(f"| {length:,} | {name} | {lookup_cost(model, make(), length, rounds)} |", flush=True)
            print(f"| {length:,} | its keys alone | {keys_cost(model, length, rounds)} |", flush=True)


def print_first_token(model: TrellisLM, tokens: int, rounds: int) -> None:
    """The time to the first token of a prompt of `tokens` tokens, read whole and with a hit."""
    store = PrefixStore(secrets.token_bytes(32), [Memory(_ROOM)])
    prompt = torch.randint(model.config.vocab_size, (1, tokens))
    first_token(model, prompt[:, :200], None)  # It loads the kernels.
    began = time.process_time()
    first_token(model, prompt, store.tenant("a tenant"))
    whole = 1e3 * (time.process_time() - began)
    hit = cost(lambda: first_token(model, prompt, store.tenant("a tenant")), rounds)
    share = hit.processor / whole
    print(f"first token of {tokens:,}: {whole:,.0f} ms without, {hit.processor:.1f} ms with a hit, {share:.2%}")
    print(f"(processor time of one thread; of the clock, the hit took {hit.median:.1f} ms, at least {hit.least:.1f})")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.serving.prefix_loads", description=__doc__
    )
    parser.add_argument("--prefill", type=int, default=0, help="measure the first token of so long a prompt instead")
    parser.add_argument("--rounds", type=int, default=20, help="lookups of each kind")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = TrellisLM(TrellisConfig.preset("125M")).eval()
    if given.prefill:
        print_first_token(model, given.prefill, given.rounds)
    else:
        print_loads(model, given.rounds)


if __name__ == "__main__":
    main()
