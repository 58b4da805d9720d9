"""Whether the time to the first token tells a prompt that another tenant has sent from one that nobody has:

    python -m tests.benchmarks.studies.serving.side_channel --trials 300

Each trial takes three prompts of the same length in random order: one that this tenant sent before (a hit), one that
another tenant sent before, and one that nobody sent (a miss). The area under the curve (AUC) is the share of pairs in
which a prompt of one kind was slower than one of the other: 0.5 tells nothing, 1 tells all. arXiv 2508.08438 asks this
of shared KV caches.
"""

from __future__ import annotations

import argparse
import random
import secrets
import time
from dataclasses import dataclass

import torch

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.serve.store import Memory, PrefixStore

HIT, OTHER, MISS = "hit", "another tenant's", "miss"
TOKENS = 512
_ROOM = 2**28


@dataclass(frozen=True)
class Times:
    """Seconds to the first token, by kind of prompt, one for each trial."""

    seconds: dict[str, tuple[float, ...]]

    def auc(self, slower: str, faster: str) -> float:
        """The share of pairs in which `slower` took longer than `faster`, ties counted half."""
        pairs = [(a > b) + 0.5 * (a == b) for a in self.seconds[slower] for b in self.seconds[faster]]
        return sum(pairs) / len(pairs)

    @property
    def noise(self) -> float:
        """The standard deviation of the AUC of two kinds that do not differ (Mann and Whitney 1947)."""
        trials = len(self.seconds[MISS])
        return float(((2 * trials + 1) / (12 * trials * trials)) ** 0.5)


def measured(trials: int) -> Times:
    """The times of `trials` trials, on one thread, with the model `tiny`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = TrellisLM(TrellisConfig.preset("tiny")).eval()
    store = PrefixStore(secrets.token_bytes(32), [Memory(_ROOM)])
    mine, others = store.tenant("this one"), store.tenant("another")
    senders = {HIT: mine, OTHER: others, MISS: None}
    order, seconds = random.Random(0), {kind: list[float]() for kind in senders}
    for _ in range(trials + 1):
        prompts = {kind: torch.randint(256, (1, TOKENS)) for kind in senders}
        for kind, sender in senders.items():
            if sender is not None:
                next(model.stream(prompts[kind], 1, prefix_store=sender))
        for kind in order.sample(list(senders), len(senders)):
            began = time.perf_counter()
            next(model.stream(prompts[kind], 1, prefix_store=mine))
            seconds[kind].append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    # The first trial compiles and loads kernels.
    return Times({kind: tuple(found[1:]) for kind, found in seconds.items()})


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.studies.serving.side_channel", description=__doc__
    )
    parser.add_argument("--trials", type=int, default=300, help="of three prompts each")
    times = measured(parser.parse_args(arguments).trials)
    for kind, found in times.seconds.items():
        print(f"{kind}: median {1e3 * sorted(found)[len(found) // 2]:.2f} ms to the first token")
    print(f"AUC of a miss over a hit: {times.auc(MISS, HIT):.3f}")
    print(f"AUC of a miss over another tenant's: {times.auc(MISS, OTHER):.3f}; chance gives 0.5 +- {times.noise:.3f}")


if __name__ == "__main__":
    main()
