"""The plan of the house: which room may import which. docs/design.md draws it; here it is checked.

A room is a sub-package, or a module beside them. It may import rooms that stand further down in its package, and packages that stand
further down; never one that stands beside or above it. Imports that only serve annotations count, and so do late ones.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"sparcl_core": (), "client": ("sparcl_core",), "server": ("sparcl_core",), "simulations": ("sparcl_core", "client", "server")}
FLOORS = {  # from the ground up
    "sparcl_core": (
        "seeding foreign metrics task_change", "plugins", "task_data domains batches probe", "sparsity",
        "config replay", "inputs kernels costs", "codec", "wire networks", "methods", "training", "learner", "solo evaluation",
    ),
    "client": ("config streams", "state", "local_round", "app"),
    "server": (
        "errors snapshot ledger config", "fleet aggregation", "selection defence", "global_model", "rounds", "strategy", "app",
    ),
    "simulations": (
        "disk environment bytecode", "config", "data fleet engine", "preflight evaluate client_app plugins", "build doctor",
        "checkpoints calibration", "single_device", "run", "results", "tables flower_apps", "cli", "__main__",
    ),
}  # fmt: skip
FLOOR = {f"{package}.{room}": floor for package, floors in FLOORS.items() for floor, rooms in enumerate(floors) for room in rooms.split()}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(module: str) -> Iterator[str]:
    """Modules of ours that `module` names in an import, wherever it stands."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


@cache
def all_imports() -> dict[str, list[str]]:
    return {module: sorted(set(imports(module)) - {module}) for module in MODULES}


def test_every_module_stands_in_a_room_of_the_plan():
    assert {room(module) for module in MODULES if "." in module} == set(FLOOR)


def test_no_arrow_runs_up():
    wrong = []
    for module, others in all_imports().items():
        for other in others:
            package, its = module.partition(".")[0], other.partition(".")[0]
            if package != its:
                fits = its in PACKAGES[package]
            else:
                fits = room(module) == room(other) or other == package or FLOOR[room(other)] < FLOOR[room(module)]
            if not fits:
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            pytest.fail("a circle: " + " -> ".join((*trail[trail.index(module) :], module)))
        if module not in done:
            for other in all_imports()[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_every_room_says_what_lives_there():
    for module, path in MODULES.items():
        if path.name == "__init__.py":
            told = ast.get_docstring(tree(module))
            assert told and len(told.splitlines()[0]) <= 140, f"{module} needs a docstring that begins with one line on what lives there"


GUESTS = {  # what of others may be known where; a folder ends with a slash
    "flwr": (
        "client/app.py", "server/app.py", "server/strategy.py", "server/rounds/", "simulations/engine/", "simulations/client_app.py",
        "simulations/flower_apps.py", "simulations/run.py",
    ),
    "flwr_datasets": ("simulations/data/flwr_partitioners.py",),
    "ray": ("simulations/engine/",),
    "torch": ("sparcl_core/", "client/app.py", "simulations/"),
    "matplotlib": ("simulations/results/plot.py", "simulations/results/data_picture.py", "simulations/tables/picture.py"),
    "pyarrow": ("simulations/results/", "simulations/data/parquet.py"),
    "rich": ("simulations/cli/", "simulations/results/console.py"),
    "typer": ("simulations/cli/",),
    "pydantic": ("simulations/config/", "simulations/tables/claim_file.py"),
}  # fmt: skip


@pytest.mark.parametrize("guest", GUESTS)
def test_other_packages_are_known_where_they_belong(guest):
    wrong = []
    for module, path in MODULES.items():
        where = str(path.relative_to(ROOT))
        for node in ast.walk(tree(module)):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(one.partition(".")[0] == guest for one in named) and not where.startswith(GUESTS[guest]):
                wrong.append(where)
    assert not wrong, f"{guest} is imported by {sorted(set(wrong))}"
