"""One self-contained HTML page about what was tuned: every winner, the search behind it, and the front of slots."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup
from optuna.storages import RDBStorage

from codegen.errors import SpecKeyError
from codegen.spec import spec_of_key
from tuner.duration import duration
from tuner.records.history import History, histories
from tuner.report import figures
from tuner.report.figures import Figure
from tuner.report.report import share_text
from tuner.report.why import why_lines
from tuner.studies.storage_url import shown
from tuning_db import Recommendation, Record, Store, utc_now

TEMPLATE = Path(__file__).with_name("page.html.j2")

_COLUMNS = ("winner", "default", "eager", "compiled", "of ceiling", "tried", "failed", "source", "in effect")


@dataclass(frozen=True)
class Cell:
    """One value of a table: as it is, for whoever reads the page by program, and as text."""

    name: str
    value: float | int | str | None
    text: str


@dataclass(frozen=True)
class Section:
    """One winner on the page."""

    title: str
    record: Record
    cells: tuple[Cell, ...]
    why: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Front:
    """The recommendation of one device on the page."""

    device: str
    recommendation: Recommendation
    times: tuple[str, ...]
    figure: Figure


def render_page(store: Store, storage: RDBStorage, device: str | None) -> str:
    """The page of a device, or of all devices; needs no network to be looked at."""
    sections = [_section(number, each) for number, each in enumerate(histories(store, storage, device))]
    fronts = _fronts(store, [device] if device else list(store.devices()))
    drawn = [figure for section in sections for figure in section.figures] + [front.figure for front in fronts]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        device=device,
        storage=shown(storage.url),
        created=utc_now(),
        columns=_COLUMNS,
        sections=sections,
        fronts=fronts,
        plotly=Markup(figures.plotly_script()),
        figures=Markup(_script_json({figure.id: figure.drawn for figure in drawn})),
    )


def _section(number: int, history: History) -> Section:
    return Section(
        title=_title(history.record.spec),
        record=history.record,
        cells=_cells(history),
        why="\n".join(why_lines(history)),
        figures=tuple(figures.of_study(f"study-{number}", history)),
    )


def _title(spec: str) -> str:
    try:
        problem = spec_of_key(spec).problem
    except SpecKeyError:
        return spec  # A record of another version is shown as it is.
    sizes = f"B{problem.batch} T{problem.tokens} H{problem.heads} D{problem.dim_k}"
    sizes += "" if problem.dim_v == problem.dim_k else f"/{problem.dim_v}"
    return f"{problem.operator} {problem.direction}, {sizes} M{problem.slots} C{problem.chunk} {problem.dtype}"


def _cells(history: History) -> tuple[Cell, ...]:
    record = history.record
    failed = history.failures().total()
    share = record.ceiling_share
    return (
        Cell("seconds", record.seconds, _time(record.seconds)),
        _compared("default", record.default_seconds, record),
        _compared("eager", record.eager_seconds, record),
        _compared("compiled", record.compile_seconds, record),
        Cell("ceiling", share, share_text(share)),
        Cell("tried", record.trials, str(record.trials)),
        Cell("failed", failed, str(failed)),
        Cell("source", history.layer, history.layer),
        Cell("effect", "no" if history.passed_over else "yes", "no" if history.passed_over else "yes"),
    )


def _compared(name: str, seconds: float | None, record: Record) -> Cell:
    if seconds is None or record.seconds is None:
        return Cell(name, seconds, "-")
    return Cell(name, seconds, f"{duration(seconds)} ({seconds / record.seconds:.2f}x)")


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _fronts(store: Store, devices: list[str]) -> list[Front]:
    found = []
    for number, device in enumerate(devices):
        recommendation = store.recommendation(device)
        if recommendation is not None:
            times = tuple(duration(row.seconds_per_token) for row in recommendation.front)
            found.append(Front(device, recommendation, times, figures.of_front(f"front-{number}", recommendation)))
    return found


def _script_json(value: object) -> str:
    # "</script>" within a string would end the script.
    return json.dumps(value).replace("<", "\\u003c")
