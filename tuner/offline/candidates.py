"""Candidates for a GPU that is not here, compiled and put in order, so that time on the card is spent measuring.

The list is a file with one line of JSON per spec. It holds settings only: what was compiled for it lies in the cache of
Triton, which finds it again where the same version runs.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from codegen.device import Device
from codegen.errors import TrellisError
from codegen.kernels.build import operator_digest
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import first_choice, from_settings
from codegen.schedules.schedule import Schedule
from codegen.spec import Spec, spec_of_key
from trellis_ops.specs.workload import NamedSpec
from tuner.errors import CandidateFileError
from tuner.offline.cost_model import predicted_seconds, promising_first
from tuner.offline.offline import Examined, examine
from tuner.space.legal import Settings, changes, legal_schedules
from tuning_db.regular_file import UNREADABLE, read_regular
from tuning_db.writing import move_aside, write_temporary

FOLDER = Path(__file__).resolve().parents[2] / "tuning_db" / "candidates"
"""Where the lists are that come with the project."""

MAX_BYTES = 16 * 2**20

MOST = 8
"""Candidates of one spec that are compiled unless asked otherwise: a variant's share is as large as another's."""


class Guess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A candidate worth a measurement, and the seconds that `tuner.offline.cost_model` guesses, if it can."""

    settings: Settings
    seconds: float | None


class Ranked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The candidates of one spec, most promising first.

    Attributes:
        name: of the spec.
        spec, device: text keys.
        template_digest: of the templates that were compiled; of others the list says nothing.
        tried: candidates that were compiled.
        pruned: how many of them spill too much, do not fit or do not compile.
        guesses: the others, the default first, then in the order of their guesses.
    """

    name: str
    spec: str
    device: str
    template_digest: str
    tried: int
    pruned: int
    guesses: tuple[Guess, ...]


def path_for(device: Device, folder: Path = FOLDER) -> Path:
    """The file of a device's list."""
    return folder / f"{device.key()}.jsonl"


def choose(spec: Spec, device: Device, most: int) -> list[Schedule]:
    """The default and `most` legal schedules, those first that differ least from it; variants have equal shares.

    Another precision takes more products, so that comes last. A seeded choice decides between equals.
    """
    first, *others = legal_schedules(spec, first_choice(device), device)
    random.Random(0).shuffle(others)
    precision = first.settings().get("dot_precision")
    others.sort(key=lambda each: (each.settings().get("dot_precision") != precision, changes(each, first)))
    by_variant = [
        [each for each in others if each.variant == variant] for variant in {each.variant: 0 for each in others}
    ]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_variant))
    return [first, *(each for each in in_turn if each is not None)][:most]


def rank(named: NamedSpec, device: Device, most: int, seconds: float, processes: int) -> Ranked:
    """Compile up to `most` candidates of a spec within about `seconds` and put them in order."""
    spec = named.spec
    chosen = choose(spec, device, most)
    examined = list(_examined(spec, device, chosen, seconds, processes))
    worth = [
        (each.schedule, predicted_seconds(spec, each.schedule, device, each.kernels))
        for each in examined
        if _is_worth_it(each, chosen[0])
    ]
    guessed = {schedule.key(): guess for schedule, guess in worth}
    ordered = sorted(promising_first(worth), key=lambda schedule: schedule != chosen[0])
    return Ranked(
        name=named.name,
        spec=spec.key(),
        device=device.key(),
        template_digest=operator_digest(spec.problem, chosen[0].backend),
        tried=len(examined),
        pruned=len(examined) - len(worth),
        guesses=tuple(Guess(each.settings(), guessed[each.key()]) for each in ordered),
    )


def _is_worth_it(examined: Examined, default: Schedule) -> bool:
    # The default is what would run without a measurement, so it is measured whatever its compiler says.
    return examined.reason is None or (examined.schedule == default and bool(examined.kernels))


def _examined(spec: Spec, device: Device, chosen: list[Schedule], seconds: float, processes: int) -> Iterator[Examined]:
    until = time.monotonic() + seconds
    # Triton and LLVM hold state that a fork would copy in the middle of something.
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        for group in _groups(chosen, processes):
            yield from pool.map(examine, *zip(*((spec, schedule, device) for schedule in group), strict=True))
            if time.monotonic() > until:
                return


def _groups(chosen: list[Schedule], size: int) -> Iterator[list[Schedule]]:
    for begin in range(0, len(chosen), size):
        yield chosen[begin : begin + size]


def write(lists: Iterable[Ranked], path: Path) -> None:
    """Put lists into the file at `path`, each in the place of an older one of its spec; the lists of other specs stay.

    A file that cannot be read is kept as `<name>.unreadable-<n>`: to make it again is what its error advises.
    """
    try:
        older = read(path)
    except CandidateFileError:
        older = ()
        if os.path.lexists(path):
            move_aside(path)
    by_spec = {each.spec: each for each in (*older, *lists)}
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(msgspec.json.encode(each) + b"\n" for each in by_spec.values())
    os.replace(write_temporary(path, data), path)


def read(path: Path) -> tuple[Ranked, ...]:
    """The lists of the file at `path`.

    Raises:
        CandidateFileError: it cannot be read, or a line is none.
    """
    try:
        data = read_regular(path, MAX_BYTES)
        if len(data) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        return tuple(msgspec.json.decode(line, type=Ranked) for line in data.splitlines() if line.strip())
    except (OSError, *UNREADABLE) as error:
        raise CandidateFileError(path=path, problem=error) from error


def schedules_of(ranked: Ranked, backend: str, device: Device) -> list[tuple[Schedule, float | None]]:
    """The schedules of a list that are legal for `device`, and their guesses.

    None if it is another backend's, or if the templates have changed.
    """
    spec = spec_of_key(ranked.spec)
    if ranked.template_digest != operator_digest(spec.problem, backend):
        return []
    found = []
    for guess in ranked.guesses:
        try:
            schedule = from_settings(backend, dict(guess.settings))
        except TrellisError:
            continue  # Of another version's settings.
        if why_illegal(spec, schedule, device) is None:
            found.append((schedule, guess.seconds))
    return found
