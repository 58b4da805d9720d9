"""Operators of TVM that another machine compiled, run with torch and the CUDA driver alone, without TVM and Jinja.

A folder holds one operator: `manifest.json`, and for each kernel its CUDA source and, if nvcc was where it was made,
its machine code.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from codegen.backends.tvm_cuda import nvcc
from codegen.backends.tvm_cuda.kernel import CudaKernel, Place, place_of
from codegen.backends.tvm_cuda.launch import LaunchPlan
from codegen.cache.ownership import read_regular, why_written_by_others
from codegen.device import Device, cuda_device
from codegen.errors import BackendUnavailableError, ExportError, TrellisError, printable
from codegen.kernels.operator import CompiledOperator
from codegen.schedules.registry import from_settings
from codegen.schedules.schedule import Schedule, Value
from codegen.spec import Spec, spec_of_key

if TYPE_CHECKING:
    pass

MANIFEST = "manifest.json"

_Name = msgspec.Meta(pattern=r"^[A-Za-z0-9_]+\Z", max_length=128)
"""Of what becomes a part of a path, or of a command: a letter, digit or underscore at every place."""

_MOST_BYTES = 2**26
"""Of one file of an exported operator; they have some tens of thousands."""

VERSION = 1
"""Of the manifest's form."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel of an exported operator.

    Attributes:
        kernel: name of its template.
        file: of its CUDA source and its machine code, without the suffix.
        source_digest: of the CUDA source.
        plan: how calls of it become launches.
    """

    kernel: str
    file: Annotated[str, _Name]
    source_digest: str
    plan: LaunchPlan


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a folder holds.

    Attributes:
        version: of this form.
        spec: key of what it computes.
        backend, schedule: how.
        arch: the card it is for, as nvcc calls it.
        templates: digest of the templates that it was rendered from.
        toolchain: versions of what made it.
        parts: its kernels in launch order.
    """

    version: int
    spec: str
    backend: str
    schedule: dict[str, Value]
    arch: Annotated[str, _Name]
    templates: str
    toolchain: dict[str, str]
    parts: tuple[Part, ...]

    def digest(self) -> str:
        """Digest of everything in it, the kernels' sources included."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest:
    """What the folder at `folder` holds.

    Raises:
        ExportError: nothing that this version can run.
    """
    try:
        manifest = msgspec.json.decode(_content(folder / MANIFEST), type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        said = printable(str(error))
        raise ExportError(path=folder, reason=f"{MANIFEST} is none of this project ({said})") from error
    if manifest.version != VERSION:
        raise ExportError(path=folder, reason=f"its form is version {manifest.version}, not {VERSION}")
    return manifest


def operator_of_export(folder: Path, card: int | None = None) -> CompiledOperator:
    """The operator in `folder`, loaded on a card: torch's current one, or number `card`.

    Raises:
        ExportError: the folder holds nothing that this version can run.
        BackendUnavailableError: there is no card, or another than the operator was made for.
        CompileError, CudaDriverError: nvcc or the driver refused a kernel.
    """
    import torch

    manifest = read_manifest(folder)
    if not torch.cuda.is_available():
        raise BackendUnavailableError(backend="cuda", reason="torch sees no GPU here")
    index = torch.cuda.current_device() if card is None else card
    device = cuda_device(index)
    if device.arch != manifest.arch:
        reason = f"{folder} was made for {manifest.arch}, this card is {device.arch}"
        raise BackendUnavailableError(backend="cuda", reason=reason)
    return load(folder, device, place_of(torch.device("cuda", index)))


def load(folder: Path, device: Device, place: Place) -> CompiledOperator:
    """The operator in `folder`, loaded at `place`.

    Raises:
        ExportError, BackendUnavailableError, CompileError, CudaDriverError: as for `operator_of_export`.
    """
    manifest = read_manifest(folder)
    spec, schedule = described(folder, manifest)
    loaded: dict[str, CudaKernel] = {}
    for part in manifest.parts:
        if part.file not in loaded:
            loaded[part.file] = place.kernel(image_of(folder, part, manifest.arch), part.plan)
    return CompiledOperator(spec, schedule, device, tuple(loaded[part.file] for part in manifest.parts))


def described(folder: Path, manifest: Manifest) -> tuple[Spec, Schedule]:
    """The spec and the schedule of the operator in `folder`.

    Raises:
        ExportError: this version does not know one of them.
    """
    try:
        return spec_of_key(manifest.spec), from_settings(manifest.backend, dict(manifest.schedule))
    except TrellisError as error:
        raise ExportError(path=folder, reason=error) from error


def image_of(folder: Path, part: Part, arch: str) -> bytes:
    """The machine code of a kernel: as it lies in the folder, or compiled here.

    Raises:
        ExportError: the kernel's source is missing or was changed, or others could have written one of the files.
        BackendUnavailableError, CompileError: there is no machine code, and nvcc is missing or refused the source.
    """
    source, code = (folder / f"{part.file}{suffix}" for suffix in (".cu", ".cubin"))
    text = _content(source)
    if hashlib.sha256(text).hexdigest() != part.source_digest:
        raise ExportError(path=folder, reason=f"{source.name} is not the source that the manifest describes")
    return _content(code) if os.path.lexists(code) else nvcc.cubin_of(text.decode(), source, arch)


def _content(path: Path) -> bytes:
    """The bytes of a file of an export, which nobody else may write to; whose it is, is for whoever names the folder.

    Raises:
        ExportError: it cannot be read, or others may write to it or to a folder above it.
    """
    writers = why_written_by_others(path)
    if writers is not None:
        raise ExportError(path=path.parent, reason=f"{writers}, and a kernel of theirs would run (chmod go-w)")
    try:
        return read_regular(path, _MOST_BYTES)
    except OSError as error:
        raise ExportError(path=path.parent, reason=f"{path.name}: {error.strerror or error}") from error
