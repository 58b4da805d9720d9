"""Programs of TVM that another machine made, run with torch and the CUDA driver alone: neither TVM nor Jinja is needed.

A folder holds one program: `manifest.json`, and for each kernel its CUDA source and, if nvcc was where it was made, its
machine code.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from codegen import nvcc
from codegen.cuda_driver import CudaDriver, CudaFunction
from codegen.cuda_launch import LaunchPlan
from codegen.device import Device, cuda_device
from codegen.errors import BackendUnavailableError, ExportError, TrellisError
from codegen.kernels.operator import CompiledOperator
from codegen.schedule import Schedule, Value, from_settings
from codegen.spec import Spec, spec_of_key

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
VERSION = 1
"""Of the manifest's form."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel of an exported program.

    Attributes:
        kernel: name of its template.
        file: of its CUDA source and its machine code, without the suffix.
        source_digest: of the CUDA source.
        plan: how calls of it become launches.
    """

    kernel: str
    file: str
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
    arch: str
    templates: str
    toolchain: dict[str, str]
    parts: tuple[Part, ...]

    def digest(self) -> str:
        """Digest of everything in it, the kernels' sources included."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]


@dataclass(frozen=True)
class Place:
    """Where kernels run: a card, through the driver.

    Attributes:
        driver: that loads and launches.
        where: tensors must be there.
        stream: the handle of the stream that a launch goes to, asked at each.
    """

    driver: CudaDriver
    where: torch.device
    stream: Callable[[], int]


@dataclass(frozen=True)
class ExportedKernel:
    """A loaded kernel; calling it checks its arguments and puts one launch on the current stream."""

    plan: LaunchPlan
    function: CudaFunction
    place: Place

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Launch `programs` blocks; none if there is nothing to do, which the driver would call an error."""
        launch = self.plan.launch((programs, *arguments), self.place.where)
        if 0 not in launch.grid:
            self.function.launch(launch, self.place.stream())


def read_manifest(folder: Path) -> Manifest:
    """What the folder at `folder` holds.

    Raises:
        ExportError: nothing that this version can run.
    """
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise ExportError(path=folder, reason=error) from error
    if manifest.version != VERSION:
        raise ExportError(path=folder, reason=f"its form is version {manifest.version}, not {VERSION}")
    return manifest


def program_of_export(folder: Path, card: int | None = None) -> CompiledOperator:
    """The program in `folder`, loaded on a card: torch's current one, or number `card`.

    Raises:
        ExportError: the folder holds nothing that this version can run.
        BackendUnavailableError: there is no card, or another than the program was made for.
        CompileError, CudaDriverError: nvcc or the driver refused a kernel.
    """
    import torch

    manifest = read_manifest(folder)
    if not torch.cuda.is_available():
        raise BackendUnavailableError(backend="cuda", reason="torch sees no GPU here")
    index = torch.cuda.current_device() if card is None else card
    device, where = cuda_device(index), torch.device("cuda", index)
    if device.arch != manifest.arch:
        reason = f"{folder} was made for {manifest.arch}, this card is {device.arch}"
        raise BackendUnavailableError(backend="cuda", reason=reason)
    place = Place(_driver(), where, lambda: int(torch.cuda.current_stream(where).cuda_stream))
    return load(folder, device, place)


def load(folder: Path, device: Device, place: Place) -> CompiledOperator:
    """The program in `folder`, loaded at `place`.

    Raises:
        ExportError, BackendUnavailableError, CompileError, CudaDriverError: as for `program_of_export`.
    """
    manifest = read_manifest(folder)
    spec, schedule = described(folder, manifest)
    loaded: dict[str, ExportedKernel] = {}
    for part in manifest.parts:
        if part.file not in loaded:
            card = place.where.index or 0
            image = image_of(folder, part, manifest.arch)
            function = place.driver.function(image, part.plan.function, part.plan.shared_bytes, card)
            loaded[part.file] = ExportedKernel(part.plan, function, place)
    return CompiledOperator(spec, schedule, device, tuple(loaded[part.file] for part in manifest.parts))


def described(folder: Path, manifest: Manifest) -> tuple[Spec, Schedule]:
    """The spec and the schedule of the program in `folder`.

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
        ExportError: the kernel's source is missing or was changed.
        BackendUnavailableError, CompileError: there is no machine code, and nvcc is missing or refused the source.
    """
    source, code = (folder / f"{part.file}{suffix}" for suffix in (".cu", ".cubin"))
    try:
        text = source.read_text()
        if hashlib.sha256(text.encode()).hexdigest() != part.source_digest:
            raise ExportError(path=folder, reason=f"{source.name} is not the source that the manifest describes")
        return code.read_bytes() if code.exists() else nvcc.cubin_of(text, source, arch)
    except OSError as error:
        raise ExportError(path=folder, reason=error) from error


@functools.cache
def _driver() -> CudaDriver:
    return CudaDriver()
