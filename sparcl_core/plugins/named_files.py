"""TOML files that a name stands for: ours, and those in a folder of an installed package.

A package offers a whole folder by an entry point, whose value is the folder as a dotted path; its left side is free:

    [project.entry-points."sparcl.experiments"]
    ours = "my_package.experiments"

Each file's stem is a name. Nothing of the package is imported. Names of ours come first. The files must be part of the package
(`[tool.setuptools.package-data]`).
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from sparcl_core.foreign import printable
from sparcl_core.plugins.kinds import OURS, Offer, entry_points


class NamedFiles:
    """One kind of file that has a name."""

    def __init__(self, *, noun: str, group: str, folder: Path):
        """
        Args:
            noun: what one is called in messages, `profile`.
            group: of entry points, `sparcl.profiles`.
            folder: where ours are.
        """
        self.noun, self.group, self.folder = noun, group, folder

    def ours(self) -> dict[str, Offer]:
        """Those that come with the project, by name."""
        return {path.stem: Offer(path.stem, OURS, str(path)) for path in sorted(self.folder.glob("*.toml"))}

    def offers(self) -> dict[str, Offer]:
        """All, ours first; what two packages offer, and what is ours, is left out."""
        ours, theirs = self.ours(), self._theirs()
        return ours | {name: offers[0] for name, offers in sorted(theirs.items()) if len(offers) == 1 and name not in ours}

    def clashes(self) -> list[str]:
        """What packages offer under a name that is taken: by ours, or by each other."""
        ours, told = self.ours(), []
        for name, offers in sorted(self._theirs().items()):
            if name in ours or len(offers) > 1:
                takers = [offer.origin for offer in (*([ours[name]] if name in ours else []), *offers)]
                told.append(f"{self.noun} {name!r} is offered by {' and by '.join(takers)}")
        return told

    def broken(self) -> list[str]:
        """Entry points that lead to no folder, or to one without files, with the reason."""
        return [told for point in self._points() for told in _problems(point)]

    def path(self, name: str) -> Path | None:
        """The file of this name, None if there is none.

        Raises:
            ValueError: if two packages offer it.
        """
        own = self.folder / f"{name}.toml"
        if "/" not in name and own.is_file():  # before entry points are looked for
            return own
        if found := self.offers().get(name):
            return Path(found.path)
        if clash := next((told for told in self.clashes() if told.startswith(f"{self.noun} {name!r} ")), ""):
            raise ValueError(f"{clash}: give the path of the one that is meant")
        return None

    def origin(self, name: str) -> str:
        """Who offers the file of this name; empty where it is a path, or nobody does."""
        offers = self.ours() if (self.folder / f"{name}.toml").is_file() else self.offers()
        return offers[name].origin if name in offers else ""

    def _points(self) -> Iterator[Offer]:
        for offers in entry_points(self.group).values():
            yield from offers

    def _theirs(self) -> dict[str, list[Offer]]:
        found: dict[str, list[Offer]] = {}
        for point in self._points():
            for path in sorted(path for folder in _folders(point.path) for path in folder.glob("*.toml")):
                found.setdefault(path.stem, []).append(Offer(path.stem, point.origin, str(path)))
        return found


def _problems(point: Offer) -> Iterator[str]:
    shown = f"{printable(point.name, 120)} = {printable(point.path, 120)} of {point.origin}"
    folders = _folders(point.path)
    if not folders:
        yield f"{shown}: there is no such package or folder"
    elif not any(path for folder in folders for path in folder.glob("*.toml")):
        yield f"{shown}: there are no TOML files in it; are they part of the installed package?"


def _folders(dotted: str) -> list[Path]:
    """The folders of a package, or within one; none if there is no such package. Imports nothing."""
    first, *others = dotted.split(".")
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):  # a name that no module can have
        return []
    locations = spec.submodule_search_locations or () if spec else ()
    return [folder for one in locations if (folder := Path(one, *others)).is_dir()]
