"""A step, and a mixed batch, of rows in a pool against gathering their states, computing and scattering them again:

    python -m tests.benchmarks.studies.serving.pool

prints for each case the processor time of a call on one thread, and how many times as long the other way takes.
Calls take turns in one process; times are medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trellis_ops import trellis_attention, trellis_step

ROUNDS = 60
CAPACITY, HEADS, DIM, SLOTS, CHUNK = 64, 8, 64, 64, 64


@dataclass(frozen=True)
class Case:
    """A call of the pool, and the same without.

    Attributes:
        name: what the rows do.
        pooled, gathered: the calls.
    """

    name: str
    pooled: Callable[[], object]
    gathered: Callable[[], object]


def ratio_of(case: Case, rounds: int = ROUNDS) -> tuple[float, float]:
    """Seconds of a call on the pool, and how many times as long gather, compute and scatter take."""
    seconds: dict[str, list[float]] = {"pooled": [], "gathered": []}
    for turn in range(rounds + 1):
        for name, call in (("pooled", case.pooled), ("gathered", case.gathered)):
            begin = time.thread_time()
            call()
            # The first call compiles.
            seconds[name] += [time.thread_time() - begin] if turn else []
    pooled, gathered = (statistics.median(each) for each in seconds.values())
    return pooled, gathered / pooled


def decode(rows: int) -> Case:
    """One token of so many rows, all of them inside a chunk."""
    token, pools, slots = _token(rows), _pools(), torch.randperm(CAPACITY)[:rows]
    positions = 1 + torch.randint(0, CHUNK - 1, (rows,))
    s_k, s_v, g_k, g_v = pools

    def pooled() -> object:
        rest = {"state_indices": slots, "positions": positions, "chunk_size": CHUNK}
        return trellis_step(*token, (s_k, s_v), gradient_state=(g_k, g_v), **rest)

    def gathered() -> object:
        held_k, held_v, start_k, start_v = (x[slots] for x in pools)
        y = trellis_step(*token, (held_k, held_v), gradient_state=(start_k, start_v))
        s_k[slots], s_v[slots] = held_k, held_v
        return y

    return Case(f"{rows} rows decode", pooled, gathered)


def mixed(rows: int, tokens: int) -> Case:
    """One token of so many rows, and so many tokens of a prompt that starts at a chunk."""
    pools, slots = _pools(), torch.randperm(CAPACITY)[: rows + 1]
    s_k, s_v, g_k, g_v = pools
    every = [x[None] for x in _token(rows + tokens)]
    positions = torch.cat([1 + torch.randint(0, CHUNK - 1, (rows,)), torch.tensor([CHUNK])])
    ends = torch.cat([torch.arange(rows + 1), torch.tensor([rows + tokens])])
    first, last = [x[0, :rows] for x in every], [x[:, rows:] for x in every]

    def pooled() -> object:
        rest = {"state_indices": slots, "positions": positions, "chunk_size": CHUNK, "cu_seqlens": ends}
        return trellis_attention(*every, initial_state=(s_k, s_v), gradient_state=(g_k, g_v), **rest)

    def gathered() -> object:
        held_k, held_v, start_k, start_v = (x[slots] for x in pools)
        step = (held_k[:rows], held_v[:rows])
        trellis_step(*first, step, gradient_state=(start_k[:rows], start_v[:rows]))
        initial = (held_k[rows:], held_v[rows:])
        _, finals = trellis_attention(*last, initial_state=initial, chunk_size=CHUNK, output_final_state=True)
        assert finals is not None
        held_k[rows:], held_v[rows:] = finals
        s_k[slots], s_v[slots] = held_k, held_v
        return finals

    return Case(f"{rows} rows decode, one prefills {tokens} tokens", pooled, gathered)


def _token(rows: int) -> list[Tensor]:
    """q, k, v, target, log_decay and step_size of so many tokens."""
    unit = [torch.nn.functional.normalize(torch.randn(rows, HEADS, DIM), dim=-1) for _ in range(3)]
    return [*unit, torch.randn(rows, HEADS, SLOTS), -0.02 * torch.rand(rows, HEADS), 0.1 * torch.rand(rows, HEADS)]


def _pools() -> list[Tensor]:
    return [torch.randn(CAPACITY, HEADS, SLOTS, DIM) / DIM**0.5 for _ in range(4)]


def main() -> None:
    """Print a line for each case."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for case in (decode(32), decode(8), mixed(31, 64), mixed(31, 1024)):
        seconds, ratio = ratio_of(case, ROUNDS if "prefills" not in case.name else ROUNDS // 4)
        print(f"{case.name:44} {1e3 * seconds:7.2f} ms   gather and scatter {ratio:4.2f}x")


if __name__ == "__main__":
    main()
