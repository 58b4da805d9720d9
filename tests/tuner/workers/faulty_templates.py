"""Templates of the step kernel that are at fault for one schedule, in a way that the spec's D_v chooses.

So one folder of templates, and one set of workers, serve the tests of all faults. What is put in is in `faults/`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from codegen import render
from codegen.rule import Rule
from codegen.schedules.schedule import Value
from codegen.spec import Problem, Spec

FIRST, BEFORE, AFTER = '"""Both memories', "        for worker in", ""
"""Where a fault is put in: at the head of the module, before the loop over programs, at the end of the kernel."""

PLACES = {
    "endless_loop": BEFORE,
    "segmentation_fault": BEFORE,
    "abort": BEFORE,
    "exit": BEFORE,
    "all_memory": BEFORE,
    "wrong_result": AFTER,
    "wrong_sometimes": AFTER,
    "nan_in_a_tail_row": AFTER,
    "compiler_never_ends": FIRST,
    "compiler_takes_all_memory": FIRST,
    "compiler_aborts": FIRST,
    "does_not_render": FIRST,
    "does_not_compile": FIRST,
}
UNWRITTEN = "unwritten_output"
FAULTS = (*PLACES, UNWRITTEN)

_AT_FAULT = {"vector_width": 4, "tile_tokens": 4, "threads": 1}


def spec_of(fault: str) -> Spec:
    """The spec whose schedule `at_fault` has this fault."""
    return Spec(Rule(), Problem("trellis_step", tokens=1, heads=2, dim_k=4, dim_v=_dim_v(fault), slots=4, chunk=1))


def at_fault(default: dict[str, Value]) -> dict[str, Value]:
    """The schedule that is at fault; never the default of a machine with vectors of 256 bits."""
    return default | _AT_FAULT


def write_faulty_templates(folder: Path) -> None:
    """Make `folder` a copy of the templates with all faults in it."""
    shutil.copytree(render.TEMPLATES, folder)
    shutil.copytree(Path(__file__).with_name("faults"), folder / "faults")
    path = folder / "tvm" / "memory_step.py.j2"
    text = path.read_text()
    for place in (FIRST, BEFORE):
        assert text.count(place) == 1, f"{place!r} no longer says where a fault can be put into {path.name}"
    for fault, place in PLACES.items():
        included = f'{{% if {_condition(fault)} %}}\n{{% include "faults/{fault}.j2" %}}\n\n{{% endif %}}\n'
        text = text.replace(place, included + place) if place else text + included
    written, count = "{{ programs }}", text.count("{{ programs }}")
    assert count == 1, f"{written} no longer is the loop over programs in {path.name}"
    path.write_text(text.replace(written, f'{{{{ "T.serial(0)" if {_condition(UNWRITTEN)} else programs }}}}'))


def _dim_v(fault: str) -> int:
    return 3 + FAULTS.index(fault)


def _condition(fault: str) -> str:
    return f"schedule.vector_width == 4 and schedule.threads == 1 and problem.dim_v == {_dim_v(fault)}"
