"""The specs that really ran, in a workload file that `make tune` and `trellis_ops.warm_up` take.

The file is JSON, which is YAML too. Several processes may write to it: each adds what it lacks under a lock, and puts
the whole in its place.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import warnings
from pathlib import Path
from typing import Any

from codegen.errors import TrellisError, WorkloadError
from codegen.interruption.whole_imports import whole_imports
from codegen.rule_text import rule_text
from codegen.spec import Spec, bucket
from trellis_ops.files import regular_file
from trellis_ops.specs.workload import MAX_BYTES, section_of

VARIABLE = "TRELLIS_OPS_RECORD_SPECS"

_LOCK_SECONDS = 10.0

_done: set[tuple[str, str, str]] = set()
_given_up: set[str] = set()
_adding = threading.Lock()


class SpecRecordWarning(UserWarning):
    """The file that TRELLIS_OPS_RECORD_SPECS names cannot be written, so that this process records nothing in it."""


def record(spec: Spec, kind: str) -> None:
    """Add `spec`, which runs on a device of `kind`, to the file that TRELLIS_OPS_RECORD_SPECS names, if it names one.

    The file has one spec of each shape bucket, the first that ran: one winner serves the whole bucket. What cannot be
    written is a `SpecRecordWarning`, once in a process, and never an error.
    """
    file = os.environ.get(VARIABLE)
    if not file or file in _given_up:
        return
    section, name = section_of(kind), _name_of(spec)
    with _adding:
        if (file, section, name) in _done or file in _given_up:
            return
        try:
            _add(Path(file), section, {"name": name, **_fields_of(spec)})
            _done.add((file, section, name))
            return
        except (TrellisError, OSError, ValueError, RecursionError, NotImplementedError) as error:
            _given_up.add(file)
            problem = " ".join(str(error).split())
    warnings.warn(f"no specs are recorded in {VARIABLE}={file}: {problem}", SpecRecordWarning, stacklevel=2)


def _name_of(spec: Spec) -> str:
    """A name that all specs of a bucket share."""
    return f"{spec.problem.operator}-{hashlib.sha256(bucket(spec).key().encode()).hexdigest()[:10]}"


def _fields_of(spec: Spec) -> dict[str, Any]:
    rule, own = rule_text(spec.rule), {"layer": spec.problem.layer, "inputs": spec.problem.inputs}
    problem = {name: value for name, value in vars(spec.problem).items() if name not in own}
    keys = {name: value.key() for name, value in own.items() if value is not None}
    return {**problem, **({} if rule == "{}" else {"rule": rule}), **keys}


def _add(path: Path, section: str, entry: dict[str, Any]) -> None:
    with whole_imports():
        import filelock  # 10 to 20 ms that calls must not pay

    with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS):
        content = _content(path)
        entries = content.setdefault(section, [])
        if any(each["name"] == entry["name"] for each in entries):
            return
        entries.append(entry)
        text = _text(content)
        if len(text) > MAX_BYTES:
            raise WorkloadError(source=path, problem=f"with one spec more it has over {MAX_BYTES} bytes")
        regular_file.write(path, text)


def _content(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The sections that are there; what else a file holds is its owner's, and is refused."""
    status = regular_file.regular_status(path)
    if status is None or status.st_size == 0:
        return {}
    try:
        content = json.loads(regular_file.read_bytes(path))
    except ValueError as error:
        raise WorkloadError(source=path, problem="it is there, and no file of recorded specs (JSON)") from error
    sections = content.values() if isinstance(content, dict) else [None]
    entries = [each for section in sections for each in (section if isinstance(section, list) else [None])]
    if not all(isinstance(each, dict) and "name" in each for each in entries):
        raise WorkloadError(source=path, problem="it is there, and no file of recorded specs")
    return dict(content)


def _text(content: dict[str, list[dict[str, Any]]]) -> str:
    """JSON with a line for each spec."""
    sections = (
        f"{json.dumps(section)}: [\n" + ",\n".join(f"  {json.dumps(each)}" for each in entries) + "\n]"
        for section, entries in content.items()
    )
    return "{" + ",\n".join(sections) + "}\n"
