from __future__ import annotations

import functools
import itertools
import random

import optuna
import pytest

from codegen.device import NAMED, cpu
from codegen.errors import ScheduleFieldError
from codegen.rule import Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import SCHEDULES, default, from_settings, variants_of
from codegen.schedules.schedule import Schedule
from codegen.spec import OPERATORS, Problem, Spec
from tuner.errors import NoScheduleError
from tuner.space.sampler import MOST_DEATHS, FreshSampler, distributions_of, untried
from tuner.space.space import space_of
from tuner.studies.telling import release

SPECS = [
    Spec(Rule(), Problem(operator, tokens=1 if "step" in operator else 256, chunk=1 if "step" in operator else chunk))
    for operator, chunk in itertools.product(OPERATORS, (1, 16, 64))
    if chunk == 1 or "step" not in operator
]
MACHINES = [
    ("tvm", cpu()),
    ("tvm", NAMED["x86-64-v2"]),
    ("tvm", NAMED["aarch64"]),
    ("triton", NAMED["sm_90"]),
    ("tvm", NAMED["sm_90"]),
]


@functools.cache
def every_schedule(operator: str, backend: str) -> list[Schedule]:
    fields = {"variant": variants_of(operator, backend), **SCHEDULES[backend].choices}
    box = (dict(zip(fields, values, strict=True)) for values in itertools.product(*fields.values()))
    return [from_settings(backend, settings) for settings in box]


@pytest.mark.parametrize(("backend", "device"), MACHINES)
@pytest.mark.parametrize("spec", SPECS[::2], ids=lambda spec: spec.problem.key())
def test_the_space_is_every_legal_schedule_and_no_other(spec, backend, device):
    space = space_of(spec, backend, device)
    every = every_schedule(spec.problem.operator, backend)
    legal = {schedule.key() for schedule in every if why_illegal(spec, schedule, device) is None}
    assert set(space.schedules) == legal
    assert space.default == default(backend, spec, device)
    choices = space.choices()
    for schedule in space.schedules.values():
        for name, value in schedule.settings().items():
            assert value in choices[name]


def test_the_sampler_proposes_each_legal_point_once_and_nothing_else():
    spec = Spec(Rule(), Problem(chunk=16))
    space = space_of(spec, "tvm", NAMED["x86-64-v3"])
    points, distributions = [schedule.settings() for schedule in space.schedules.values()], distributions_of(space)
    assert len(points) < len(list(itertools.product(*(values.choices for values in distributions.values()))))
    study = optuna.create_study(sampler=FreshSampler(points, distributions, seed=1))
    study.enqueue_trial(points[0])
    proposed = []
    while untried(study, points) or not proposed:
        trial = study.ask(distributions)
        proposed.append(trial.params)
        worth = trial.params["accumulators"] * trial.params["tile_tokens"] + trial.params["threads"]
        study.tell(trial, -float(worth))
    assert proposed[0] == space.default.settings()
    assert len(proposed) == len(points)
    assert all(point in points for point in proposed)
    assert all(proposed.count(point) == 1 for point in proposed)


def test_a_setting_that_is_younger_than_a_record_has_its_default():
    older = default("tvm", SPECS[0], cpu()).settings()
    del older["dot_precision"]
    assert from_settings("tvm", older).dot_precision == "ieee"
    del older["threads"]
    with pytest.raises(ScheduleFieldError, match=r"threads.*missing"):
        from_settings("tvm", older)


@pytest.fixture
def two_points():
    points = [{"a": 1}, {"a": 2}]
    distributions = {"a": optuna.distributions.CategoricalDistribution((1, 2))}
    return optuna.create_study(sampler=FreshSampler(points, distributions, seed=1)), points, distributions


def test_an_interrupted_trial_gives_its_point_back_however_often(two_points):
    study, points, distributions = two_points
    for _ in range(5):
        trial = study.ask(distributions)
        assert untried(study, points) == [point for point in points if point != trial.params]
        release(study, trial)
        assert untried(study, points) == points


def test_a_point_whose_process_dies_again_is_given_up(two_points):
    study, points, distributions = two_points
    deaths = []
    while untried(study, points):
        trial = study.ask(distributions)
        deaths.append(trial.params)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert [deaths.count(point) for point in points] == [MOST_DEATHS, MOST_DEATHS]


def test_tpe_finds_the_best_of_many_points_in_few_trials():
    # Random choice would find one of the three best points in 60 of 256 trials for all five seeds once in twenty times.
    worth = {name: random.Random(name).sample(range(16), 16) for name in ("a", "b")}
    points = [{"a": a, "b": b} for a in range(16) for b in range(16)]
    distributions = {name: optuna.distributions.CategoricalDistribution(tuple(range(16))) for name in ("a", "b")}
    for seed in range(5):
        study = optuna.create_study(sampler=FreshSampler(points, distributions, seed))
        for _ in range(60):
            trial = study.ask(distributions)
            study.tell(trial, float(sum(worth[name][value] for name, value in trial.params.items())))
        assert study.best_value <= 1.0


def test_a_backend_without_a_legal_schedule_says_why():
    spec = Spec(Rule(), Problem())
    with pytest.raises(NoScheduleError, match="written for CPUs and CUDA"):
        space_of(spec, "tvm", NAMED["gfx942"])
