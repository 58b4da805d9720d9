"""The report, looked at in a real browser without a network, at two widths."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState
from rich.console import Console

from codegen.device import cpu
from tests.tuner.conftest import STEP, UPDATE, keep_in, session_in
from tests.tuning_db.examples import recommendation, record
from trellis_ops.specs.workload import NamedSpec
from tuner.cli import main
from tuner.duration import duration
from tuner.records.history import histories
from tuner.report.page import render_page
from tuner.report.why import why_lines
from tuner.search.progress import SearchProgress
from tuner.search.study import StudySession
from tuner.search.tune import tune
from tuner.space.sampler import distributions_of
from tuner.space.space import space_of
from tuner.studies.studies import default_url, open_storage
from tuner.workers.pool import Workers
from tuning_db import default_store

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
PATIENCE_SECONDS = 20
WIDTHS = (1280, 420)  # Of a desk, and of a phone.

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND")

ROWS = """return [...document.querySelectorAll('#winners tbody tr')].map(row => Object.assign(
    {spec: row.dataset.spec}, ...[...row.querySelectorAll('td')].map(cell => ({...cell.dataset}))))"""
FRONT = "return [...document.querySelectorAll('.front tbody tr')].map(row => ({...row.dataset}))"
DRAWN = (
    "return [...document.querySelectorAll('.plot')].map(plot => [plot.id, plot.querySelectorAll('.main-svg').length])"
)
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, workers: Workers, kernels: Path) -> StudySession:
    """Two real winners, a failure that is made up, and a made-up front."""
    folder = tmp_path_factory.mktemp("tuned")
    session = session_in(folder, workers)
    with pytest.MonkeyPatch.context() as patch, SearchProgress(Console(quiet=True)) as progress:
        keep_in(folder, kernels, patch)
        for name, spec in (("step", STEP), ("update", UPDATE)):
            tune(NamedSpec(name, spec), session, progress)
    session.store.recommend(recommendation(device=cpu().key()))
    (history,) = (each for each in histories(session.store, session.storage, None) if each.record.spec == UPDATE.key())
    space = space_of(UPDATE, "tvm", cpu())
    history.study.enqueue_trial(list(space.schedules.values())[-1].settings())
    failed = history.study.ask(distributions_of(space))
    failed.set_user_attr("outcome", "wrong_answer")
    history.study.tell(failed, state=TrialState.PRUNED)
    return session


@pytest.fixture
def page(tuned: StudySession, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_page(tuned.store, tuned.storage, None), encoding="utf-8")
    return path


@pytest.fixture
def browser(tmp_path) -> Iterator[object]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no browser to look with: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield opened
    finally:
        opened.quit()


def open_at(width: int, page: Path, browser) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []


def test_the_page_says_in_a_browser_what_the_database_says(page, browser, tuned):
    for width in WIDTHS:
        open_at(width, page, browser)
        require_what_is_known(browser, tuned)


def require_what_is_known(browser, session) -> None:
    known = histories(session.store, session.storage, None)
    assert [each.failures().total() for each in known] == [1, 0]
    expected = [
        {
            "spec": each.record.spec,
            "seconds": each.record.seconds,
            "default": each.record.default_seconds,
            "eager": each.record.eager_seconds,
            "ceiling": each.record.ceiling_share,
            "tried": each.record.trials,
            "failed": each.failures().total(),
        }
        for each in known
    ]
    shown = browser.execute_script(ROWS)
    assert [row.pop("source") for row in shown] == [each.layer for each in known]
    assert [row.pop("effect") for row in shown] == ["yes"] * len(known)
    assert [{name: text if name == "spec" else float(text) for name, text in row.items()} for row in shown] == expected
    (front,) = browser.execute_script(FRONT)
    (row,) = session.store.recommendation(cpu().key()).front
    assert [float(front[name]) for name in ("slots", "chunk", "seconds", "recall")] == [
        row.slots,
        row.chunk,
        row.seconds_per_token,
        row.recall,
    ]
    from selenium.webdriver.support.wait import WebDriverWait

    drawn = dict(browser.execute_script(DRAWN))
    assert {name.rpartition("-")[2] for name in drawn} >= {"history", "failures", "0"}
    assert all(drawn.values()), "a plot is empty"
    WebDriverWait(browser, PATIENCE_SECONDS).until(
        lambda opened: opened.execute_script(OVERFLOW) <= 0, "the page is wider than its window"
    )


def test_the_page_asks_for_nothing_from_elsewhere(page):
    body = page.read_text(encoding="utf-8")
    markup = body.split("</style>")[0] + body.split("</script>", 1)[1]
    assert 'src="' not in markup
    assert 'href="http' not in markup


@pytest.mark.usefixtures("shared_workers")
def test_the_command_writes_the_page_and_explains_a_winner(tmp_path, capsys):
    text = "step: operator=trellis_step, tokens=1, heads=2, dim=8, slots=8, chunk=1"
    assert main(["tune", "--spec", text, "--budget", "2", "--no-slots", "--no-offline"]) == 0
    path = tmp_path / "out" / "report.html"
    os.mkdir(path.parent)
    assert main(["report", "--file", str(path)]) == 0
    assert "trellis_step forward, B1 T1 H2 D8 M8 C1 float32" in path.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["show", "--why", "trellis_step-forward/B1-T1-H2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (record,) = default_store().records(cpu().key(), layer="user")
    assert len(lines) == 10
    assert lines[0] == record.spec
    assert "2 candidates were tried; none failed" in lines[4]
    assert lines[5].startswith("  the best other, in the search: ")
    assert record.reason in lines[6]
    assert main(["show", "--why", "nothing like it"]) == 2
    assert "no winner is known for it; names of the workload are prefill" in capsys.readouterr().err
    assert open_storage(default_url())


def test_the_ratio_to_the_second_is_that_of_the_two_times_beside_it(session, progress):
    tune(NamedSpec("step", STEP), session, progress)
    (history,) = histories(session.store, session.storage, None)
    assert history.record.spec == STEP.key()
    (winner,) = (each for each in history.trials() if history.won(each))
    second, line = history.second(), list(why_lines(history))[5]
    ratio = f"{second.value / winner.value:.2f}x the winner's {duration(winner.value)} there"
    assert f"the best other, in the search: {duration(second.value)}, {ratio}: " in line


def test_a_record_of_another_version_is_shown_as_it_is(store, session):
    store.commit(record(spec="a spec of another version", device=cpu().key()))
    assert '<h2 id="spec-1">a spec of another version</h2>' in render_page(store, session.storage, None)
