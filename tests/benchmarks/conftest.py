"""Comparisons of implementations: `make bench`, or

    python -m pytest tests/benchmarks -o addopts=

For each spec of the tuner's workload: eager, `torch.compile` of it, the default schedule and the tuned winner, timed
in turn, round by round. Then what must cost about as much as something else, a long stream of decode steps, and what a
call and an import cost. A plain `pytest` leaves this folder out.

Nothing here asserts on a time: targets are printed as reached or missed. Only `--enforce` makes a missed one fail the
session, since a machine that is busy with something else would miss them.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Read when torch loads its OpenMP runtime. Its idle threads spin after each parallel region and would take the cores
# from TVM's, whose turn is next. Eager code and torch.compile run in another process, where this is not set.
os.environ.setdefault("GOMP_SPINCOUNT", "200")

import pytest
import torch
from rich.console import Console

from codegen.device import Device
from tests.benchmarks.results import machine
from tests.benchmarks.results.replay import Replay
from tests.benchmarks.results.summary import Results, report
from tests.benchmarks.subjects.rivals import Rivals

_RESULTS = pytest.StashKey[Results]()
_LOAD = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("trellis-ops")
    described = "seconds that torch.compile may take for a spec; 0 leaves it out"
    group.addoption("--compile-limit", type=float, default=90.0, help=described)
    described = "steps of the stream through the reference model; 0 leaves it out"
    group.addoption("--stream-tokens", type=int, default=100_000, help=described)
    described = "the text of the shipped model, whose end it has not seen; without it nothing is measured on text"
    group.addoption("--text", type=Path, help=described)
    group.addoption("--enforce", action="store_true", help="fail the session if a target is missed")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("the benchmarks need pytest-benchmark: python -m pytest tests/benchmarks -o addopts=")
    config.stash[_RESULTS], config.stash[_LOAD] = Results(), machine.load()
    torch.set_num_threads(machine.cpu().cores)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    machine_info |= {"device": machine.here().key(), "versions": machine.versions(), "threads": machine.threads()}


@pytest.fixture(scope="session")
def device() -> Device:
    return machine.here()


@pytest.fixture(scope="session")
def rivals(device: Device) -> Iterator[Rivals]:
    with Rivals(device) as running:
        yield running


@pytest.fixture(scope="session")
def results(pytestconfig: pytest.Config) -> Results:
    return pytestconfig.stash[_RESULTS]


@pytest.fixture
def replay(request: pytest.FixtureRequest) -> Replay:
    return Replay(request)


def pytest_sessionfinish(session: pytest.Session) -> None:
    missed = session.config.stash[_RESULTS].missed()
    if session.config.getoption("--enforce") and missed and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[_RESULTS]
    if not results.comparisons and not results.all_targets():
        return
    text = io.StringIO()
    Console(file=text, width=max(120, shutil.get_terminal_size().columns)).print(report(results, config.stash[_LOAD]))
    terminalreporter.section("comparison")
    terminalreporter.write_line(text.getvalue())
