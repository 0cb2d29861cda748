"""All that a setting can name, of ours and of installed packages: a line for each, and what of it cannot be used.

PyTorch is not imported for ours: their lines are read from the source files.
"""

import ast
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from server.aggregation.config import RULES
from server.fleet.availability import KINDS
from server.selection.policies import POLICIES
from simulations.config.claims import CLAIMS
from simulations.config.data import DATA, STREAMS
from simulations.config.loading import EXPERIMENTS
from simulations.config.toml_file import read_toml
from simulations.fleet.profiles import PROFILES
from sparcl_core.config import MODELS
from sparcl_core.foreign import printable
from sparcl_core.methods.registry import CORRECTIONS, METHODS
from sparcl_core.plugins.kinds import OURS, Kind, Offer, entry_points
from sparcl_core.plugins.named_files import NamedFiles
from sparcl_core.sparsity.settings import SCHEMES


@dataclass(frozen=True)
class Shelf:
    """A kind of thing, how one is named in a run, and lines for those of ours of whom no docstring of their own speaks to users."""

    kind: Kind | NamedFiles
    usage: str
    lines: Callable[[], Mapping[str, str]] = dict


def _code(kind: Kind) -> Shelf:
    return Shelf(kind, f"--set {kind.setting}=NAME, or package.module:name")


def _of_data() -> dict[str, str]:
    from simulations.data.published import PUBLISHED  # imported late: whoever looks for a method needs no layouts of data

    lines = {
        "digits": "scikit-learn's 8x8 digits: 1,797 images of ten classes, built in",
        "parquet": "parquet files of your own or from a hub, with encoded images: data.path names their folder",
        "folder": "images of your own, a folder for each class: data.path names the folder of these",
        "npz": "arrays of your own in an .npz file: data.path names it",
    }
    for name, one in PUBLISHED.items():
        channels, height, width = one.shape
        how = {"seq": "", "perm": ", pixels permuted with each task", "rot": ", turned further with each task"}
        stream = STREAMS[name]["tasks"]
        lines[name] = (
            f"{one.title}: {one.classes} classes, {height}x{width}x{channels}, {stream} tasks{how.get(name.partition('-')[0], '')}"
        )
    return lines


CATALOGUE = {
    "experiments": Shelf(EXPERIMENTS, "sparcl run NAME, or a TOML file"),
    "methods": _code(METHODS),
    "corrections": _code(CORRECTIONS),
    "schemes": _code(SCHEMES),
    "data": replace(_code(DATA), lines=_of_data),
    "models": _code(MODELS),
    "rules": _code(RULES),
    "policies": _code(POLICIES),
    "availability": _code(KINDS),
    "profiles": Shelf(PROFILES, "--set profile=NAME, or a TOML file; several in fleet.mix"),
    "claims": Shelf(CLAIMS, "sparcl reproduce NAME, or a TOML file"),
}


@dataclass(frozen=True)
class Entry:
    """A name, who offers it, what it is in one line; where it cannot be used, `fault` says why."""

    name: str
    origin: str
    line: str = ""
    fault: str = ""


def entries(what: str) -> list[Entry]:
    """All of a kind, ours first. What other packages offer as code is imported, as only that tells whether it can be used."""
    shelf = CATALOGUE[what]
    if isinstance(shelf.kind, NamedFiles):
        return list(_of_files(shelf.kind))
    return [_entry(shelf, offer) for offer in shelf.kind.offers().values()]


def names(what: str) -> list[str]:
    """Of all that can be used, as far as that is known without an import."""
    return list(CATALOGUE[what].kind.offers())


def faults(what: str) -> list[str]:
    """Names that are taken twice, and entry points that lead nowhere."""
    kind = CATALOGUE[what].kind
    return [*kind.clashes(), *(kind.broken() if isinstance(kind, NamedFiles) else [])]


def packages() -> tuple[dict[str, list[str]], list[str]]:
    """What each installed package offers, as `methods smoothed`, and all that of it cannot be used."""
    offered: dict[str, list[str]] = {}
    wrong = []
    for what, shelf in CATALOGUE.items():
        if not entry_points(shelf.kind.group):
            continue
        for entry in entries(what):
            if entry.fault:
                wrong.append(entry.fault)
            elif entry.origin != OURS:
                offered.setdefault(entry.origin, []).append(f"{what} {entry.name}")
        wrong += faults(what)
    return offered, wrong


def _of_files(kind: NamedFiles) -> Iterator[Entry]:
    for offer in kind.offers().values():
        try:
            tree = read_toml(Path(offer.path))
        except (ValueError, OSError) as error:
            yield Entry(offer.name, offer.origin, fault=f"{kind.noun} {offer.name!r} of {offer.origin}: {printable(error)}")
            continue
        yield Entry(offer.name, offer.origin, printable(tree.get("description") or tree.get("name") or _comment(Path(offer.path))))


def _comment(path: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return _first_sentence(" ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines)))


def _entry(shelf: Shelf, offer: Offer) -> Entry:
    if offer.origin == OURS:
        return Entry(offer.name, offer.origin, shelf.lines().get(offer.name) or _from_source(offer.path))
    try:
        found = shelf.kind.find(offer.name)
    except ValueError as error:
        return Entry(offer.name, offer.origin, fault=str(error))
    return Entry(offer.name, offer.origin, _first_sentence(inspect.getdoc(found) or inspect.getdoc(inspect.getmodule(found)) or ""))


def _from_source(path: str) -> str:
    """The first sentence of a class's or function's docstring, or else of its module's; nothing is imported but the packages around it."""
    module, _, name = path.partition(":")
    tree = _tree(module)
    definition = next((one for one in tree.body if isinstance(one, ast.ClassDef | ast.FunctionDef) and one.name == name), tree)
    return _first_sentence(ast.get_docstring(definition) or ast.get_docstring(tree) or "")


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return printable(re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0].rstrip("."))
