from __future__ import annotations

import random

import pytest
import torch

from codegen.device import cpu
from codegen.rule import Rule
from codegen.spec import BETWEEN_OPERATORS, Problem, Spec
from trellis_ops.specs.workload import load_workload
from tuner.measure.baselines.baseline import time_eager
from tuner.measure.ceiling import Ceiling, ceiling_of, limits
from tuner.measure.cost import Cost, cost_of
from tuner.measure.measure import measure
from tuner.measure.rule_cost import state_bytes
from tuner.measure.timed import Timed, Timing
from tuner.search.finals import LEAST_GAIN, compared, judge
from tuner.workload import DEFAULT_FILE, parse_spec


def test_calls_are_measured_in_turn_and_their_inputs_put_back_before_each_sample():
    events: list[str] = []

    def call(name: str) -> Timed:
        return Timed(lambda: events.append(name), lambda: events.append(f"reset {name}"))

    samples = measure({"a": call("a"), "b": call("b")}, cpu(), seconds=10.0, rounds=4)
    resets = [event for event in events if event.startswith("reset")]
    assert resets[-8:] == ["reset a", "reset b"] * 4
    assert [len(samples[name].samples) for name in ("a", "b")] == [4, 4]
    assert all(sample > 0 for each in samples.values() for sample in each.samples)


def test_rounds_end_with_the_time_but_not_before_the_least():
    samples = measure({"a": Timed(lambda: None, lambda: None)}, cpu(), seconds=0.0, rounds=100, least=5)
    assert len(samples["a"].samples) == 5


def test_a_timing_is_a_median_with_its_spread():
    each = Timing((1.0, 2.0, 3.0, 4.0, 100.0))
    assert each.seconds == 3.0
    assert each.spread == pytest.approx(1.0 / 3.0)
    assert Timing((2.0,)).spread == 0.0


def test_the_winner_must_beat_the_default_by_more_than_the_noise():
    steady = Timing((10.0,) * 8)
    verdict = judge({"default": steady, "fast": Timing((5.0,) * 8), "slow": Timing((20.0,) * 8)}, "default")
    assert (verdict.winner, verdict.gain) == ("fast", pytest.approx(1.0))
    assert "2.00x the default's speed" in verdict.reason


def test_the_default_is_kept_within_the_noise_and_that_is_said():
    # Nine rounds whose median gains a twentieth; medians of resampled rounds often gain nothing.
    default = Timing((1.0,) * 9)
    other = Timing(tuple(1 / ratio for ratio in (0.8, 0.9, 0.95, 0.98, 1.05, 1.1, 1.15, 1.2, 1.3)))
    verdict = judge({"default": default, "other": other}, "default")
    assert verdict.winner == "default"
    assert verdict.gain == 0.0
    assert verdict.noise > 0.05
    assert verdict.reason.startswith("default kept: the best other has 1.05x its speed, noise ")


def test_more_rounds_make_a_small_gain_certain():
    ratios = (0.98, 1.0, 1.02, 1.03, 1.04, 1.05, 1.08)
    few = compared(Timing(tuple(1 / ratio for ratio in ratios)), Timing((1.0,) * 7))
    many = compared(Timing(tuple(1 / ratio for ratio in ratios * 20)), Timing((1.0,) * 140))
    assert few.gain == pytest.approx(many.gain)
    assert not few.certain
    assert many.certain


def test_equal_candidates_rarely_win_by_chance():
    wins = 0
    for seed in range(100):
        chance = random.Random(seed)
        times = {name: Timing(tuple(chance.lognormvariate(0.0, 0.1) for _ in range(30))) for name in "dab"}
        wins += judge(times, "d").winner != "d"
    assert wins <= 8


def test_of_candidates_that_are_not_surely_different_the_simpler_one_wins():
    chance = random.Random(0)
    noise = [chance.lognormvariate(0.0, 0.03) for _ in range(40)]
    default, simple = Timing((2.0,) * 40), Timing(tuple(1.0 * each for each in noise))
    fastest = Timing(tuple(0.995 * each for each in reversed(noise)))
    times = {"default": default, "simple": simple, "fastest": fastest}
    assert judge(times, "default").winner == "fastest"
    assert judge(times, "default", {"default": 0, "simple": 1, "fastest": 3}).winner == "simple"
    assert judge(times, "default", {"default": 0, "simple": 3, "fastest": 1}).winner == "fastest"
    far = times | {"fastest": Timing(tuple(0.8 * each for each in noise))}
    assert judge(far, "default", {"default": 0, "simple": 1, "fastest": 3}).winner == "fastest"


def test_a_default_that_stumbles_upwards_only_does_not_hide_a_gain():
    # The other is faster in every round; that the default is sometimes ten times slower is no reason to keep it.
    default = Timing((1.2, 1.2, 12.0, 1.2, 12.0, 1.2, 12.0, 1.2))
    assert judge({"default": default, "other": Timing((1.0,) * 8)}, "default").winner == "other"


def test_a_gain_below_the_least_is_none_on_the_quietest_machine():
    other = Timing((1 / (1 + LEAST_GAIN / 2),) * 5)
    assert judge({"default": Timing((1.0,) * 5), "other": other}, "default").winner == "default"


def test_a_disturbance_of_whole_rounds_does_not_hide_a_gain():
    # Both are ten times slower in half of the rounds; only pairs of one round can be compared.
    load = (1.0, 10.0) * 6
    default, other = Timing(load), Timing(tuple(seconds / 1.2 for seconds in load))
    assert judge({"default": default, "other": other}, "default").winner == "other"


def test_without_a_rival_the_default_is_kept_and_without_a_default_the_fastest_wins():
    only = {"default": Timing((1.0, 1.0))}
    assert judge(only, "default").winner == "default"
    rivals = {"a": Timing((2.0, 2.0)), "b": Timing((1.0, 1.0))}
    verdict = judge(rivals, "default")
    assert verdict.winner == "b"
    assert "default schedule was not right" in verdict.reason


@pytest.mark.parametrize("operator", ["trellis_attention", "memory_update", "memory_readout", "trellis_step_chunked"])
def test_eager_is_timed_for_every_operator(operator):
    step = operator.startswith("trellis_step")
    problem = Problem(
        operator, batch=2, tokens=1 if step else 8, heads=2, chunk=1 if step else 4, dim_k=8, dim_v=8, slots=8
    )
    assert time_eager(Spec(Rule(step_size="token"), problem), cpu()).seconds > 0


def test_ceilings_are_positive_and_shares_are_of_the_nearer_one():
    measured = ceiling_of(cpu(), "float32", 1 << 20)
    assert measured.flops > 0
    assert measured.bandwidth > 0
    ceiling = Ceiling(flops=100.0, bandwidth=10.0)
    assert ceiling.share(Cost(flops=50, bytes=1), seconds=1.0) == pytest.approx(0.5)
    assert ceiling.share(Cost(flops=50, bytes=9), seconds=1.0) == pytest.approx(0.9)


def test_both_limits_have_a_probe_that_does_a_part_of_the_work():
    threads, cost = torch.get_num_threads(), Cost(flops=1 << 40, bytes=1 << 20)
    (product, times), (move, moves) = limits(cpu(), "float32", cost)
    assert product.run.func.__name__ == "mm"
    assert move.run.func.__name__ in ("copy_", "mul_")
    assert product.work * times == pytest.approx(cost.flops)
    assert move.work * moves == pytest.approx(cost.bytes)
    for probe in (product, move):
        with probe.on_its_threads():
            assert torch.get_num_threads() == (probe.threads or threads)
            probe.run()
        assert torch.get_num_threads() == threads


def test_costs_are_those_of_the_equations():
    problem = Problem(tokens=100, heads=3, dim_k=32, dim_v=48, slots=16, chunk=8)
    memories = sum(6 * 16 * dim + 2 * 8 * (dim + 16) for dim in (32, 48))
    cost = cost_of(Spec(Rule(), problem))
    assert cost.flops == 100 * 3 * memories
    values = 100 * 3 * (2 * 32 + 2 * 48 + 16) * 4
    assert cost.bytes == values + 100 * 3 * 4 + 2 * state_bytes(Spec(Rule(), problem))
    assert state_bytes(Spec(Rule(), problem)) == 3 * 16 * (32 + 48) * 4


def test_a_rule_costs_the_products_of_its_token():
    def flops(text: str) -> float:
        return cost_of(parse_spec(f"x: heads=3, tokens=5, dim_k=32, dim_v=16, {text}").spec).flops / (3 * 5 * 32 * 16)

    assert flops("rule=linear") == 2 * 2  # v k^T and S q
    assert flops("rule=gated_deltanet") == flops("rule=titans") == 3 * 2  # and S k
    assert flops("rule=rwkv7") == 4 * 2  # and (S a) b^T
    assert flops("rule=gated_deltanet, direction=backward") > 3 * flops("rule=gated_deltanet")
    assert flops("rule=ttt_linear, direction=backward_first_order") < flops("rule=ttt_linear, direction=backward")


def test_a_rule_moves_its_tensors_once_and_its_states_twice():
    spec = parse_spec("x: rule=titans, heads=3, tokens=5, dim_k=32, dim_v=16").spec
    values, gates, states = 5 * 3 * (2 * 32 + 2 * 16), 5 * 3 * 3, 2 * 3 * 16 * 32
    assert cost_of(spec).bytes == 4 * (values + gates + 2 * states)
    assert state_bytes(spec) == 4 * states


@pytest.mark.parametrize(
    "text",
    [
        "rule=mesanet, tokens=8, batch=2",
        "rule=omeganet, operator=memory_step, batch=2",
        "rule=ttt_linear, operator=memory_step_chunked",
        "rule=ttt_linear, tokens=8, chunk=4, batch=2, direction=backward",
    ],
)
def test_eager_is_timed_for_every_operator_of_any_rule(text):
    assert time_eager(parse_spec(f"x: heads=2, dim=8, {text}").spec, cpu()).seconds > 0


def test_a_decode_step_costs_six_m_d_for_each_memory():
    step = Problem("trellis_step", tokens=1, heads=1, dim_k=64, dim_v=64, slots=64, chunk=1)
    assert cost_of(Spec(Rule(), step)).flops == 2 * 6 * 64 * 64


@pytest.mark.parametrize(
    "each", [each for kind in ("cpu", "cuda") for each in load_workload(DEFAULT_FILE, kind)], ids=lambda each: each.name
)
def test_every_spec_that_is_tuned_has_a_cost(each):
    cost = cost_of(each.spec)
    assert cost.flops > 0
    assert cost.bytes > 0


def test_a_block_costs_reading_its_weights_in_their_type():
    text = "x: operator=block_step, batch=1, tokens=1, heads=2, dim=8, slots=8, chunk=4, layer=W16-F40-K4-unit-{}"
    wide, narrow, least = (cost_of(parse_spec(text.format(each)).spec) for each in ("float32", "bfloat16", "int8"))
    assert wide.flops == narrow.flops == least.flops
    numbers = (wide.bytes - narrow.bytes) // 2
    assert numbers > 16 * (3 * 16 + 2 * 40)
    assert 0 < narrow.bytes - least.bytes <= numbers


def test_what_stands_between_the_products_of_a_block_moves_each_of_its_arguments():
    sizes = "batch=3, tokens=1, heads=2, dim=8, slots=16, chunk=4, dtype=bfloat16, layer=W16-F40-K4-unit-float32"
    text = f"x: operator={{}}, {sizes}"
    norm, mixer, swiglu = (cost_of(parse_spec(text.format(each)).spec) for each in BETWEEN_OPERATORS)
    assert norm.bytes == 3 * 2 * 16 * 2 + 17 * 4
    assert swiglu.bytes == 3 * 3 * 40 * 2
    states = 3 * 4 * 2 * 16 * 8 * 4
    assert 2 * states < mixer.bytes < 2.2 * states
    assert mixer.flops == 3 * (2 * 2 * 6 * 16 * 8 + 2 * 2 * 16)
