"""Warming up: a first call afterwards compiles nothing, and what was compiled is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import trellis_ops
from codegen.device import cpu
from codegen.errors import SizeError, WorkloadError
from codegen.kernels import build
from codegen.rules import NAMED
from codegen.schedules.registry import SCHEDULES, default, register
from codegen.spec import GLUE_OPERATORS, Problem, Spec
from tests.support.winner_record import winner_record
from tests.toy_backend.schedule import ToySchedule
from trellis_ops.dispatch import resolve
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.decode import decoder
from trellis_ops.lm.model import TrellisLM
from trellis_ops.operators import plan
from trellis_ops.specs import recorded
from tuning_db import Store

pytestmark = pytest.mark.filterwarnings("ignore::tuning_db.TuningDatabaseWarning")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty tuning database, nothing compiled in this process, and one thread, which small tensors cannot share."""
    made, threads = Store(tmp_path / "user", tmp_path / "shipped"), torch.get_num_threads()
    monkeypatch.setattr(resolve, "default_store", lambda: made)
    monkeypatch.delenv(resolve.VARIABLE, raising=False)
    torch.set_num_threads(1)
    trellis_ops.forget()
    build._build.cache_clear()
    yield made
    torch.set_num_threads(threads)
    trellis_ops.forget()


def small_model(**changes) -> TrellisLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "layers": 1, "width": 16, "heads": 2, "num_slots": 8, "chunk_size": 4, **changes}
    return TrellisLM(TrellisConfig(**sizes))


def compiled() -> int:
    return build._build.cache_info().misses


def ask(model: TrellisLM, *kinds: str) -> None:
    """A prompt that ends inside a chunk, tokens one by one into the next, a gradient."""
    tokens = torch.randint(40, (3, 9))
    if "prefill" in kinds:
        with torch.no_grad():
            _, state = model(tokens)
    if "decode" in kinds:
        for token in tokens[:, :5].T:
            model.step(token, state)
    if "train" in kinds:
        model(tokens[:, :8], return_state=False)[0].sum().backward()


ALL = ("prefill", "decode", "train")

BETWEEN = 5
"""Kernels between the products of a block in a prefill."""


def test_the_first_calls_of_a_model_compile_nothing(monkeypatch):
    model = small_model()
    made = trellis_ops.warm_up(model, kinds=ALL, batch=3, tokens=(8, 9))
    before = compiled()
    monkeypatch.setattr(decoder, "kernel_of", lambda spec: pytest.fail(f"{spec.key()} is compiled by a call"))
    ask(model, *ALL)
    assert compiled() == before >= len(made.served) == 3 + len(GLUE_OPERATORS)


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_size": 1},
        {"decode": "exact", "step_size": "token", "outer_gradient": "first_order"},
        {"phi": "softmax", "dim_k": 6, "dim_v": 10},
        *({"rule": name, "chunk_size": None} for name, each in NAMED.items() if not each.rule.is_trellis),
    ],
    ids=str,
)
def test_the_calls_of_a_model_are_those_that_it_is_warmed_up_for(changes, force, monkeypatch):
    force("eager")
    asked, made = [], plan._resolve
    monkeypatch.setattr(plan, "_resolve", lambda request, *rest: asked.append(request.spec) or made(request, *rest))
    model = small_model(**changes)
    ask(model, *ALL)
    (mixer,) = (block.mixer for block in model.blocks)
    expected = [spec for kind in ALL for spec in mixer.called_specs(kind, 3, 8)]
    assert {of_any_size(spec) for spec in asked} == {of_any_size(spec) for spec in expected}


def of_any_size(spec: Spec) -> Spec:
    return dataclasses.replace(spec, problem=dataclasses.replace(spec.problem, batch=1, tokens=1))


def test_what_is_left_out_is_compiled_by_the_first_call():
    model = small_model()
    trellis_ops.warm_up(model, kinds="prefill", tokens=9)
    ask(model, "prefill")
    assert compiled() == 1 + BETWEEN
    ask(model, "prefill", "decode")
    assert compiled() == 3 + BETWEEN, "a block and the logits"


def test_every_length_has_its_winner_or_the_default_and_the_record_says_which(store):
    spec = Spec(TrellisConfig().record, Problem("trellis_attention", 1, 1024, 2, 8, 8, 8, 4))
    schedule = dataclasses.replace(default("tvm", spec, cpu()), threads=1, accumulators=4)
    store.commit(winner_record(spec, schedule))
    made = trellis_ops.warm_up(small_model(), kinds=("prefill",))
    assert sorted(each.origin for each in made.served) == (1 + BETWEEN) * ["default schedule"] + ["exact winner"]
    (winner,) = (each for each in made.served if each.record is not None)
    assert (winner.schedule, winner.spec) == (schedule.key(), spec.key())
    assert winner.record == str(store.user.path(cpu().key()))
    assert f"{schedule.key()} (exact winner)" in str(made) and str(made).count("\n") == 2 + BETWEEN


def test_packed_prompts_are_one_long_sequence():
    model = small_model()
    served = [each.spec for each in trellis_ops.warm_up(model, kinds=("packed",), batch=3, tokens=5).served]
    assert len(served) == 1 + BETWEEN
    for operator in ("trellis_attention", "memory_inputs"):
        (packed,) = (spec for spec in served if spec.startswith(operator))
        assert "/B1-T15-H2/" in packed


def test_models_of_float64_call_no_kernel_and_those_under_autocast_others():
    model = small_model()
    (mixer,) = (block.mixer for block in model.blocks)
    with torch.autocast("cpu", torch.bfloat16):
        assert [each.problem.dtype for each in mixer.called_specs("decode", 1, 1)] == ["bfloat16"]
    assert trellis_ops.warm_up(model.double()).served == ()


def test_a_backward_without_kernels_has_its_forward_compiled(monkeypatch):
    register(ToySchedule)
    monkeypatch.setenv(resolve.VARIABLE, "toy")
    try:
        made = trellis_ops.warm_up(small_model(), kinds=("train",), tokens=8)
    finally:
        del SCHEDULES["toy"]
    assert [(each.implementation, "backward" in each.spec) for each in made.served] == [("eager", True), ("toy", False)]


def test_what_was_recorded_is_compiled_from_the_file(tmp_path, monkeypatch):
    model = small_model()
    file = tmp_path / "specs.json"
    monkeypatch.setenv(recorded.VARIABLE, str(file))
    ask(model, "prefill", "decode")
    monkeypatch.delenv(recorded.VARIABLE)
    build._build.cache_clear()
    trellis_ops.forget()
    assert len(trellis_ops.warm_up(file).served) == 3 + BETWEEN
    before = compiled()
    ask(model, "prefill", "decode")
    assert compiled() == before


def test_a_list_of_specs():
    spec = Spec(TrellisConfig().record, Problem("trellis_step", tokens=1, chunk=1, slots=8, dim_k=8, dim_v=8))
    (served,) = trellis_ops.warm_up([spec, spec]).served
    assert (served.spec, served.origin, compiled()) == (spec.key(), "default schedule", 1)


@pytest.mark.parametrize(
    ("what", "options", "error", "said"),
    [
        (nn.Linear(2, 2), {}, TypeError, "Linear has no token mixer"),
        ([Problem()], {}, TypeError, "is no codegen.spec.Spec; give a model, a list of specs, or a workload"),
        ("missing.json", {}, WorkloadError, "missing.json: the file does not exist"),
        (small_model(), {"kinds": ("decoding",)}, ValueError, "'decoding'; choose from prefill, packed, decode, train"),
        (small_model(), {"batch": 0}, SizeError, "batch=0"),
        (small_model(), {"tokens": [8, -1]}, SizeError, "tokens=-1"),
    ],
)
def test_what_cannot_be_warmed_up_is_refused_before_anything_is_compiled(what, options, error, said):
    with pytest.raises(error, match=said):
        trellis_ops.warm_up(what, **options)
    assert compiled() == 0
