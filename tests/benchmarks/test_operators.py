"""Every spec of the workload by every implementation: prefill, the exact recurrence, the decode step."""

from __future__ import annotations

import pytest

from codegen.device import Device
from tests.benchmarks.results import machine
from tests.benchmarks.results.comparison import IMPLEMENTATIONS, compare, key
from tests.benchmarks.results.replay import Replay
from tests.benchmarks.results.summary import Results
from tests.benchmarks.subjects.cases import Case, cases
from tests.benchmarks.subjects.rivals import Rivals


@pytest.fixture(scope="module")
def comparison(request, device: Device, rivals: Rivals, results: Results, pytestconfig: pytest.Config):
    case: Case = request.param
    results.comparisons[case.name] = compare(case, device, rivals, pytestconfig.getoption("--compile-limit"))
    return results.comparisons[case.name]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("comparison", cases(machine.here()), indirect=True, ids=lambda case: case.name, scope="module")
def test_operators(comparison, implementation: str, replay: Replay) -> None:
    if implementation not in comparison.timings:
        replay.skip(comparison.notes[implementation])
    ratio = comparison.ratio("eager", implementation)
    replay(
        f"{comparison.case.name}: {key(comparison.case.spec)}",
        comparison.timings[implementation].samples,
        note=comparison.notes[implementation],
        ratio_to_eager=ratio,
        share_of_ceiling=comparison.share(implementation),
    )
