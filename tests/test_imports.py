"""The import arrows of CONTRIBUTING.md, read off the syntax trees."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("codegen", "tuning_db", "trellis_ops", "tuner")

ORDER = {
    "codegen": (
        "errors",
        "interruption",
        "scalars",
        "device",
        "maps",
        "rule",
        "rule_text",
        "rules",
        "layer",
        "input_maps",
        "spec",
        "cache",
        "limits",
        "limits.extent",
        "recurrence",
        "kernels.layer.layout",
        "schedules",
        "limits.countable",
        "kernels.arguments",
        "kernels.layer",
        "kernels.between",
        "kernels.glue",
        "kernels.rule_arguments",
        "recurrence.emit",
        "kernels.signatures",
        "kernels.launches",
        "kernels.exact_update",
        "kernels.pool",
        "kernels.declared",
        "kernels.text",
        "file_digest",
        "render",
        "backends.tvm.emit",
        "backends.tvm_cuda.emit",
        "backends.tvm.layer",
        "backends.tvm.glue",
        "backends",
        "kernels.sequences",
        "kernels.buffers",
        "kernels.operator",
        "kernels.build",
        "kernels",
        "tables",
        "show",
        "",
        "__main__",
    ),
    "tuning_db": (
        "regular_file",
        "errors",
        "writing",
        "masking",
        "records",
        "device_file",
        "warning",
        "layer",
        "failures",
        "store",
        "default",
        "",
    ),
    "trellis_ops": (
        "own_packages",
        "errors",
        "specs",
        "files",
        "outer_gradient",
        "tokens",
        "reference",
        "family_reference",
        "calls",
        "preparations",
        "specs.workload",
        "specs.recorded",
        "dispatch",
        "eager",
        "operators",
        "pool",
        "glue",
        "ops",
        "memory_states",
        "memory",
        "explanation",
        "specs.warming",
        "",
        "lm",
        "lm.train",
        "lm.recall",
        "lm.demo",
        "serve.store",
        "serve",
        "lm.shipped.models",
        "lm.shipped",
        "hf",
        "generate",
        "serve.vllm",
        "commands",
    ),
    "tuner": (
        "errors",
        "studies.telling",
        "duration",
        "processes",
        "toolchain",
        "policy",
        "workload",
        "budget",
        "space",
        "studies",
        "verify",
        "measure",
        "workers",
        "session",
        "search",
        "records",
        "offline",
        "experiments",
        "report",
        "gpu_run",
        "commands",
        "cli",
        "",
        "__main__",
    ),
}
"""A module of a package imports only what stands before it here: a module, or a folder, whose modules import each other
without circles. "" is the package itself."""

CIRCLES = [{"codegen.maps.expression", "codegen.maps.functions", "codegen.maps.text"}]
"""The only modules that import each other: an expression prints itself."""

MAY_IMPORT = {
    "codegen": {"codegen"},
    "tuning_db": {"tuning_db"},
    "trellis_ops": {"trellis_ops", "codegen", "tuning_db"},
    "tuner": {
        "tuner",
        "trellis_ops.reference",
        "trellis_ops.family_reference",
        "trellis_ops.eager.forward",
        "trellis_ops.eager.glue",
        "trellis_ops.eager.pool",
        "trellis_ops.eager.recurrence",
        "trellis_ops.own_packages",
        "trellis_ops.specs.workload",
        "codegen",
        "tuning_db",
    },
}

LIBRARIES = {"tuning_db": {"msgspec", "filelock", "platformdirs"}}
"""Packages that may import nothing else from outside."""

FOR_THE_MODEL = {
    "calls.checks",
    "calls.values",
    "dispatch",
    "errors",
    "files",
    "glue",
    "lm",
    "memory",
    "memory_states",
    "operators.agreement",
    "ops",
    "outer_gradient",
    "preparations",
    "specs.warming",
    "tokens",
}
"""What lm may import of trellis_ops: the operators by their public names, which device a tensor is on, files, whether
values are to be checked."""

ORACLES = {"reference", "family_reference"}
"""The oracle of TRELLIS, and that of any rule, which takes maps and losses from it."""

SHARED_WITH_THE_ORACLE = {"outer_gradient", "tokens"}
"""What the oracle may import of trellis_ops: names and shapes, no arithmetic."""


def modules() -> dict[str, Path]:
    """Every module of the four packages, by its dotted name."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()


def imported(source: str, module: str, is_package: bool = False) -> set[str]:
    """The modules that `source`, the text of `module`, imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package else -1]
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return found


def problems(module: str, names: set[str]) -> list[str]:
    """What is wrong with `module` importing `names`."""
    package, _, rest = module.partition(".")
    return [
        f"{module} imports {name}: {reason}"
        for name in sorted(names)
        for reason in (
            _wrong_package(package, name),
            _wrong_order(package, rest, name),
            _wrong_use(package, rest, name),
        )
        if reason
    ]


def _wrong_package(package: str, name: str) -> str | None:
    top = name.partition(".")[0]
    if top == "tests":
        return "only tests import tests"
    if top in PACKAGES:
        allowed = MAY_IMPORT[package]
        return None if any(name == each or name.startswith(f"{each}.") for each in allowed) else "against the arrows"
    libraries = LIBRARIES.get(package)
    if libraries is not None and top not in libraries and top not in sys.stdlib_module_names:
        return f"{package} needs only {', '.join(sorted(libraries))}"
    return None


def _wrong_order(package: str, importer: str, name: str) -> str | None:
    if name != package and not name.startswith(f"{package}."):
        return None
    order = ORDER[package]
    mine, other = _place(package, importer), _place(package, name.removeprefix(package).removeprefix("."))
    if mine == other or order.index(other) < order.index(mine):
        return None
    return f"{other or package} does not stand before {mine or package} in {' <- '.join(order)}"


def _place(package: str, module: str) -> str:
    """Where a module stands: the longest name in the order that is the module or a folder around it."""
    fitting = [each for each in ORDER[package] if module == each or (each and module.startswith(f"{each}."))]
    return max(fitting, key=len, default=module)


def _wrong_use(package: str, importer: str, name: str) -> str | None:
    if package != "trellis_ops":
        return None
    if importer in ORACLES and name.startswith("codegen.") and name != "codegen.rule":
        return "the oracle shares no expression with what it judges"
    if not name.startswith("trellis_ops."):
        return None
    other = name.removeprefix("trellis_ops.")
    if importer.startswith("lm."):
        fine = any(other == each or other.startswith(f"{each}.") for each in FOR_THE_MODEL)
        return None if fine else "the model uses operators through trellis_ops.ops only"
    if importer in ORACLES:
        fine = other in SHARED_WITH_THE_ORACLE | ORACLES
        return None if fine else "the oracle shares no expression with what it judges"
    if other in ORACLES:
        return "the oracle serves tests and the tuner, never a call"
    return None


def reached(module: str, imports: dict[str, set[str]]) -> set[str]:
    """Every module that `module` imports, by way of others or directly."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        new = imports.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other, by way of each other or directly."""
    far = {module: reached(module, imports) for module in imports}
    groups = ({module} | {other for other in far[module] if module in far.get(other, ())} for module in far)
    return list(map(set, {frozenset(group) for group in groups if len(group) > 1}))


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module: str) -> None:
    path = MODULES[module]
    assert problems(module, imported(path.read_text(), module, path.name == "__init__.py")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_has_a_place(package: str) -> None:
    of_package = {name.removeprefix(package).removeprefix(".") for name in MODULES if name.partition(".")[0] == package}
    assert {_place(package, name) for name in of_package} == set(ORDER[package])


def test_the_exceptions_exist() -> None:
    for name in FOR_THE_MODEL | SHARED_WITH_THE_ORACLE:
        assert f"trellis_ops.{name}" in MODULES


def test_no_modules_import_each_other() -> None:
    imports = {
        module: {name for name in imported(path.read_text(), module, path.name == "__init__.py") if name in MODULES}
        for module, path in MODULES.items()
    }
    assert circles(imports) == CIRCLES


def test_a_gpu_run_reaches_no_module_that_imports_what_its_machine_lacks() -> None:
    imports = {
        module: imported(path.read_text(), module, path.name == "__init__.py") for module, path in MODULES.items()
    }
    far = reached("tuner.gpu_run.__main__", imports)
    assert "tuner.search.search" in far
    assert {name.partition(".")[0] for name in far} & {"optuna", "sqlalchemy", "rich", "plotly", "scipy"} == set()


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]


def test_templates_hold_no_python_modules() -> None:
    assert list((ROOT / "templates").rglob("*.py")) == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("codegen.spec", "import trellis_ops", "against the arrows"),
        ("codegen.kernels.operator", "from tuning_db import Store", "against the arrows"),
        ("codegen.rule", "from codegen.spec import Spec", "does not stand before"),
        ("codegen.spec", "def late():\n    from . import render", "does not stand before"),
        ("tuning_db.store", "import torch", "needs only"),
        ("tuning_db.store", "from codegen.spec import Spec", "against the arrows"),
        ("codegen.backends.tvm.compile", "from ...kernels.build import build", "does not stand before"),
        ("codegen.backends.tvm.emit.rows", "from codegen.backends.tvm.runtime import load", "does not stand before"),
        ("trellis_ops.dispatch.resolve", "from trellis_ops.operators import plan", "does not stand before"),
        ("tuner.verify.check", "from tuner.search.search import search", "does not stand before"),
        ("tuning_db.records.record", "from tuning_db.store import Store", "does not stand before"),
        ("trellis_ops.dispatch.resolve", "import tuner.search.search", "against the arrows"),
        (
            "trellis_ops.lm.mixer",
            "from trellis_ops.operators.registered import attention",
            "through trellis_ops.ops only",
        ),
        ("trellis_ops.lm.model", "from trellis_ops import eager", "through trellis_ops.ops only"),
        ("trellis_ops.operators.registered", "from trellis_ops.lm.model import TrellisLM", "does not stand before"),
        ("trellis_ops.reference", "from trellis_ops.eager.maps import apply_map", "shares no expression"),
        ("trellis_ops.family_reference", "from trellis_ops.eager.recurrence import step", "shares no expression"),
        ("trellis_ops.family_reference", "from codegen.recurrence.tensors import states", "shares no expression"),
        ("trellis_ops.eager.forward", "from trellis_ops import reference", "never a call"),
        ("trellis_ops.eager.recurrence", "from trellis_ops import family_reference", "never a call"),
        ("trellis_ops.lm.train.loop", "from trellis_ops import eager", "through trellis_ops.ops only"),
        ("trellis_ops.lm.train.loop", "from trellis_ops.lm.recall import task", "does not stand before"),
        ("trellis_ops.lm.model", "from trellis_ops.lm.train import loop", "does not stand before"),
        ("tuner.search.search", "from trellis_ops.ops import trellis_attention", "against the arrows"),
        ("tuner.search.search", "if TYPE_CHECKING:\n    import trellis_ops", "against the arrows"),
        ("tuner.search.search", "from tests.support.inputs import Inputs", "only tests"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, reason: str) -> None:
    assert any(reason in each for each in problems(module, imported(source, module)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "codegen.backends.tvm.compile",
            "from codegen.backends import Resources\nfrom .source_module import module_of",
        ),
        ("tuning_db.store", "import os\nimport msgspec\nfrom tuning_db.records.record import Record"),
        ("trellis_ops.lm.mixer", "from trellis_ops.ops import trellis_attention\nimport torch"),
        ("tuner.verify.oracle", "from trellis_ops import reference\nimport optuna"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert problems(module, imported(source, module)) == []
