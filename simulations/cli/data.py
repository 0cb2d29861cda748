"""`sparcl data`: what a data set has, and who gets what of it."""

import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.table import Table

from simulations.cli.carrying_out import fetch, load_experiment
from simulations.cli.messages import console, one_message, say
from simulations.cli.options import DebugOption, DownloadOption, SeedOption, SetOption, app
from sparcl_core.foreign import printable

if TYPE_CHECKING:
    from simulations.data.overview import Parts, Split
    from simulations.data.raw import Dataset

MOST_CLASSES, MOST_TASKS, MOST_DEVICES = 30, 6, 16  # rows and columns that are shown; of more, the first and the last


@app.command("data")
def show_data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A data set, e.g. seq-mnist or folder; or an experiment.")] = "",
    set_: SetOption = None,
    seed: SeedOption = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw images of each class, and the split.")] = None,
    download: DownloadOption = False,
    clear_cache: Annotated[bool, typer.Option("--clear-cache", help="Remove all decoded images from the cache.")] = False,
    debug: DebugOption = False,
) -> None:
    """What a data set has: classes, counts, sizes; and its split over devices and tasks."""
    with one_message(debug):
        from simulations import preflight
        from simulations.config.errors import ConfigError

        if clear_cache:
            from simulations.data import cache

            say(f"{cache.place() or 'no cache'}: {cache.clear() / 1e6:,.1f} MB removed")
        if not name:
            if clear_cache:
                return
            raise ConfigError("name a data set (seq-mnist, folder, npz, parquet, ...) or an experiment; data.path says where it lies")
        resolved = load_experiment(*_experiment_of(name, set_), seed=seed, dense=False, baseline=False)
        preflight.expect(preflight.picture(out) if out else ())
        if download:
            fetch(resolved)
        preflight.expect(preflight.experiment_files(resolved))
        from simulations.data.overview import count_parts, count_split
        from simulations.data.partition import make_streams
        from simulations.data.sources import load_data

        data = load_data(resolved.data, resolved.seed)
        parts = count_parts(data)
        for line in textwrap.wrap(_headline(resolved.data.name, data, parts), 80):
            say(line)
        if sha256 := data.raw.sha256:
            say(f"sha256 {sha256}")
        console.print(classes_table(parts))
        console.print()
        streams = make_streams(resolved.stream, data, resolved.seed, resolved.federation.rounds_per_task)
        split = count_split(streams, data.num_classes)
        devices, tasks = split.by_task.shape
        say(f"training samples of {devices:,} devices x {tasks:,} tasks (t0 to t{tasks - 1})")
        console.print(split_table(split))
        if out:
            from simulations.results.data_picture import draw_data

            draw_data(out, data, streams, parts=parts, split=split)
            say(f"picture: {out}")


def _experiment_of(name: str, overrides: list[str] | None) -> tuple[str, list[str]]:
    """An experiment of that name, else the default one with that data set."""
    from simulations.config.errors import ConfigError
    from simulations.config.loading import available

    if name in available() or name.endswith(".toml"):
        return name, overrides or []
    if kind := _kind_of_path(name):
        way = f"sparcl data {kind} --set {shlex.quote(f'data.path={name}')}"
        raise ConfigError(f"{printable(repr(name))} is no data set by name, but lies here: {way} shows it")
    return "split-digits", [f"data.name={name}", *(overrides or [])]


def _kind_of_path(name: str) -> str:
    """What `data.name` would be for something of this name that lies here; empty if nothing does, or it is a data set's name."""
    from simulations.config.data import DATA

    path = Path(name).expanduser()
    if name in DATA.offers() or ":" in name or not path.exists():
        return ""
    if path.is_file():
        return "npz" if path.suffix == ".npz" else ""
    suffixes = {one.suffix for one in (*path.glob("*"), *path.glob("*/*"))}
    return next((kind for kind in ("parquet", "npz") if f".{kind}" in suffixes), "folder")


def _headline(name: str, data: "Dataset", parts: "Parts") -> str:
    channels, height, width = data.inputs.shape
    kind = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    raw = data.raw
    size = (raw.train_x.nbytes + raw.test_x.nbytes) / 1e6
    line = f"{name}: {len(parts.names)} classes, images {height}x{width} {kind}, {len(raw.train_y):,} to train on, {len(raw.test_y):,} to "
    return f"{line}test on, {size:,.1f} MB"


def classes_table(parts: "Parts") -> Table:
    """Samples of each class; of many classes the first and the last, and what lies between."""
    table = Table(box=None, pad_edge=False)
    for title, justify in (("class", "right"), ("name", "left"), ("train", "right"), ("test", "right")):
        table.add_column(title, justify=justify, overflow="ellipsis", no_wrap=True, max_width=40 if title == "name" else None)
    for row in _ends(len(parts.names), MOST_CLASSES):
        if row is None:
            table.add_row("...", f"{len(parts.names) - MOST_CLASSES} more", _range(parts.train), _range(parts.test))
        else:
            table.add_row(str(row), parts.names[row], f"{parts.train[row]:,}", f"{parts.test[row]:,}")
    return table


def split_table(split: "Split") -> Table:
    """Training samples of each device and task; of many the first and the last."""
    devices, tasks = split.by_task.shape
    columns = _ends(tasks, MOST_TASKS)
    table = Table(box=None, pad_edge=False)
    for column in ("device", *("..." if task is None else f"t{task}" for task in columns), "all", "classes"):
        table.add_column(column, justify="right", no_wrap=True)
    for device in _ends(devices, MOST_DEVICES):
        if device is None:
            table.add_row("...", *("" for _ in columns), _range(split.by_task.sum(1)), "")
            continue
        cells = ["" if task is None else _count(split.by_task[device, task]) for task in columns]
        known = str(np.count_nonzero(split.by_class[device])) if device < len(split.by_class) else ""
        table.add_row(str(device), *cells, f"{split.by_task[device].sum():,}", known)
    return table


def _ends(count: int, most: int) -> list[int | None]:
    """All places, or the first and the last of them with None between."""
    if count <= most:
        return list(range(count))
    last = most // 4
    return [*range(most - last), None, *range(count - last, count)]


def _range(values: np.ndarray) -> str:
    least, most = int(values.min()), int(values.max())
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def _count(value: int) -> str:
    return f"{value:,}" if value else "-"
