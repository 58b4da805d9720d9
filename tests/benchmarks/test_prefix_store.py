"""A store of prefixes: what a hit is worth, what a load costs, and whether another tenant's prompt can be told."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.benchmarks.results.replay import Replay
from tests.benchmarks.results.summary import Results
from tests.benchmarks.results.targets import Target
from tests.benchmarks.studies.serving import side_channel
from tests.benchmarks.studies.serving.prefix_loads import LENGTHS, lookup_cost
from tests.benchmarks.studies.serving.side_channel import HIT, MISS, OTHER
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.serve.store import Disk, Memory

TRIALS, ROUNDS = 200, 20
MOST_DEVIATIONS, LEAST_SEEN = 3.0, 0.9
MOST_MS = {"memory": 10.0, "disk": 50.0}


def test_another_tenants_prompt_cannot_be_told(results: Results, replay: Replay) -> None:
    times = side_channel.measured(TRIALS)
    deviations = abs(times.auc(MISS, OTHER) - 0.5) / times.noise
    remark = f"AUC {times.auc(MISS, OTHER):.3f} of {TRIALS} trials, standard deviation of chance {times.noise:.3f}"
    name = "a prompt that another tenant sent beside one that nobody sent"
    shown = "{:.1f} standard deviations".format
    results.targets.append(Target(name, deviations, MOST_DEVIATIONS, False, remark=remark, shown=shown))
    name = "what the same measurement sees of one's own hits, AUC"
    results.targets.append(Target(name, times.auc(MISS, HIT), LEAST_SEEN, True, shown="{:.3f}".format))
    replay("first tokens of hits", times.seconds[HIT])


def test_a_stored_prefix_loads_at_once(results: Results, replay: Replay, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TrellisLM(TrellisConfig.preset("125M")).eval()
    for tier in (Memory(2**28), Disk(tmp_path, 2**28)):
        found = [lookup_cost(model, tier, length, ROUNDS) for length in LENGTHS]
        name = f"a stored prefix of {LENGTHS[-1]:,} tokens at 125M from {tier.name}"
        short, long = found[0], found[-1]
        remark = (
            f"of the processor; {short.processor:.1f} ms for {LENGTHS[0]:,} tokens; by the clock {long.least:.1f} ms"
        )
        shown = "{:.1f} ms".format
        target = Target(name, long.processor, MOST_MS[tier.name], False, remark=remark, shown=shown)
        results.targets.append(target)
    replay("loads", (long.processor / 1e3,))
