"""`make test-fast`: fast.txt lists what it runs, a file, a folder or a test on a line; here is seen to it that no room is without."""

import ast
from pathlib import Path

import pytest
from test_rooms import FLOOR

TESTS = Path(__file__).parent
HELPERS = {path.stem: path for path in TESTS.glob("*.py")}
LISTED = TESTS.joinpath("fast.txt").read_text().split()


def files(listed: str) -> list[Path]:
    path = TESTS.parent / listed.partition("::")[0]
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


def imported(path: Path) -> set[str]:
    """Modules that a file of the tests imports, by itself or through the files that tests share."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    shared = found & HELPERS.keys() - {path.stem}
    return found.union(*(imported(HELPERS[name]) for name in shared))


FAST = sorted({file for listed in LISTED for file in files(listed)})
IMPORTED = {path: imported(path) for path in FAST}


def covering(room: str) -> list[Path]:
    """What is named after the room, or imports it."""
    package, name = room.split(".")
    folder = TESTS / package
    own = [path for path in FAST if path.is_relative_to(folder / name) or path == folder / f"test_{name}.py"]
    return own or [path for path, names in IMPORTED.items() if any(f"{one}.".startswith(f"{room}.") for one in names)]


@pytest.mark.parametrize("room", FLOOR)
def test_every_room_has_a_test_that_is_fast(room):
    assert covering(room), f"{room} has no test in tests/fast.txt: add one that takes no second"


@pytest.mark.parametrize("listed", LISTED)
def test_what_is_listed_is_there(listed):
    assert files(listed) and all(path.exists() for path in files(listed))
    if name := listed.partition("::")[2]:
        assert f"def {name}(" in files(listed)[0].read_text()


def test_the_list_is_in_order_and_nothing_is_in_it_twice():
    assert sorted(set(LISTED)) == LISTED
    assert not [one for one in LISTED for other in LISTED if one != other and one.startswith((f"{other}/", f"{other}::"))]
