"""Entrances of the compiler: specs, rules, maps, schedules, devices, kernels, exports."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from codegen import __main__ as command_line
from codegen.backends.tvm_cuda.launch import LaunchPlan
from codegen.device import NAMED, Device, _cpu_identity, named
from codegen.kernels.exports.export import _files_of_before
from codegen.kernels.exports.exported import MANIFEST, VERSION, Manifest, Part, described, image_of, read_manifest
from codegen.maps import Map, define, define_loss, find, tanh
from codegen.maps.emit import pytorch
from codegen.render import render
from codegen.rule import Rule
from codegen.rule_text import DEFAULTS, rule_of_key, rule_of_text
from codegen.rules import NAMED as NAMED_RULES
from codegen.rules import rule_named
from codegen.schedules.registry import default, from_settings, kind_of
from codegen.spec import Problem, Spec, spec_of_key
from tests.hostile.entrance import Entrance
from tuner.offline.candidates import path_for
from tuning_db.records.field_rules import is_device_key

HERE = NAMED["x86-64-v3"]
SPEC = Spec(Rule(), Problem("memory_update", dim_k=16, dim_v=16, slots=16))
KEY = SPEC.key()
TARGETS = (("tvm", HERE), ("tvm", NAMED["sm_90"]), ("triton", NAMED["sm_90"]))
"""A backend and a device for each folder of templates."""
_PIECES = ("memory_update", "forward", "B1", "T4096", "Dk16", "float32", "ln_silu", "1e-06", "head", "phi_eps")
_KERNEL = "memory_update"


def _key(piece: str) -> Entrance:
    return lambda name, given: spec_of_key(KEY.replace(piece, name, 1))


def _of_problem(field: str) -> Entrance:
    return lambda name, given: Problem(**{field: name})


def _of_rule(field: str) -> Entrance:
    return lambda name, given: Rule(**{field: name})


def _of_text(field: str) -> Entrance:
    return lambda name, given: rule_of_text(json.dumps({field: name}))


def _rendered(rule: Rule) -> None:
    """Render a kernel by every folder of templates, as `_rendered_for` does."""
    for backend, device in TARGETS:
        _rendered_for(rule, backend, device)


def _rendered_for(rule: Rule, backend: str, device: Device) -> None:
    """Render a kernel, and compare it with the one where no name of the user's own takes part."""
    spec, plain = (replace(SPEC, rule=each) for each in (rule, Rule(_plain(rule.phi))))
    made = render(_KERNEL, spec, default(backend, spec, device), device)
    expected = _render_plainly(plain, backend, device)
    assert _nodes(made.text) == _nodes(expected)
    assert made.path.read_text() == made.text


def _plain(phi: str) -> Map:
    """The same map, or loss, by another name."""
    found = find(phi)
    return find(f"plain({'z, a' if found.is_loss else 'z'}) = {found.formula}")


@functools.cache
def _render_plainly(spec: Spec, backend: str, device: Device) -> str:
    return render(_KERNEL, spec, default(backend, spec, device), device).text


def _nodes(source: str) -> str:
    """What Python would run of a source: comments and docstrings are nothing of it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body.pop(0)
    return ast.dump(tree)


def _map(name: str, given: Path) -> None:
    made = define(name, lambda z: tanh(z) * 3)
    assert _nodes(pytorch.source(made)) == _nodes(pytorch.source(define("plain", lambda z: tanh(z) * 3)))
    _rendered(Rule(made))


def _loss(name: str, given: Path) -> None:
    _rendered(Rule(define_loss(name, lambda z, a: (z - a) ** 4)))


def _map_object(name: str, given: Path) -> None:
    made = Map(name, find("softmax").expression)
    assert _nodes(pytorch.source(made)) == _nodes(pytorch.source(find("softmax")))
    _rendered(Rule(made))


def _formula(written: Callable[[str], str]) -> Entrance:
    return lambda name, given: _rendered(Rule(written(name)))


def _settings(backend: str, change: Callable[[dict[str, Any], str], dict[str, Any]]) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        from_settings(backend, change(default(backend, SPEC, _device_of(backend)).settings(), name))

    return entrance


def _device_of(backend: str) -> Device:
    return named(kind_of(backend).shown_for)


def _setting(field: str) -> Callable[[dict[str, Any], str], dict[str, Any]]:
    return lambda settings, name: {**settings, field: name}


def _schedule_object(name: str, given: Path) -> None:
    for backend, device in TARGETS:
        texts = []
        for variant in (name, "plain"):
            schedule = replace(default(backend, SPEC, device), variant=variant)
            texts.append(render(_KERNEL, SPEC, schedule, device).text)
        assert _nodes(texts[0]) == _nodes(texts[1])


def _device(field: str) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        device = replace(HERE, **{field: name})
        assert path_for(device, given).parent == given
        made = render(_KERNEL, SPEC, default("tvm", SPEC, device), device)
        assert _nodes(made.text) == _nodes(_render_plainly(SPEC, "tvm", HERE))

    return entrance


def _machine(change: Callable[[str], tuple[dict[str, str], str]]) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        called, arch, bits = _cpu_identity(*change(name))
        device = Device("cpu", called, arch, 2, bits)
        assert is_device_key(device.key()), device.key()

    return entrance


def _shown(*arguments: str) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        code = command_line.main(["show", *(each.replace("NAME", name) for each in arguments)])
        assert code in (0, 1)

    return entrance


def _manifest(change: Callable[[dict[str, Any], str], None]) -> Entrance:
    """A manifest with a name in it: read, and all that is done with what it says short of a card."""

    def entrance(name: str, given: Path) -> None:
        (given / "kernel.cu").write_text("// kernel")
        plan = LaunchPlan("kernel", (), (), (1, 1, 1), (1, 1, 1), 0)
        part = Part(_KERNEL, "kernel", hashlib.sha256(b"// kernel").hexdigest(), plan)
        schedule = default("tvm", SPEC, NAMED["sm_90"]).settings()
        manifest = Manifest(VERSION, KEY, "tvm", schedule, "sm_90", "0", {"tvm": "1"}, (part,))
        content = msgspec.to_builtins(manifest)
        change(content, name)
        (given / MANIFEST).write_bytes(msgspec.json.encode(content))
        # What is there by a name that is refused belongs to no earlier export.
        assert all(path.parent == given for path in _files_of_before(given))
        read = read_manifest(given)
        described(given, read)
        (given / "kernel.cubin").write_bytes(b"code")
        assert image_of(given, read.parts[0], read.arch) == b"code"

    return entrance


def _in(*place: str | int) -> Callable[[dict[str, Any], str], None]:
    """Puts a name there."""

    def change(content: dict[str, Any], name: str) -> None:
        inside: Any = content
        for step in place[:-1]:
            inside = inside[step]
        inside[place[-1]] = name

    return change


def _as_key(*place: str | int) -> Callable[[dict[str, Any], str], None]:
    """Makes a name the key of something there."""

    def change(content: dict[str, Any], name: str) -> None:
        inside: Any = content
        for step in place:
            inside = inside[step]
        inside[name] = "x"

    return change


ENTRANCES: dict[str, Entrance] = {
    "a spec's key": lambda name, given: spec_of_key(name),
    **{f"{piece} of a spec's key": _key(piece) for piece in _PIECES},
    **{f"{field} of a problem": _of_problem(field) for field in ("operator", "dtype", "direction", "tokens", "slots")},
    **{f"{field} of a rule": _of_rule(field) for field in DEFAULTS},
    "the name of a rule": lambda name, given: rule_named(name),
    "a rule's text": lambda name, given: rule_of_text(name),
    "a field of a rule's text": lambda name, given: rule_of_text(json.dumps({name: 1})),
    **{f"{field} of a rule's text": _of_text(field) for field in DEFAULTS},
    "a rule's key": lambda name, given: rule_of_key(name),
    "a field of a rule's key": lambda name, given: rule_of_key(
        NAMED_RULES["kda"].rule.key().replace("decay_first", name)
    ),
    "the name of a map": _map,
    "the name of a loss": _loss,
    "the name of a map that is made without define": _map_object,
    "the name in a definition": _formula(lambda name: f"{name}(z) = 3 * z"),
    "the argument of a definition": _formula(lambda name: f"m({name}) = 3 * z"),
    "a formula": _formula(lambda name: f"m(z) = {name}"),
    "the end of a formula": _formula(lambda name: f"m(z) = 3 * z{name}"),
    "a function in a formula": _formula(lambda name: f"m(z) = {name}(z)"),
    "the formula of a loss": _formula(lambda name: f"m(z, a) = sum((z - a) ** 2){name}"),
    "a backend": lambda name, given: from_settings(name, {}),
    **{
        f"{field} of a schedule of {backend}": _settings(backend, _setting(field))
        for backend in ("tvm", "triton")
        for field in default(backend, SPEC, _device_of(backend)).settings()
    },
    "a field of a schedule": _settings("tvm", lambda settings, name: {**settings, name: 1}),
    "the variant of a schedule that is made without from_settings": _schedule_object,
    "a device": lambda name, given: named(name),
    "the name of a device": _device("name"),
    "the architecture of a device": _device("arch"),
    "the kind of a device": _device("kind"),
    "the processor's name": _machine(lambda name: ({"model name": name}, "x86_64")),
    "the processor's family": _machine(lambda name: ({"model name": "A", "cpu family": name}, "x86_64")),
    "the machine's name": _machine(lambda name: ({}, name)),
    "a kernel": lambda name, given: render(name, SPEC, default("tvm", SPEC, HERE), HERE),
    "show KERNEL": _shown("NAME"),
    **{
        f"show --{option}": _shown(_KERNEL, f"--{option}=NAME")
        for option in ("backend", "device", "operator", "dtype", "phi", "step-size", "set", "slots")
    },
    "show --set of a field": _shown(_KERNEL, "--set", "variant=NAME"),
    **{
        f"{'/'.join(map(str, place))} of a manifest": _manifest(_in(*place))
        for place in (
            *(("spec",), ("backend",), ("arch",), ("templates",), ("toolchain", "tvm"), ("schedule", "variant")),
            *(("version",), ("parts", 0, "file"), ("parts", 0, "kernel"), ("parts", 0, "source_digest")),
            ("parts", 0, "plan", "function"),
        )
    },
    "a field of a manifest": _manifest(_as_key()),
    "a field of a manifest's part": _manifest(_as_key("parts", 0)),
    "a field of a manifest's schedule": _manifest(_as_key("schedule")),
    "a package of a manifest": _manifest(_as_key("toolchain")),
}
