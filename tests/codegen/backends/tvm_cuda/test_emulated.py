"""Every TVM kernel for CUDA against the oracle in float64, its generated source emulated on this CPU.

That the threads of a block wait for each other where they must is seen from two runs in opposite orders.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from codegen import render
from codegen.kernels.operator import CompiledOperator
from codegen.render import TEMPLATES, template_digest
from codegen.rule import MAPS, Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.emulators.emulated_cuda import COMPILER, HOPPER, emulated
from tests.support.cases.kernels import Case, check_attention, check_readout, check_step, check_update
from tests.support.user_maps import GELU, NAMES, RMS_SILU, WRITES

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")

SILU = Rule("silu", link="silu")


class With:
    """Builds emulated programs with the default schedule, changed as told, by multiply-adds unless told otherwise."""

    def __init__(self, **changes: object) -> None:
        self.changes = {"dot_precision": "ieee", **changes}

    def __call__(self, spec: Spec) -> CompiledOperator:
        return emulated(spec, dataclasses.replace(default("tvm", spec, HOPPER), **self.changes))


@pytest.mark.parametrize(("phi", "tile"), [*((phi, 8) for phi in MAPS), ("ln_silu", 32), ("softmax", 32)])
def test_update_with_every_map(phi, tile):
    case = Case("memory_update", lengths=(47, 47), dim_v=20, rule=Rule(phi, phi_eps=1e-2, step_size="token"))
    check_update(With(tile_tokens=tile), case)


@pytest.mark.parametrize(("tile", "dtype"), [(8, "float32"), (32, "bfloat16")])
@pytest.mark.parametrize("operator", ["memory_readout", "memory_readout_transposed"])
def test_readout(operator, tile, dtype):
    check_readout(With(tile_tokens=tile), Case(operator, lengths=(47, 47), dim_v=20, dtype=dtype))


@pytest.mark.parametrize(("name", "tile"), [*((name, 32) for name in MAPS if name != "identity"), ("ln_silu", 4)])
def test_split_with_every_readout_map(name, tile):
    check_attention(With(tile_tokens=tile), Case(rule=Rule("identity", link=name, out=name)))


@pytest.mark.parametrize("phi", MAPS)
def test_recurrent_with_every_map(phi):
    rule = Rule(phi, link=phi, out=phi, phi_eps=1e-2, step_size="token")
    check_attention(With(), Case(chunk=1, lengths=(9, 9), dim_v=40, rule=rule))


@pytest.mark.parametrize("write", WRITES, ids=NAMES)
def test_maps_that_a_user_defines(write):
    """Tokens of a tile and, in the exact recurrence, one token after the other; readouts by user's maps as well."""
    rule = Rule(write, link=RMS_SILU, out=GELU, phi_eps=1e-2, step_size="token")
    check_attention(With(), Case(chunk=16, lengths=(21, 21), rule=rule))
    check_step(With(), Case("trellis_step", lengths=(1, 1, 1), rule=rule))


@pytest.mark.parametrize(
    ("operator", "dtype"),
    [
        ("trellis_step", "float32"),
        ("trellis_step", "bfloat16"),
        ("trellis_step_chunked", "float32"),
        ("trellis_step_chunked", "float16"),
    ],
)
def test_step(operator, dtype):
    check_step(With(), Case(operator, lengths=(1, 1, 1), dtype=dtype))


@pytest.mark.parametrize("operator", ["trellis_step", "trellis_step_chunked"])
def test_a_step_whose_states_do_not_fit_registers(operator):
    check_step(With(), Case(operator, lengths=(1,), heads=1, dim_k=256, dim_v=250, slots=256))


@pytest.mark.parametrize(
    ("chunk", "dim_k", "dim_v", "slots"),
    [
        *((20, *sizes) for sizes in [(1, 1, 1), (3, 40, 2), (33, 5, 17), (64, 64, 64), (80, 96, 48)]),
        *((1, *sizes) for sizes in [(1, 1, 1), (33, 5, 17)]),
    ],
)
def test_sizes(chunk, dim_k, dim_v, slots):
    sizes = {"dim_k": dim_k, "dim_v": dim_v, "slots": slots}
    check_attention(With(), Case(chunk=chunk, lengths=(23,), rule=SILU, **sizes))


@pytest.mark.parametrize(("chunk", "tile"), [(2, 4), (16, 16), (33, 8), (70, 64), (2**30, 16)])
def test_every_chunk_and_tile(chunk, tile):
    lengths = (7,) if chunk < 16 else (67,)
    check_attention(With(variant="split", tile_tokens=tile, accumulators=16), Case(chunk=chunk, lengths=lengths))


@pytest.mark.parametrize(("threads", "accumulators"), [(64, 8), (512, 4)])
def test_every_share_of_the_work(threads, accumulators):
    check_attention(With(tile_tokens=16, threads=threads, accumulators=accumulators), Case())


@pytest.mark.parametrize("chunk", [1, 20])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_packed_sequences_that_forget_everything(chunk, dtype):
    case = Case(chunk=chunk, lengths=(41, 0, 1, 20, 5), packed=True, dtype=dtype)
    inputs = case.inputs()
    inputs.log_decay[:, ::3] = float("-inf")
    inputs.log_decay[:, 1::3] = -40.0
    check_attention(With(), case, inputs)


@pytest.mark.parametrize("chunk", [1, 20])
def test_zero_state(chunk):
    case = Case(chunk=chunk)
    check_attention(With(), case, case.inputs(state="zero"))


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    copy = tmp_path / "templates"
    shutil.copytree(TEMPLATES, copy)
    monkeypatch.setattr(render, "TEMPLATES", copy)
    for cache in (template_digest, render._environment):
        cache.cache_clear()
    yield copy / "tvm_cuda"
    for cache in (template_digest, render._environment):
        cache.cache_clear()


@pytest.mark.parametrize("barrier", range(4))
def test_a_missing_barrier_is_found(templates, barrier):
    path = templates / "memory_step.py.j2"
    lines = path.read_text().splitlines(keepends=True)
    del lines[[number for number, line in enumerate(lines) if line.strip() == "sync()"][barrier]]
    path.write_text("".join(lines))
    with pytest.raises(AssertionError, match=r"order of the threads|relative error"):
        check_step(With(), Case("trellis_step", lengths=(1,)))


def test_a_backward_has_no_kernel_and_says_so():
    spec = Spec(Rule(), Problem(direction="backward"))
    assert "for CUDA there are TVM templates of" in why_illegal(spec, default("tvm", spec, HOPPER), HOPPER)
