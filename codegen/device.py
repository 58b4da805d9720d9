"""The machine a kernel is made for: read from the one in use, or named to compile for one that is not here.

Nothing here starts a GPU: the names of the cards come from text files of the operating system, and only
`cuda_device`, called once a tensor lives on a card, asks the driver for more.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from codegen.errors import DeviceFieldError, UnknownDeviceError

KINDS = ("cpu", "cuda", "hip")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_LONGEST = {"name": 64, "arch": 16}
"""Characters of each: a key is made of both, and the name of a file of a key."""


@dataclass(frozen=True)
class Device:
    """A machine, as far as kernels care.

    Attributes:
        kind: one of `KINDS`.
        name: what its maker calls it, in lower case with dashes ("nvidia-h200", "amd-epyc-f25m17").
        arch: what a compiler calls it ("x86-64-v4", "aarch64", "sm_90", "gfx942").
        cores: processors that this process may use, or multiprocessors.
        vector_bits: width of a CPU vector register in bits; 0 for a GPU.
        shared_bytes: shared memory that one block may use, in bytes; 0 for a CPU.

    Raises:
        DeviceFieldError: another kind, or a name or an architecture that is no such text.
    """

    kind: str
    name: str
    arch: str
    cores: int
    vector_bits: int = 0
    shared_bytes: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DeviceFieldError(field="kind", value=self.kind, expected=f"one of {', '.join(KINDS)}")
        for field, most in _LONGEST.items():
            value = getattr(self, field)
            if len(value) > most or _NAME.fullmatch(value) is None:
                expected = f"at most {most} lower-case letters, digits, '.', '_' and '-', one of the first two first"
                raise DeviceFieldError(field=field, value=value, expected=expected)

    def key(self) -> str:
        """Stable text key, fit for a file name; the second half of a tuning record's identity."""
        if self.kind == "cpu":
            return f"{self._without_cores()}{self.cores}-cores"
        return self.name

    def with_more_cores(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Those of `keys` that are this CPU with more cores, the fewest first; none of a GPU.

        What is fast there is fast here on fewer threads, as far as nothing was measured with as many cores as here.
        """
        if self.kind != "cpu":
            return ()
        pattern = re.compile(re.escape(self._without_cores()) + r"(\d+)-cores")
        found = sorted((int(match[1]), key) for key in keys if (match := pattern.fullmatch(key)))
        return tuple(key for cores, key in found if cores > self.cores)

    def _without_cores(self) -> str:
        return f"{self.name}-{self.arch}-"


NAMED: dict[str, Device] = {
    "x86-64-v2": Device("cpu", "generic", "x86-64-v2", cores=2, vector_bits=128),
    "x86-64-v3": Device("cpu", "generic", "x86-64-v3", cores=2, vector_bits=256),
    "x86-64-v4": Device("cpu", "generic", "x86-64-v4", cores=2, vector_bits=512),
    "aarch64": Device("cpu", "generic", "aarch64", cores=2, vector_bits=128),
    "sm_80": Device("cuda", "nvidia-a100", "sm_80", cores=108, shared_bytes=166_912),
    "sm_90": Device("cuda", "nvidia-h200", "sm_90", cores=132, shared_bytes=232_448),
    "gfx942": Device("hip", "amd-mi300x", "gfx942", cores=304, shared_bytes=65_536),
}
"""Devices by the name of their architecture, for compiling without them."""

THREADS_PER_WARP = {"cuda": 32, "hip": 64}
"""By kind of GPU."""

_X86_LEVELS = (
    ("x86-64-v4", 512, ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    ("x86-64-v3", 256, ("avx2", "bmi2", "fma", "f16c")),
    ("x86-64-v2", 128, ("sse4_2", "popcnt")),
)


_CPU_FACTS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
)


def named(name: str) -> Device:
    """The device called `name`: "here" for this machine's CPU, a key of `NAMED`, or the name of a device there.

    Raises:
        UnknownDeviceError: any other name.
    """
    if name == "here":
        return cpu()
    gpus = {device.name: device for device in NAMED.values() if device.kind != "cpu"}
    devices = NAMED | gpus
    if name not in devices:
        raise UnknownDeviceError(name=name, known=", ".join(devices))
    return devices[name]


@functools.cache
def cpu() -> Device:
    """The CPU of this machine, with the cores that this process may use."""
    facts = _cpuinfo()
    name, arch, vector_bits = _cpu_identity(facts, platform.machine().lower())
    return Device("cpu", name, arch, _usable_cores(), vector_bits)


def cpu_identity() -> str:
    """All that a compiler which is asked for code for this CPU may look at, as text; more than a device's key says."""
    facts = _cpuinfo()
    return "; ".join(f"{name}: {facts[name]}" for name in _CPU_FACTS if name in facts) or platform.processor()


def gpu_names() -> tuple[str, ...]:
    """Names of the NVIDIA cards that the operating system lists, without starting any of them."""
    listing = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    models = (re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE) for path in listing)
    return tuple(_slug(match.group(1)) for match in models if match)


@functools.cache
def cuda_device(index: int) -> Device:
    """Card number `index` of torch; asks the driver, so call it only for a tensor that is already there."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    shared = getattr(properties, "shared_memory_per_block_optin", 49_152)
    if torch.version.hip:
        arch = properties.gcnArchName.split(":")[0]
        return Device("hip", _slug(properties.name), arch, properties.multi_processor_count, 0, shared)
    arch = f"sm_{properties.major}{properties.minor}"
    return Device("cuda", _slug(properties.name), arch, properties.multi_processor_count, 0, shared)


def _cpu_identity(facts: dict[str, str], machine: str) -> tuple[str, str, int]:
    model = _slug(facts.get("model name", "") or platform.processor() or "cpu")
    if machine in ("x86_64", "amd64"):
        name = _slug(f"{model[:48]}-f{facts.get('cpu family', '0')}m{facts.get('model', '0')}")
        flags = set(facts.get("flags", "").split())
        for arch, bits, needed in _X86_LEVELS:
            if flags.issuperset(needed):
                return name, arch, bits
        return name, "x86-64", 128
    return model, "aarch64" if machine in ("arm64", "aarch64") else _slug(machine)[: _LONGEST["arch"]], 128


@functools.cache
def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first, _, _ = path.read_text().partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _slug(text: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower().replace("(r)", "").replace("(tm)", "")).strip("-")
    return plain[: _LONGEST["name"]].strip("-") or "unknown"
