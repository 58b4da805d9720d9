"""Templates to source: strict Jinja, and real files that say what made them.

Tracebacks, profilers and both compilers need real files, so a rendered kernel is written under the cache folder with
a name that its content decides, only if it is not there yet. Jinja is imported by the first kernel that is rendered:
`import trellis_ops` should not pay for it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import re
import shlex
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from codegen.cache.folder import cache_folder, is_shared, say_exposed
from codegen.cache.ownership import make_own, read_own, write_own
from codegen.cache.process_folder import process_folder
from codegen.device import Device
from codegen.errors import TemplateError, UnknownKernelError, printable
from codegen.file_digest import digest_of_file, of_content, python_files
from codegen.interruption.whole_imports import whole_imports
from codegen.kernels import exact_update, rule_arguments, signatures, text
from codegen.kernels.between import arguments as between_arguments
from codegen.kernels.between import text as between_text
from codegen.kernels.glue import arguments as glue_arguments
from codegen.kernels.glue import text as glue_text
from codegen.kernels.layer import arguments as layer_arguments
from codegen.kernels.layer import text as layer_text
from codegen.kernels.layer.layout import layout_of
from codegen.kernels.pool import arguments as pool_arguments
from codegen.kernels.pool import text as pool_text
from codegen.rule import READOUT_EPS, Rule
from codegen.rule_text import rule_text
from codegen.schedules.registry import SCHEDULES
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec, next_power_of_two

if TYPE_CHECKING:
    import jinja2

KERNELS = (
    *signatures.KERNELS,
    *rule_arguments.KERNELS,
    exact_update.KERNEL,
    pool_arguments.KERNEL,
    *layer_arguments.KERNELS,
    *between_arguments.KERNELS,
    *glue_arguments.KERNELS,
)
"""Every kernel; each has one template of its name in each folder of templates that has the variants it is for."""

PACKAGE = Path(__file__).resolve().parent
TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
MAPS = Path(__file__).resolve().parent / "maps"
RECURRENCE = Path(__file__).resolve().parent / "recurrence"
POOL = Path(__file__).resolve().parent / "kernels" / "pool"
BETWEEN = (PACKAGE / "kernels" / "layer", PACKAGE / "kernels" / "between")
LAYER = (PACKAGE / "kernels" / "layer", PACKAGE / "backends" / "tvm" / "layer")
GLUE = (PACKAGE / "kernels" / "glue", PACKAGE / "backends" / "tvm" / "glue", PACKAGE / "backends" / "tvm" / "layer")

_EAGER = "pytorch"
"""The module of codegen.maps.emit that writes for no templates."""

_REFERENCE = re.compile(r"""\{%[-+]?\s*(?:import|from|include|extends)\s+["']([^"']+)["']""")


@dataclass(frozen=True)
class Source:
    """A rendered kernel.

    Attributes:
        kernel: which of `KERNELS`.
        text: the Python source.
        path: the real file that holds it.
        digest: of the text, in hexadecimal.
    """

    kernel: str
    text: str
    path: Path
    digest: str


def render(kernel: str, spec: Spec, schedule: Schedule, device: Device) -> Source:
    """Render one kernel and write it to its file.

    Raises:
        UnknownKernelError: no template has that name.
        TemplateError: the template does not render; the message names the file and line.
    """
    with whole_imports():
        import jinja2

    _require_kernel(kernel)
    folder = schedule.templates_on(device)
    if folder is None:
        raise TemplateError(path=TEMPLATES, reason=f"the backend {schedule.backend} renders none of its kernels")
    name = _template(folder, kernel) or f"{folder}/{kernel}.py.j2"
    try:
        body = (
            _environment()
            .get_template(name)
            .render(
                kernel=kernel,
                rule=spec.rule,
                problem=spec.problem,
                schedule=schedule,
                device=device,
                READOUT_EPS=READOUT_EPS,
                derived=importlib.import_module(f"codegen.maps.emit.{folder}"),
                **_of_recurrence(kernel, spec, folder),
                **({"apart": schedule.chunk_of(spec)} if kernel == exact_update.KERNEL else {}),
                **({"layout": layout_of(spec)} if kernel in layer_arguments.KERNELS else {}),
                **(between_text.variables(spec) if kernel in between_arguments.KERNELS else {}),
                **schedule.template_variables(kernel, spec, device),
                **_arguments(kernel, spec, schedule, device),
            )
        )
    except jinja2.TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise TemplateError(path=TEMPLATES / name, reason=f"{error}{line}") from error
    content = _header(name, kernel, spec, schedule, device) + body
    digest = hashlib.sha256(content.encode()).hexdigest()
    path = _written(generated_folder() / folder / f"{kernel}_{digest[:16]}.py", content)
    return Source(kernel, content, path, digest)


def _arguments(kernel: str, spec: Spec, schedule: Schedule, device: Device) -> dict[str, str]:
    if kernel == pool_arguments.KERNEL:
        return pool_text.of_kernel(spec, schedule, device)
    if kernel in layer_arguments.KERNELS:
        return layer_text.of_kernel(spec)
    if kernel in between_arguments.KERNELS:
        return between_text.of_kernel(spec)
    if kernel in glue_arguments.KERNELS:
        return glue_text.of_kernel(spec)
    if kernel == exact_update.KERNEL:
        return text.of_kernel(exact_update.counterpart(spec), spec, schedule, device)
    return text.of_kernel(kernel, spec, schedule, device)


def _of_recurrence(kernel: str, spec: Spec, folder: str) -> dict[str, object]:
    """What a kernel for any rule is given: what writes the program of its token."""
    if kernel == pool_arguments.KERNEL:
        return {"token": importlib.import_module(f"codegen.kernels.pool.{folder}").kernel(spec)}
    if kernel not in rule_arguments.WALKS:
        return {}
    writer = importlib.import_module(f"codegen.recurrence.emit.{folder}")
    return {"token": writer.kernel(kernel, spec)}


EMITTERS = ("kernels/arguments.py", "kernels/launches.py", "kernels/signatures.py", "kernels/text.py", "rule.py")
"""Python that decides what a rendered kernel says, or which kernels are launched, besides what writes maps.

It is that of every backend; each has its own in `Schedule.emitters`.
"""


@functools.cache
def template_digest(kind: type[Schedule], kernels: tuple[str, ...], device: Device | None = None) -> str:
    """Digest of all that decides the kernels of a backend: templates, what they import, Python that writes parts.

    It is part of a tuning record's identity.

    Args:
        kind: the backend's schedules.
        kernels: names of templates.
        device: whose folder of templates it is about; all of the backend's unless given.
    """
    folders = kind.templates if device is None else (kind.templates_on(device),)
    names: set[str] = set()
    waiting = [name for folder in folders if folder for kernel in kernels if (name := _template(folder, kernel))]
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += _referenced(name)
    content = _digests(f"{TEMPLATES}/{name}" for name in sorted(names)) + _of_python(
        kind, (*EMITTERS, *kind.emitters), MAPS
    )
    pooled = pool_arguments.KERNEL in kernels
    if pooled or set(kernels) & set(rule_arguments.KERNELS):
        content += _of_python(kind, ("kernels/rule_arguments.py",), RECURRENCE)
    if pooled:
        content += _of_python(kind, (), POOL)
    if exact_update.KERNEL in kernels:
        content += _of_python(kind, ("kernels/exact_update.py",))
    for own, declared_in in (
        (layer_arguments.KERNELS, LAYER),
        (between_arguments.KERNELS, BETWEEN),
        (glue_arguments.KERNELS, GLUE),
    ):
        if set(kernels) & set(own):
            content += _of_python(kind, (), *declared_in)
    return hashlib.sha256(content).hexdigest()[:16]


def _digests(files: Iterable[str]) -> bytes:
    return b"".join(os.path.basename(file).encode() + b"\0" + digest_of_file(file) for file in files)


@functools.cache
def _of_python(kind: type[Schedule], files: tuple[str | Path, ...], *folders: Path) -> bytes:
    """Digests of Python files of a backend, and of those in folders, but what writes for other backends.

    They are read once: a process runs what it has imported, whatever becomes of the files.
    """
    others = {_EAGER, *(name for each in SCHEDULES.values() for name in each.writers)} - {*kind.writers}
    unwanted = {os.path.join("emit", f"{name}.py") for name in others}
    found = [file for folder in folders for file in python_files(folder)]
    written = [file for file in found if os.sep.join(file.split(os.sep)[-2:]) not in unwanted]
    return _digests([*(str(PACKAGE / name) for name in files), *written])


_PARTS = ("backward/", "between/", "layer/", "glue/")


def _template(folder: str, kernel: str) -> str | None:
    """The template of a kernel, in a folder of templates or in one of its folders."""
    names = (f"{folder}/{part}{kernel}.py.j2" for part in ("", *_PARTS))
    return next((name for name in names if os.path.isfile(f"{TEMPLATES}/{name}")), None)


def _referenced(name: str) -> list[str]:
    # By pattern, as Jinja itself would have to be imported for it, in every process that only looks a kernel up.
    return of_content(f"{TEMPLATES}/{name}", _references)


def _references(template: bytes) -> list[str]:
    return _REFERENCE.findall(template.decode())


def generated_folder() -> Path:
    """Where generated sources live."""
    return cache_folder() / "generated"


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["next_power_of_two"] = next_power_of_two
    environment.filters["round_up"] = lambda n, multiple: -(-n // multiple) * multiple
    return environment


def _header(name: str, kernel: str, spec: Spec, schedule: Schedule, device: Device) -> str:
    digest = template_digest(type(schedule), (kernel,), device)
    lines = (
        f"{kernel} for {schedule.backend}, generated; do not edit.",
        f"template  templates/{name}, digest {digest}",
        f"spec      {spec.key()}",
        f"schedule  {schedule.key()}",
        f"device    {device.key()}",
        f"again     {show_command(kernel, spec, schedule, device)}",
    )
    # What follows an end of a line would be code.
    return "".join(f"# {printable(line)}\n" for line in lines)


def show_command(kernel: str, spec: Spec, schedule: Schedule, device: Device) -> str:
    """The command that prints this kernel again, as a shell takes it."""
    problem = spec.problem
    settings = " ".join(f"--set {name}={value}" for name, value in schedule.settings().items())
    direction = "" if problem.direction == "forward" else f" --direction {problem.direction}"
    layer = "" if problem.layer is None else f" --heads {problem.heads} --layer {problem.layer.key()}"
    inputs = "" if problem.inputs is None else f" --inputs {problem.inputs.key()}"
    return (
        f"python -m codegen show {kernel} --backend {schedule.backend} --operator {problem.operator}{direction}"
        f" --dim-k {problem.dim_k} --dim-v {problem.dim_v} --slots {problem.slots} --chunk {problem.chunk}"
        f" --dtype {problem.dtype}{layer}{inputs} {_rule_options(spec.rule)} --device {device.arch} {settings}"
    )


def _rule_options(rule: Rule) -> str:
    if not rule.is_trellis:
        return f"--rule {shlex.quote(rule_text(rule))}"
    phi, link, out = map(shlex.quote, (rule.phi, rule.link, rule.out))
    return f"--phi {phi} --phi-eps {rule.phi_eps!r} --link {link} --out {out} --step-size {rule.step_size}"


def _require_kernel(kernel: str) -> None:
    if kernel not in KERNELS:
        raise UnknownKernelError(name=kernel, known=", ".join(KERNELS))


def _written(path: Path, text: str) -> Path:
    """`text` in the file `path`; in a folder of this process, after a warning, if that cannot be written or trusted."""
    try:
        exposed = make_own(path.parent)
        if exposed is None:
            _write_if_different(path, text)
            return path
        if not is_shared():
            say_exposed(exposed)
    except OSError as error:
        _say_not_kept(f"{path.parent}: {error.strerror or error}")
    elsewhere = process_folder() / path.name
    _write_if_different(elsewhere, text)
    return elsewhere


@functools.cache
def _say_not_kept(reason: str) -> None:
    warnings.warn(f"generated sources cannot be kept in {reason}; each process makes its own", stacklevel=2)


def _write_if_different(path: Path, text: str) -> None:
    content = text.encode()
    # Whatever else lies there, or cannot be read, is replaced.
    with contextlib.suppress(OSError):
        if read_own(path, len(content)) == content:
            return
    write_own(path, content)
