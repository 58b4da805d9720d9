"""Memory that a call would not find is refused before it is asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from codegen.errors import MemoryRoomError
from tests.support.inputs import make_inputs
from trellis_ops import forget, memory_readout, memory_update, trellis_attention
from trellis_ops.dispatch import memory_room
from trellis_ops.operators import plan, registered

GIBIBYTE = 2**30


def tensor(*shape: int) -> torch.Tensor:
    """A tensor of this shape that takes a few bytes."""
    return torch.zeros(1).expand(shape)


def tokens(length: int, heads: int, dim: int, slots: int) -> list[torch.Tensor]:
    q, k, v = (tensor(1, length, heads, dim) for _ in range(3))
    return [q, k, v, tensor(1, length, heads, slots), tensor(1, length, heads), tensor(heads)]


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_results_and_buffers_that_do_not_fit(implementation):
    _, k, _, target, log_decay, step_size = tokens(2**24, 8, 16, 16)
    chunk_states = 2**24 * 8 * 16 * 16 * 4
    words = rf"needs \d+ bytes .*chunk_states {chunk_states * (2 if implementation == 'eager' else 1)}\b.* cpu has \d+"
    with pytest.raises(MemoryRoomError, match=words) as caught:
        memory_update(k, target, log_decay, step_size, phi="silu", chunk_size=1, implementation=implementation)
    assert isinstance(caught.value, MemoryError)
    asked, there = (int(number) for number in re.findall(r"(\d+) bytes", str(caught.value)))
    assert asked > chunk_states > there
    huge = tokens(2**28, 16, 16, 16)
    options = {"phi": "silu", "link": "silu", "implementation": implementation}
    with pytest.raises(MemoryRoomError, match=f"y {2**28 * 16 * 16 * 4 * (2 if implementation == 'eager' else 1)}"):
        trellis_attention(*huge, chunk_size=16, **options)
    states = tensor(1, 2**24, 16, 16, 16)
    with pytest.raises(MemoryRoomError, match="y "):
        memory_readout(huge[0], huge[1], states, huge[3], *huge[4:], chunk_size=16, implementation=implementation)


def test_a_gradient_whose_kept_states_or_whose_reverse_pass_do_not_fit(monkeypatch):
    huge = [x.requires_grad_() for x in tokens(2**26, 16, 16, 16)]
    with pytest.raises(MemoryRoomError, match="chunk_states_k"):
        trellis_attention(*huge, phi="silu", link="silu", chunk_size=16, implementation="tvm")

    monkeypatch.setattr(memory_room, "LITTLE", 0)
    forget()
    x = make_inputs(1, 20, 2, 20, 12, 18).leaves()
    y, _ = trellis_attention(*x.args, phi_eps=1e-2, chunk_size=20, implementation="tvm")
    monkeypatch.setattr(memory_room, "available_bytes", lambda: 100)
    with pytest.raises(MemoryRoomError, match=r"dq \d+, dk \d+"):
        torch.autograd.grad(y.sum(), x.args)
    monkeypatch.undo()
    forget()


def test_copies_of_inputs_count(monkeypatch):
    monkeypatch.setattr(memory_room, "LITTLE", 0)
    forget()
    x = make_inputs(1, 20, 2, 8, 8, 8)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) if t.dim() == 4 else t for t in x.args]
    asked = []
    for args in (x.args, strided):
        monkeypatch.setattr(memory_room, "available_bytes", lambda: 0)
        with pytest.raises(MemoryRoomError) as caught:
            trellis_attention(*args, phi="silu", link="silu", chunk_size=16, implementation="tvm")
        asked.append(caught.value.asked)
    assert asked[1] - asked[0] == sum(t.nbytes for t in x.args if t.dim() == 4)
    monkeypatch.undo()
    forget()


def test_a_call_that_fits_runs_and_a_small_one_is_not_looked_at(monkeypatch):
    x = make_inputs(1, 20, 2, 8, 6, 5)
    settings = ("silu", "silu", "identity", 1e-6, 16, "bilevel")
    arguments = (registered.attention_request, (*x.args, None, None, None), settings, "eager")
    assert plan.plan(*arguments).needs is None
    monkeypatch.setattr(memory_room, "LITTLE", 0)
    forget()
    assert plan.plan(*arguments).needs is not None
    y, _ = trellis_attention(*x.args, phi="silu", link="silu", chunk_size=16)
    assert y.isfinite().all()
    forget()


def test_meta_tensors_need_none():
    huge = [x.to("meta") for x in tokens(2**28, 16, 16, 16)]
    states, _, _ = memory_update(huge[1], huge[3], *huge[4:], chunk_size=2**26)
    assert states.shape == (1, 4, 16, 16, 16)


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def linux(folder: Path, cgroup: str) -> tuple[Path, Path]:
    process, groups = folder / "proc", folder / "cgroup"
    write(process, meminfo=f"MemTotal: 9 kB\nMemAvailable: {8 * 2**20} kB\nSwapFree: {2**20} kB\nHugePages_Total: 0\n")
    write(process / "self", cgroup=cgroup)
    return process, groups


def test_what_linux_has_available(tmp_path):
    process, groups = linux(tmp_path, "0::/\n")
    assert memory_room.available_bytes(process, groups) == 9 * GIBIBYTE
    assert memory_room.available_bytes(tmp_path / "nothing", groups) is None
    here = memory_room.available_bytes()
    assert here is None or here > 2**20


def test_the_limit_of_a_control_group_around_this_one_holds(tmp_path):
    process, groups = linux(tmp_path, "1:cpu:/\n0::/job/task\n")
    stat = f"anon 5\ninactive_file {GIBIBYTE}\n"
    write(groups / "job" / "task", memory__max="max\n", memory__current="5\n", memory__stat=stat)
    write(groups / "job", memory__max=f"{4 * GIBIBYTE}\n", memory__current=f"{3 * GIBIBYTE}\n", memory__stat=stat)
    assert memory_room.available_bytes(process, groups) == 2 * GIBIBYTE


def test_the_limit_of_a_control_group_of_version_1_holds(tmp_path):
    process, groups = linux(tmp_path, "4:memory:/job\n0::/\n")
    write(
        groups / "memory" / "job",
        memory__limit_in_bytes=f"{GIBIBYTE}\n",
        memory__usage_in_bytes=f"{GIBIBYTE}\n",
        memory__stat="total_inactive_file 4096\n",
    )
    assert memory_room.available_bytes(process, groups) == 4096
