"""Two gloo processes with different tuning databases run the leader's selection; collectives are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from codegen.device import cpu
from codegen.rule import Rule
from codegen.spec import Problem, Spec
from tests.support.free_port import free_port
from tests.support.inputs import make_inputs
from tests.support.winner_record import winner_record
from trellis_ops import agree_across_ranks
from tuner.space.space import space_of
from tuning_db import Store

SIZES = (1, 16, 2, 8, 8, 8)
SPEC = Spec(Rule(), Problem(tokens=16, heads=2, dim_k=8, dim_v=8, slots=8, chunk=8))
SCHEDULES = [each for each in space_of(SPEC, "tvm", cpu()).schedules.values() if each.threads == 1][:3]
PATIENCE_SECONDS = 180

RANK = """
import json, sys
import torch
import torch.distributed as dist
from tests.support.inputs import make_inputs
from trellis_ops import agree_across_ranks, explain, trellis_attention

dist.init_process_group("gloo")
agree_across_ranks()
count = 0
real = dist.broadcast_object_list
def counted(*args, **kwargs):
    global count
    count += 1
    return real(*args, **kwargs)
dist.broadcast_object_list = counted
args = make_inputs(*json.loads(sys.argv[1])).args
for _ in range(3):
    y, _ = trellis_attention(*args, chunk_size=8)
    trellis_attention(*args, chunk_size=8, implementation="eager")
made = explain(trellis_attention, *args, chunk_size=8)
said = {"count": count, "implementation": made.implementation, "schedule": made.schedule, "origin": made.origin}
print(json.dumps(said | {"notes": list(made.notes), "y": y.flatten().tolist()}))
dist.barrier()
dist.destroy_process_group()
"""


def run(folders: list[Path], variables: list[dict[str, str]]) -> list[dict]:
    """What both ranks say, the leader first."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, json.dumps(SIZES)],
            cwd=Path(__file__).parents[3],
            env={**os.environ, **shared, "RANK": str(rank), "TRELLIS_OPS_TUNING_DB": str(folder), **variable},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, (folder, variable) in enumerate(zip(folders, variables, strict=True))
    ]
    said = []
    for process in started:
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, errors
        said.append(json.loads(output))
    return said


@pytest.mark.parametrize("known", [(0, None), (None, 1)], ids=["leader", "follower"])
def test_ranks_with_different_databases_run_the_leaders_selection(known, tmp_path):
    folders = [tmp_path / "leader", tmp_path / "follower"]
    for folder, place in zip(folders, known, strict=True):
        if place is not None:
            Store(folder).commit(winner_record(SPEC, SCHEDULES[place]))
    leader, follower = run(folders, [{}, {}])
    assert leader["schedule"] == follower["schedule"]
    assert leader["origin"] == ("default schedule" if known[0] is None else "exact winner")
    if known[0] is not None:
        assert leader["schedule"] == SCHEDULES[known[0]].key()
    assert follower["origin"] == "the leader's selection"
    assert follower["notes"] == [
        "its own choice would have been: " + ("default schedule" if known[1] is None else "exact winner")
    ]
    assert leader["count"] == follower["count"] == 1, "one broadcast for a spec, on a hit and on a miss"
    assert leader["y"] == follower["y"], "bit for bit"


def test_a_job_that_did_not_begin_cannot_agree():
    with pytest.raises(RuntimeError, match="init_process_group first"):
        agree_across_ranks()


def test_without_agreement_inputs_alone_decide():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trellis_ops import explain, trellis_attention

        made = explain(trellis_attention, *make_inputs(*SIZES).args, chunk_size=8)
    assert made.origin != "the leader's selection"
