"""Commands about what is known: show, report, dashboard, ship, export, import, merge."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from codegen.device import Device
from trellis_ops.specs.workload import load_workload
from tuner.commands.command import FAILED, command, print_lines, storage_of, storage_option
from tuner.errors import ReportFileError
from tuner.processes.interruption import stop_if_interrupted
from tuner.records import exchange
from tuner.records.history import histories
from tuner.report import report
from tuner.report.why import find, why_lines
from tuner.studies.storage_url import shown
from tuner.workers.pool import Workers
from tuner.workload import DEFAULT_FILE, RULES_FILE
from tuning_db import default_store


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Their parsers."""
    showing = command(commands, "show", _show, "list the winners and the recommendation known here")
    showing.add_argument("--all", action="store_true", help="of every device, not only of this one")
    showing.add_argument("--why", metavar="SPEC", help="why the winner of this spec won; a name, or a part of its key")
    storage_option(showing)
    reporting = command(commands, "report", _report, "write a page about the winners and the searches behind them")
    reporting.add_argument("--file", type=Path, default=Path("report.html"), help="where (default report.html)")
    reporting.add_argument("--all", action="store_true", help="of every device, not only of this one")
    reporting.add_argument("--text", action="store_true", help="no page: list the studies, and why candidates failed")
    storage_option(reporting)
    looking = command(commands, "dashboard", _dashboard, "serve optuna-dashboard on the studies")
    looking.add_argument("--host", default="127.0.0.1", help="address to serve on (default 127.0.0.1)")
    looking.add_argument("--port", type=int, default=8080, help="port to serve on (default 8080)")
    storage_option(looking)
    shipping = command(commands, "ship", _ship, "write the winners of this machine to where they can be committed")
    shipping.add_argument("--folder", type=Path, help="instead of tuning_db/winners")
    exporting = command(commands, "export", _export, "write what was tuned here to a folder, for another machine")
    exporting.add_argument("--all", action="store_true", help="of every device, not only of this one")
    importing = command(commands, "import", _import, "take the records of a folder in place of those known here")
    merging = command(commands, "merge", _merge, "take the records of a folder that are better than those known here")
    merging.add_argument("--no-measuring", action="store_true", help="measure nothing: the newer toolchain's stays")
    for each in (exporting, importing, merging):
        each.add_argument("folder", type=Path, help="one JSON file for each device")


def _show(options: argparse.Namespace, console: Console) -> int:
    store = default_store()
    device = _asked_device(options.device)
    key = None if options.all else device.key()
    if options.why is not None:
        known = histories(store, storage_of(options), key)
        named = [each for file in (DEFAULT_FILE, RULES_FILE) for each in load_workload(file, device.kind)]
        for history in find(options.why, named, known):
            print_lines(console, why_lines(history))
        return 0
    print_lines(console, report.known_lines(store, key))
    for name in store.devices() if key is None else (key,):
        recommendation = store.recommendation(name)
        if recommendation is not None:
            console.print(report.front_table(recommendation))
    return 0


def _report(options: argparse.Namespace, console: Console) -> int:
    store, storage = default_store(), storage_of(options)
    if options.text:
        print_lines(console, report.study_lines(storage))
        return 0
    key = None if options.all else _asked_device(options.device).key()
    from tuner.report.page import render_page  # plotly, which no other command needs

    page = render_page(store, storage, key)
    try:
        options.file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ReportFileError(path=options.file.absolute(), reason=error.strerror or error) from error
    console.print(f"written: {options.file.absolute()}", soft_wrap=True, highlight=False)
    return 0


def _dashboard(options: argparse.Namespace, console: Console) -> int:
    try:
        from optuna_dashboard import run_server
    except ImportError:
        console.print(
            "optuna-dashboard is not installed; `make dashboard` installs it, or `pip install trellis-ops[dashboard]`"
        )
        return FAILED
    storage = storage_of(options)
    console.print(f"http://{options.host}:{options.port} shows {shown(storage.url)}; Ctrl-C ends it", soft_wrap=True)
    run_server(storage, host=options.host, port=options.port)
    return 0


def _ship(options: argparse.Namespace, console: Console) -> int:
    store, key = default_store(), _asked_device(options.device).key()
    records, recommendation = store.records(key, "user"), store.recommendation(key)
    if not records:
        console.print(f"nothing was tuned for {key} yet; run `make tune` first", soft_wrap=True, highlight=False)
        return FAILED
    path = store.ship(key, records, recommendation=recommendation, folder=options.folder)
    count = len({(record.spec, record.backend) for record in records})
    console.print(f"{count} winners written to {path}; commit that file", soft_wrap=True, highlight=False)
    return 0


def _export(options: argparse.Namespace, console: Console) -> int:
    key = None if options.all else _asked_device(options.device).key()
    written = exchange.export_records(default_store(), options.folder, key)
    if not written:
        console.print(f"nothing was tuned for {key or 'any device'} yet; run `make tune` first", soft_wrap=True)
        return FAILED
    print_lines(console, (f"written: {path}" for path in written))
    return 0


def _import(options: argparse.Namespace, console: Console) -> int:
    count = exchange.import_records(default_store(), options.folder)
    console.print(f"{count} records taken from {options.folder}", soft_wrap=True, highlight=False)
    return 0


def _merge(options: argparse.Namespace, console: Console) -> int:
    with Workers() as workers:
        device = workers.device(options.device)
        measure = None if options.no_measuring else workers.finals
        for merged in exchange.merge_records(default_store(), options.folder, device, measure):
            verdict = "taken" if merged.taken else "left"
            print_lines(console, [f"{verdict}: {merged.record.spec}", f"  {merged.record.device}: {merged.reason}"])
            stop_if_interrupted()
    return 0


def _asked_device(name: str | None) -> Device:
    """The device that a command is about, asked of a worker: a tuner starts no GPU."""
    with Workers() as workers:
        return workers.device(name)
