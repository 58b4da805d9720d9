"""What `python -m codegen show` prints: a generated source, or what its compiler made of it."""

from __future__ import annotations

import argparse
from dataclasses import fields

from codegen.backends import Resources, backend
from codegen.device import Device, named
from codegen.errors import UnknownStageError
from codegen.render import Source, render
from codegen.schedules.registry import kind_of
from codegen.schedules.schedule import Schedule
from codegen.show.chosen import schedule_of, spec_of
from codegen.spec import Spec


def shown(options: argparse.Namespace) -> str:
    """The text that the options ask for.

    Raises:
        TrellisError: they name nothing that can be shown, or the source does not render or compile.
    """
    spec = spec_of(options)
    device = named(kind_of(options.backend).shown_for if options.device is None else options.device)
    schedule = schedule_of(options, spec, device)
    source = render(options.kernel, spec, schedule, device)
    if options.stage:
        return _stage(options.stage, source, spec, schedule, device)
    if options.resources:
        return _table(backend(schedule.backend).resources(source, spec, schedule, device))
    return source.text


def _stage(name: str, source: Source, spec: Spec, schedule: Schedule, device: Device) -> str:
    stages = backend(schedule.backend).inspect(source, spec, schedule, device)
    if name not in stages:
        raise UnknownStageError(name=name, backend=schedule.backend, device=device.arch, known=", ".join(stages))
    return stages[name]


def _table(resources: Resources) -> str:
    values = ((field.name, getattr(resources, field.name)) for field in fields(resources))
    return "\n".join(f"{name:13} {'unknown' if value is None else value}" for name, value in values)
