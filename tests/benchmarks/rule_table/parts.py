"""What the table of rules says of one rule, measured part by part; each part is plain data, so that it can be kept."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from codegen.device import Device
from codegen.errors import TrellisError
from codegen.kernels.build import build, operator_digest
from codegen.recurrence.tensors import HEAD, tensors
from codegen.schedules.registry import first_choice
from codegen.schedules.schedule import Schedule
from tests.benchmarks.rule_table.careful import CAREFUL, CarefulCalls, careful_calls
from tests.benchmarks.rule_table.forms import AT_ONCE, as_called, forms_of, served_by
from tests.benchmarks.studies.rules import Sizes, beside, once, spec_of
from tests.benchmarks.subjects.rule_calls import RuleSubject, rule_subject
from tests.benchmarks.turns import ratio, sample, take_turns
from tests.support.peers.inputs import Drawing
from tests.support.peers.inputs import Sizes as PeerSizes
from tests.support.peers.peer import Peer, compare, kernels_of
from tests.support.relative_error import relative_error
from trellis_ops.dispatch.forced_schedule import with_schedule
from tuner.measure.ceiling import ceiling_again
from tuner.measure.cost import cost_of
from tuner.measure.timed import Timed
from tuner.verify import check
from tuner.verify.inputs.trellis import make_inputs
from tuner.verify.launch import bind
from tuner.verify.oracle import oracle

Found = dict[str, float | str]
"""Numbers and names of one part, by column."""

PARTS = ("forward", "chunk form", "decode", "backward", "oracle", "peer")
PEER_OF = {"linear": "simple_gla"}
"""The comparison of `tests.support.peers.table` that is of a rule, where it has another name."""

_COLUMNS = {"forward": "forward", "chunk form": "forward", "decode": "decode"}
"""The column of `tests.benchmarks.studies.rules` whose spec a part is of; the backward of the others."""

_SAME = 2e-3
_EAGER = "eager"
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Ways:
    """How parts are measured.

    Attributes:
        sizes: of the calls.
        compile_limit: seconds that `torch.compile` may take for each rule.
        peer_sizes: of the comparisons with peers.
    """

    sizes: Sizes
    compile_limit: float
    peer_sizes: tuple[PeerSizes, ...]


def setting_of(part: str, name: str, chunk: int, ways: Ways, device: Device) -> str:
    """All that a part depends on but the machine's load: what was measured with another setting does not count."""
    spec = as_called(spec_of(name, chunk, ways.sizes, _COLUMNS.get(part, "backward")))
    digest = operator_digest(spec.problem, first_choice(device))
    with_forward = operator_digest(replace(spec.problem, direction="forward"), first_choice(device))
    how = {"oracle": ways.sizes.checked, "peer": ways.peer_sizes, "forward": ways.compile_limit}.get(part, "")
    return f"{device.key()} {spec.key()} {digest} {with_forward} {how}"


def forward(name: str, chunk: int, ways: Ways, device: Device) -> Found:
    """Every form of the forward by the public operator, the eager walk and the chunk forms of others, in turn."""
    sizes = ways.sizes
    spec = spec_of(name, chunk, sizes, "forward")
    bound = rule_subject(spec, make_inputs(spec, (sizes.tokens,), device))
    found: Found = {}
    forms: dict[str, Callable[[], object]] = {
        form: functools.partial(_forced, schedule, bound)
        for form, schedule in forms_of(as_called(spec), device).items()
    }
    samplers = {form: functools.partial(sample, Timed(run, bound.reset), device) for form, run in forms.items()}
    samplers[_EAGER] = once(bound.eager)
    rival = _rival(name, bound, ways.compile_limit, found)
    for way, call in ({} if rival is None else rival.eager).items():
        samplers[f"careful {way}"] = once(call)
    if rival is not None and rival.compiled is not None:
        samplers["compiled"] = once(rival.compiled)
    timed = take_turns(samplers, seconds=sizes.seconds, rounds=sizes.rounds, least=_LEAST_ROUNDS)
    fastest = min(forms, key=lambda form: timed[form].seconds)
    cost = cost_of(spec)
    share = ceiling_again(device, spec.problem.dtype, cost.bytes).share(cost, timed[fastest].seconds)
    found |= {"form": fastest, "seconds": timed[fastest].seconds, "share": share}
    found[_EAGER] = ratio(timed[_EAGER], timed[fastest])
    careful = [ratio(timing, timed[fastest]) for way, timing in timed.items() if way.startswith("careful")]
    if careful:
        found["careful"] = min(careful)
    if "compiled" in timed:
        found["compiled"] = ratio(timed["compiled"], timed[fastest])
    return found


def chunk_form(name: str, chunk: int, ways: Ways, device: Device) -> Found:
    """The fastest form of the forward that computes the tokens of a tile at once, by the public operator."""
    sizes = ways.sizes
    spec = spec_of(name, chunk, sizes, "forward")
    bound = rule_subject(spec, make_inputs(spec, (sizes.tokens,), device))
    samplers = {
        form: functools.partial(sample, Timed(functools.partial(_forced, schedule, bound), bound.reset), device)
        for form, schedule in forms_of(as_called(spec), device).items()
        if schedule.variant in AT_ONCE
    }
    timed = take_turns(samplers, seconds=sizes.seconds, rounds=sizes.rounds, least=_LEAST_ROUNDS)
    fastest = min(timed, key=lambda form: timed[form].seconds)
    cost = cost_of(spec)
    share = ceiling_again(device, spec.problem.dtype, cost.bytes).share(cost, timed[fastest].seconds)
    return {"form": fastest, "seconds": timed[fastest].seconds, "share": share}


def _forced(schedule: Schedule, bound: RuleSubject) -> object:
    with with_schedule(schedule):
        return bound.operator()


def _rival(name: str, bound: RuleSubject, limit: float, found: Found) -> CarefulCalls | None:
    """The chunk forms, whose result was compared; why there are none is a remark in `found`."""
    if name not in CAREFUL:
        return None
    rule, given, held = bound.eager.args
    per_head = {each.name for each in tensors(rule) if each.per == HEAD}
    try:
        calls = careful_calls(CAREFUL[name], given, held, per_head, limit)
    except ImportError as error:
        found["remark"] = f"no careful eager form: {error}"
        return None
    found["remark"] = f"{CAREFUL[name].reference.partition(':')[2]}: {calls.note}"
    y = bound.operator.y()
    compiled = {} if calls.compiled is None else {"compiled": calls.compiled}
    for way, call in (calls.eager | compiled).items():
        error = relative_error(call()[0], y)
        if not error <= _SAME:
            found["remark"] = f"{CAREFUL[name].reference} ({way}) is left out: it differs by {error:.1e}"
            return None
    return calls


def timed(part: str, name: str, chunk: int, ways: Ways, device: Device) -> Found:
    """A decode step, or a backward with its forward, beside eager."""
    spec = spec_of(name, chunk, ways.sizes, part)
    found = beside(spec, device, ways.sizes)
    served = served_by(as_called(spec), device)
    form = "eager" if served is None else served.variant
    return {"form": form, "seconds": found.kernel.seconds, "share": found.share, _EAGER: found.ratio}


def against_oracle(name: str, chunk: int, ways: Ways, device: Device) -> Found:
    """The largest errors over all forms, on two packed sequences of one head."""
    found: Found = {"outputs": 0.0, "gradients": 0.0}
    for direction in ("forward", "backward"):
        spec = as_called(spec_of(name, chunk, ways.sizes, "backward"))
        spec = replace(spec, problem=replace(spec.problem, heads=1, direction=direction))
        inputs = make_inputs(spec, (ways.sizes.checked, ways.sizes.checked // 2 + 1), device)
        on_cpu = replace(inputs, tensors={each: x.cpu() for each, x in inputs.tensors.items()})
        wanted = oracle(spec, on_cpu)
        for form, schedule in forms_of(spec, device).items():
            launch = bind(build(spec, schedule, device), inputs)
            compared = check.compare(launch.outputs_of_run(), wanted, check.TOLERANCE[spec.problem.dtype])
            if not compared.errors:
                found["remark"] = f"{form}: {compared.reason}"
                return found | {"outputs": math.inf, "gradients": math.inf}
            for each, error in compared.errors.items():
                _worst(found, "gradients" if each.startswith("d") else "outputs", error, f"{form} {each}")
    return found


def _worst(found: Found, kind: str, error: float, where: str) -> None:
    if error > float(found[kind]):
        found.update({kind: error, f"{kind}_of": where})


def against_peer(peer: Peer, ways: Ways, device: Device) -> Found:
    """The largest errors of the kernels beside the reference of another project, over all sizes."""
    found: Found = {"outputs": 0.0, "gradients": 0.0, "reference": peer.reference}
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # The last digits depend on how a sum is divided.
    try:
        with warnings.catch_warnings(), kernels_of(first_choice(device)):
            warnings.filterwarnings("ignore", "Triton is not supported", UserWarning)
            for sizes in ways.peer_sizes:
                drawn = {each: x.float() for each, x in peer.draw(sizes, Drawing()).items()}
                errors = compare(peer, drawn)
                _worst(found, "outputs", max(errors.output, errors.states or 0.0), "")
                _worst(found, "gradients", errors.gradient, errors.worst)
    finally:
        torch.set_num_threads(before)
    return found


def measured(part: str, name: str, chunk: int, ways: Ways, device: Device, peers: Mapping[str, Peer]) -> Found:
    """A part; one that cannot run has a remark, and no number.

    Args:
        part: one of `PARTS`.
        name, chunk: a rule, and its C.
        ways, device: how and where.
        peers: by name; empty where the packages of peers are missing.
    """
    try:
        if part in ("forward", "chunk form"):
            with torch.no_grad():
                return (forward if part == "forward" else chunk_form)(name, chunk, ways, device)
        if part == "oracle":
            return against_oracle(name, chunk, ways, device)
        if part == "peer":
            return against_peer(peers[PEER_OF.get(name, name)], ways, device)
        with torch.no_grad():
            return timed(part, name, chunk, ways, device)
    except TrellisError as error:
        return {"remark": f"{part}: {error}"}
