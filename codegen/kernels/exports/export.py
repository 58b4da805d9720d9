"""Programs of TVM for a card that is elsewhere, where there is no TVM, written into folders of their own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from codegen.backends import backend
from codegen.backends.tvm_cuda import nvcc
from codegen.cache.ownership import write_own
from codegen.device import Device
from codegen.errors import ExportError
from codegen.kernels.build import parts
from codegen.kernels.declared import kernels_of
from codegen.kernels.exports.exported import MANIFEST, VERSION, Manifest, Part, read_manifest
from codegen.render import render, template_digest
from codegen.schedules.legality import require_legal
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec


def export(spec: Spec, schedule: Schedule, device: Device, folder: Path) -> Manifest:
    """Write the operator of `schedule`, a schedule of TVM for a CUDA device, into `folder`; what was there is replaced.

    Machine code is written where nvcc is on the PATH; without, the machine with the card compiles the source.

    Raises:
        IllegalScheduleError, TemplateError, CompileError: as their names say.
    """
    from codegen.backends.tvm.launch import lowered

    require_legal(spec, schedule, device)
    files, written = {}, []
    for kernel, part in parts(spec, schedule):
        source = render(kernel, part, schedule, device)
        made = lowered(source, device)
        digest = hashlib.sha256(made.cuda.encode()).hexdigest()
        # Two memories of the same width have one kernel.
        file = f"{kernel}_{digest[:16]}"
        files[f"{file}.cu"] = made.cuda.encode()
        if nvcc.is_here() and f"{file}.cubin" not in files:
            files[f"{file}.cubin"] = nvcc.cubin_of(made.cuda, source.path, device.arch)
        written.append(Part(kernel, file, digest, made.plan))
    manifest = Manifest(
        version=VERSION,
        spec=spec.key(),
        backend=schedule.backend,
        schedule=schedule.settings(),
        arch=device.arch,
        templates=templates_digest(schedule, device),
        toolchain=backend(schedule.backend).toolchain() | nvcc.toolchain(),
        parts=tuple(written),
    )
    files[MANIFEST] = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    _write(folder, files)
    return manifest


def templates_digest(schedule: Schedule, device: Device) -> str:
    """Digest of the templates that an export of `schedule` is rendered from."""
    kernels = kernels_of(schedule.variant, schedule.backend)
    return template_digest(type(schedule), kernels, device)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Put `files` there, the manifest last, and then take away what was there: at any time one of the two is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    old = _files_of_before(folder)
    for name, content in sorted(files.items(), key=lambda each: each[0] == MANIFEST):
        write_own(folder / name, content)
    for path in old:
        if path.name not in files:
            path.unlink(missing_ok=True)


def _files_of_before(folder: Path) -> list[Path]:
    """What an earlier export has written there, as far as this version can tell."""
    try:
        before = read_manifest(folder)
    except ExportError:
        return []
    return [folder / f"{part.file}{suffix}" for part in before.parts for suffix in (".cu", ".cubin")]
