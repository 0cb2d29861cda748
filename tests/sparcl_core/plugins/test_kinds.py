"""Names: ours, those of packages by entry points, and import paths."""

import importlib
import sys

import pytest

from sparcl_core.plugins import kinds
from sparcl_core.plugins.kinds import OURS, Kind, Offer

KIND = {"setting": "part.name", "noun": "thing", "group": "sparcl.things"}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install packages: name -> its entry points in the group; each is found on the path, as pip would leave it."""

    def install(**packages: dict[str, str]) -> None:
        for package, points in packages.items():
            folder = tmp_path / f"{package}-1.5.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
            lines = [f"{name} = {path}" for name, path in points.items()]
            (folder / "entry_points.txt").write_text("\n".join(["[sparcl.things]", *lines]) + "\n")
        importlib.invalidate_caches()
        kinds.entry_points.cache_clear()

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "their_things.py").write_text("square = 'a square'\nring = 'a ring'\n")
    (tmp_path / "their_ruins.py").write_text("raise OSError('no disk')\n")
    yield install
    kinds.entry_points.cache_clear()
    for name in ("their_things", "their_ruins"):
        sys.modules.pop(name, None)


def kind(**ours: str) -> Kind:
    return Kind(**KIND, ours=ours or {"line": "math:pi"})


def test_a_name_of_ours_an_import_path_and_a_name_of_a_package(installed):
    installed(shapes={"square": "their_things:square"})
    assert kind().find("line") == pytest.approx(3.14159, abs=1e-5)
    assert kind().find("their_things:ring") == "a ring"
    assert kind().find("square") == "a square"
    assert list(kind().offers().values()) == [
        Offer("line", OURS, "math:pi"), Offer("square", "shapes 1.5", "their_things:square"),
    ]  # fmt: skip


def test_names_are_looked_up_without_importing_what_they_stand_for(installed):
    installed(shapes={"square": "their_ruins:square"})
    assert kind(line="no.such.module:thing").offers().keys() == {"line", "square"}
    assert kind(line="no.such.module:thing").offer("line").path == "no.such.module:thing"
    assert kind().offer("square").path == "their_ruins:square" and "their_ruins" not in sys.modules


def test_entry_points_are_looked_for_only_when_the_name_is_none_of_ours(monkeypatch):
    monkeypatch.setattr(kinds, "entry_points", lambda group: pytest.fail("looked for"))
    assert kind().find("line")


def test_a_package_cannot_take_a_name_of_ours(installed):
    installed(shapes={"line": "their_things:square"})
    assert kind().find("line") == pytest.approx(3.14159, abs=1e-5)
    assert kind().clashes() == ["thing 'line' is offered by sparcl-fleet and by shapes 1.5"]


def test_two_packages_that_offer_one_name(installed):
    installed(shapes={"ring": "their_things:ring"}, forms={"ring": "their_things:square"})
    assert "ring" not in kind().offers()
    assert kind().clashes() == ["thing 'ring' is offered by forms 1.5 and by shapes 1.5"]
    with pytest.raises(ValueError, match="part.name is 'ring', but thing 'ring' is offered by forms 1.5 and by shapes 1.5: write"):
        kind().find("ring")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lime", "part.name is 'lime': input should be 'line' or 'square'; did you mean 'line'?"),
        ("xyz", "part.name is 'xyz': input should be 'line' or 'square', or package.module:name for a thing of your own"),
        ("their_things:", "part.name is 'their_things:': a thing of your own is written package.module:name"),
        ("a b:c", "part.name is 'a b:c': a thing of your own is written package.module:name"),
        ("their_things:squire", "part.name is 'their_things:squire', but their_things has no squire; did you mean square?"),
        (
            "their_ruins:x",
            "part.name is 'their_ruins:x', but their_ruins cannot be imported (OSError: no disk); see ",
        ),
        ("no.such:x", "part.name is 'no.such:x', but no.such cannot be imported (ModuleNotFoundError: No module named 'no')"),
    ],
)
def test_what_is_wrong_with_a_name(installed, name, message):
    installed(shapes={"square": "their_things:square"})
    with pytest.raises(ValueError) as error:
        kind().find(name)
    assert str(error.value).startswith(message)


def test_an_entry_point_that_fails_says_whose_it_is(installed):
    installed(shapes={"hole": "their_ruins:hole"})
    with pytest.raises(ValueError, match=r"part.name is 'hole', but their_ruins cannot be imported .*offered by shapes 1.5"):
        kind().find("hole")


def test_a_name_of_control_characters_is_printed_harmlessly(installed):
    installed()
    with pytest.raises(ValueError) as error:
        kind().find("\x1b[31mred\n")
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)
