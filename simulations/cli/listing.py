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
    yield "sparcl list settings: all keys of an experiment, and what each means."


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


def all_settings() -> Iterator[str]:
    """A line for each setting, by section."""
    from simulations.config.experiment import SECTIONS
    from simulations.config.meanings import settings, title  # imported late, with all methods: other lists need none of them

    titles = {"": "the experiment itself", **{name: f"[{name}] {title(section)}" for name, section in SECTIONS.items()}}
    for section, heading in titles.items():
        yield from ("", heading) if section else (heading,)
        for one in settings():
            if one.key.rpartition(".")[0] == section:
                label = f"  {one.key} = {one.default or 'left out'}"
                yield f"{label}  {textwrap.shorten(one.meaning, max(8, WIDTH - len(label) - 2), placeholder=' ...')}"
    yield ""
    yield "sparcl list settings learner, or learner.lr: all that there is to know of these."


def some_settings(text: str) -> Iterator[str]:
    """All of the settings that `text` means: default, type, meaning, and with what they are read."""
    from simulations.config.meanings import matching

    for one in matching(text):
        default = one.default or "left out"
        yield from _wrapped(f"{one.key} = {default}", f"({one.kind})", len(f"{one.key} = {default}") + 2)
        yield from textwrap.wrap(one.meaning, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
        if one.read_with:
            yield from textwrap.wrap(
                f"read with {one.read_with}", WIDTH, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
            )


def _faults(broken: list[Entry], others: list[str]) -> Iterator[str]:
    if told := [*(entry.fault for entry in broken), *others]:
        yield "cannot be used:"
        for fault in told:
            yield from _wrapped("  -", fault, 4)


def _wrapped(label: str, text: str, column: int) -> list[str]:
    """`label`, and `text` beside it in a column of its own."""
    led = f"{label:<{column}}" if len(label) < column else f"{label} "
    return textwrap.wrap(text, WIDTH, initial_indent=led, subsequent_indent=" " * column, break_on_hyphens=False) or [label]
