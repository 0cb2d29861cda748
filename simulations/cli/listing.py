"""What `sparcl list` prints, in 80 columns."""

import textwrap
from collections.abc import Iterator

from simulations.plugins.catalogue import CATALOGUE, Entry, entries, faults, names

WIDTH = 80


def everything() -> Iterator[str]:
    """Experiments with a line each, and the names of all other kinds. What packages offer is not imported for it."""
    yield from one_kind("experiments")
    yield ""
    for what in CATALOGUE:
        if what != "experiments":
            yield from _wrapped(what, " ".join(names(what)), len("availability") + 2)
    yield ""
    yield "sparcl list methods, and so on: a line for each, and where it comes from."


def one_kind(what: str) -> Iterator[str]:
    """How one is named, a line for each by who offers it, and what cannot be used."""
    yield f"{what}: {CATALOGUE[what].usage}"
    found = entries(what)
    column = max((len(entry.name) for entry in found), default=0) + 4
    for origin in dict.fromkeys(entry.origin for entry in found if not entry.fault):
        yield f"from {origin}:"
        for entry in found:
            if entry.origin == origin and not entry.fault:
                yield from _wrapped(f"  {entry.name}", entry.line, column)
    yield from _faults([*(entry for entry in found if entry.fault)], faults(what))


def _faults(broken: list[Entry], others: list[str]) -> Iterator[str]:
    if told := [*(entry.fault for entry in broken), *others]:
        yield "cannot be used:"
        for fault in told:
            yield from _wrapped("  -", fault, 4)


def _wrapped(label: str, text: str, column: int) -> list[str]:
    """`label`, and `text` beside it in a column of its own."""
    led = f"{label:<{column}}" if len(label) < column else f"{label} "
    return textwrap.wrap(text, WIDTH, initial_indent=led, subsequent_indent=" " * column, break_on_hyphens=False) or [label]
