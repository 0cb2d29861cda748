"""TOML files by name: ours, and those in folders of installed packages."""

import importlib

import pytest

from sparcl_core.plugins import kinds
from sparcl_core.plugins.kinds import OURS
from sparcl_core.plugins.named_files import NamedFiles


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A kind with one file of ours; and a function that installs a package with a folder of files, as pip would leave it."""
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "plain.toml").write_text("")

    def install(package: str, *names: str) -> None:
        folder, info = tmp_path / "site" / f"{package}_boards", tmp_path / "site" / f"{package}-2.0.dist-info"
        for place in (folder, info):
            place.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise OSError('imported')")
        for name in names:
            (folder / f"{name}.toml").write_text("")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.0\n")
        (info / "entry_points.txt").write_text(f"[sparcl.boards]\nall = {package}_boards\n")
        importlib.invalidate_caches()
        kinds.entry_points.cache_clear()

    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    kinds.entry_points.cache_clear()
    yield NamedFiles(noun="board", group="sparcl.boards", folder=ours), install
    kinds.entry_points.cache_clear()


def test_ours_and_those_of_a_package_without_an_import(files):
    boards, install = files
    install("maker", "small", "large")
    assert {name: offer.origin for name, offer in boards.offers().items()} == {"plain": OURS, "large": "maker 2.0", "small": "maker 2.0"}
    assert boards.path("small").name == "small.toml" and boards.path("plain").parent == boards.folder
    assert (boards.origin("large"), boards.origin("plain"), boards.origin("none")) == ("maker 2.0", OURS, "")
    assert boards.path("none") is None and boards.clashes() == boards.broken() == []


def test_a_name_that_is_taken(files):
    boards, install = files
    install("maker", "plain", "shared")
    install("other", "shared")
    assert boards.path("plain").parent == boards.folder and "shared" not in boards.offers()
    assert boards.clashes() == [
        "board 'plain' is offered by sparcl-fleet and by maker 2.0", "board 'shared' is offered by maker 2.0 and by other 2.0",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="board 'shared' is offered by maker 2.0 and by other 2.0: give the path of the one that is meant"):
        boards.path("shared")


def test_a_folder_without_files_is_told(files):
    boards, install = files
    install("maker")
    (told,) = boards.broken()
    assert told.startswith("all = maker_boards of maker 2.0")
