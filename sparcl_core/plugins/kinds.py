"""What a setting can name: something of ours, something of an installed package, or `package.module:name` for whatever Python can import.

A package offers things under names of its own by entry points, in its pyproject.toml:

    [project.entry-points."sparcl.methods"]
    smoothed = "my_package.methods:Smoothed"

Names are looked up without importing anything, so that a list of them and an error cost no time; what a name stands for is imported when it
is asked for. Names of ours come first: a package cannot put something else in their place. On a cluster the package must be installed on
every node.
"""

import difflib
import functools
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from sparcl_core.foreign import printable

OURS = "sparcl-fleet"
_PATH = re.compile(r"\w+(\.\w+)*:\w+")


@dataclass(frozen=True)
class Offer:
    """A name, who offers it (`sparcl-fleet`, or a package and its version), and where it lies, `module:name`."""

    name: str
    origin: str
    path: str


class Kind:
    """One kind of thing that a setting names."""

    def __init__(self, *, setting: str, noun: str, group: str, ours: Mapping[str, str]):
        """
        Args:
            setting: `learner.method`.
            noun: what one is called in messages, `method`.
            group: of entry points, `sparcl.methods`.
            ours: name -> `module:name`.
        """
        self.setting, self.noun, self.group = setting, noun, group
        self.ours = {name: Offer(name, OURS, path) for name, path in ours.items()}

    def offers(self) -> dict[str, Offer]:
        """All that have a name, ours first, those of packages by name; what two packages offer, and what is ours, is left out here."""
        theirs = entry_points(self.group)
        single = {name: offers[0] for name, offers in theirs.items() if len(offers) == 1 and name not in self.ours}
        return self.ours | dict(sorted(single.items()))

    def clashes(self) -> list[str]:
        """What packages offer under a name that is taken: by ours, or by each other."""
        told = []
        for name, offers in sorted(entry_points(self.group).items()):
            if name in self.ours or len(offers) > 1:
                takers = [offer.origin for offer in (*([self.ours[name]] if name in self.ours else []), *offers)]
                told.append(f"{self.noun} {name!r} is offered by {' and by '.join(takers)}")
        return told

    def offer(self, name: str) -> Offer:
        """Where the thing of this name lies; nothing is imported.

        Raises:
            ValueError: if there is none, with the value, the rule, and what was probably meant.
        """
        if name in self.ours:  # before entry points are looked for, which takes longer than all other checks
            return self.ours[name]
        shown = f"{self.setting} is {printable(repr(name), 120)}"
        if ":" in name:
            if name.partition(":")[0].endswith(".py"):
                module, _, wanted = name.partition(":")
                raise ValueError(
                    f"{shown}: take the module in the place of its file, {printable(_dotted(module), 120)}:{printable(wanted, 120)}"
                )
            if not _PATH.fullmatch(name):
                raise ValueError(f"{shown}: {self._one} of your own is written package.module:name")
            return Offer(name, name.partition(":")[0], name)
        offers = self.offers()
        if name in offers:
            return offers[name]
        if clash := next((told for told in self.clashes() if told.startswith(f"{self.noun} {name!r}")), ""):
            raise ValueError(f"{shown}, but {clash}: write the one that is meant as package.module:name")
        *most, last = map(repr, offers)
        near = difflib.get_close_matches(name[:100], offers, n=1)
        other = f"; did you mean {near[0]!r}?" if near else f", or package.module:name for {self._one} of your own"
        raise ValueError(f"{shown}: input should be {', '.join(most)} or {last}{other}")

    @property
    def _one(self) -> str:
        return f"{'an' if self.noun[0] in 'aeiou' else 'a'} {self.noun}"

    def find(self, name: str) -> Any:
        """What `name` stands for, imported.

        Raises:
            ValueError: as `offer`, and if it cannot be imported.
        """
        offer = self.offer(name)
        shown = f"{self.setting} is {printable(repr(name), 120)}"
        try:
            return self._imported(offer, shown)
        except ValueError as error:
            if offer.name != offer.path and offer.origin != OURS:
                raise ValueError(f"{error} (it is offered by {offer.origin})") from error
            raise

    def _imported(self, offer: Offer, shown: str) -> Any:
        path, _, wanted = offer.path.partition(":")
        try:
            module = importlib.import_module(path)
        except (Exception, SystemExit) as error:  # whatever the module does while it is read
            why = f"{printable(path)} cannot be imported ({type(error).__name__}: {printable(error)})"
            raise ValueError(f"{shown}, but {why}; {_way_out(error, path)}") from error
        if not hasattr(module, wanted):
            near = difflib.get_close_matches(wanted, vars(module), n=1)
            raise ValueError(f"{shown}, but {path} has no {printable(wanted)}{f'; did you mean {near[0]}?' if near else ''}")
        return getattr(module, wanted)


def expect_module(kind: Kind, name: str) -> None:
    """Raise ValueError if nothing lies where `name` says, or it is no Python. Only the packages around it are imported.

    What is checked so can take seconds to import, as a model that needs PyTorch.
    """
    offer = kind.offer(name)
    path = offer.path.partition(":")[0]
    if path in sys.modules:
        return
    try:
        found = importlib.util.find_spec(path)
        if found is None:
            raise ModuleNotFoundError(f"No module named {path!r}", name=path)
        if found.origin and found.origin.endswith(".py"):
            compile(Path(found.origin).read_bytes(), found.origin, "exec", dont_inherit=True)
    except (Exception, SystemExit) as error:  # whatever the packages around it do while they are read
        why = f"{printable(path)} cannot be imported ({type(error).__name__}: {printable(error)}); {_way_out(error, path)}"
        raise ValueError(f"{kind.setting} is {printable(repr(name), 120)}, but {why}") from error


def _dotted(file: str) -> str:
    return file.removesuffix(".py").removeprefix("./").strip("/").replace("/", ".")


def _way_out(error: BaseException, path: str) -> str:
    """What to do about a module at `path` that cannot be imported."""
    if isinstance(error, SyntaxError):
        return f"see {printable(error.filename)}, line {error.lineno}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        if path == error.name or path.startswith(f"{error.name}."):
            return "it must lie where Python looks for modules, on every node (PYTHONPATH)"
        return f"it needs {printable(error.name)}, which is not installed here"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"see {printable(last.filename)}, line {last.lineno}"


@functools.cache
def entry_points(group: str) -> dict[str, list[Offer]]:
    """What installed packages offer, by name. A name that is offered by several comes with all of them, ordered by package."""
    found: dict[str, dict[str, Offer]] = {}
    for point in metadata.entry_points(group=group):
        origin = f"{point.dist.name} {point.dist.version}" if point.dist else "a package without a name"
        found.setdefault(point.name, {})[origin] = Offer(point.name, origin, point.value)
    return {name: [offers[origin] for origin in sorted(offers)] for name, offers in found.items()}
