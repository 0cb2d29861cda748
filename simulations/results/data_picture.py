"""The picture of a data set: images of each class, and who gets what of it."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.streams.stream import Streams
from simulations.config.errors import ConfigError
from simulations.data.overview import Parts, Split
from simulations.data.raw import Dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, COLOURS = "#222222", "#ffffff", "Blues"
ROWS, COLUMNS = 20, 10  # images that are shown
CELLS = 200  # of a heat map with numbers in them


def draw_data(file: Path, data: Dataset, streams: Streams, *, parts: Parts, split: Split) -> None:
    """Write a PNG: on the left images of each class, or of each task where tasks change the images; on the right devices by class, or by
    task. Raises ConfigError if it cannot be written."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = min(ROWS, len(streams.classes) if streams.domains else data.num_classes)
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK}
    with plt.rc_context(style):
        height = max(3.0, 0.42 * rows + 1.0, 0.16 * len(split.by_class) + 1.6)
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, height), width_ratios=(0.45, 0.55), layout="constrained")
        _samples(left, data, streams, parts=parts, rows=rows)
        _split(right, split, parts, is_by_task=streams.domains is not None)
        try:
            figure.savefig(file, dpi=110)
        except OSError as error:
            raise ConfigError(f"--out is {file}: it cannot be written ({error.strerror or error})") from error
        finally:
            plt.close(figure)


def _samples(panel: "Axes", data: Dataset, streams: Streams, *, parts: Parts, rows: int) -> None:
    """One row per class, its first training images; or per task, the same images as each task shows them."""
    raw, chosen = data.raw, _spread(len(streams.classes) if streams.domains else data.num_classes, rows)
    lines = []
    for row in chosen:
        if streams.domains:
            lines.append(streams.domains.apply(raw.train_x[_first_of_each(raw.train_y, COLUMNS)], row))
        else:
            lines.append(raw.train_x[np.flatnonzero(raw.train_y == row)[:COLUMNS]])
    panel.imshow(_sheet(lines, raw.train_x.shape[1:]), interpolation="nearest")
    panel.set_anchor("N")
    pitch = raw.train_x.shape[2] + _gap(raw.train_x.shape[2])
    named = [f"task {row}" for row in chosen] if streams.domains else [_short(parts.names[row]) for row in chosen]
    panel.set_yticks(pitch * np.arange(rows) + raw.train_x.shape[2] / 2, named)
    panel.set_xticks([])
    panel.tick_params(length=0)
    for spine in panel.spines.values():
        spine.set_visible(False)
    left_out = (len(streams.classes) if streams.domains else data.num_classes) - rows
    more = f" ({left_out} more are not shown)" if left_out else ""
    panel.set_title(("Images as each task shows them" if streams.domains else "Training images of each class") + more, loc="left")


def _sheet(lines: list[np.ndarray], shape: tuple[int, int, int]) -> np.ndarray:
    """[H, W, 3] uint8: images side by side, white between them."""
    channels, height, width = shape
    gap = _gap(height)
    sheet = np.full((len(lines) * (height + gap) - gap, COLUMNS * (width + gap) - gap, 3), 255, np.uint8)
    brightest = max((int(line.max()) for line in lines if line.size), default=255)
    for row, line in enumerate(lines):
        for column, image in enumerate(line):
            top, start = row * (height + gap), column * (width + gap)
            shown = image[:3] if channels >= 3 else np.repeat(image[:1], 3, axis=0)
            if brightest < 32:  # values of a few bits, as the digits' 0 to 16, would all be black
                shown = shown.astype(np.uint16) * 255 // max(brightest, 1)
            sheet[top : top + height, start : start + width] = shown.transpose(1, 2, 0)
    return sheet


def _split(panel: "Axes", split: Split, parts: Parts, *, is_by_task: bool) -> None:
    """Samples as a map of devices by tasks, or by classes with lines between tasks."""
    from matplotlib.colors import PowerNorm
    from matplotlib.ticker import MaxNLocator

    order = [label for classes in split.classes for label in classes]
    values = split.by_task[: len(split.by_class)] if is_by_task else split.by_class[:, order]
    image = panel.imshow(values, cmap=COLOURS, aspect="auto", interpolation="nearest", norm=PowerNorm(0.5, vmin=0))
    devices, columns = values.shape
    panel.set(ylabel="device")
    panel.set_yticks(_steps(devices, 16))
    if is_by_task:
        panel.set_xticks(_steps(columns, 20))
        panel.set_xlabel("task")
    else:
        _label_tasks(panel, split, parts)
    if values.size <= CELLS:
        bright = values.max() * 0.35
        for (row, column), value in np.ndenumerate(values):
            if value:
                panel.text(column, row, f"{value:,}", ha="center", va="center", fontsize=7, color="white" if value > bright else INK)
    panel.figure.colorbar(image, ax=panel, label="training samples", ticks=MaxNLocator(8, integer=True), fraction=0.04, pad=0.02)
    first = f", the first {devices} of {len(split.by_task):,}" if devices < len(split.by_task) else ""
    panel.set_title(f"Devices by {'task' if is_by_task else 'class, task by task'}{first}", loc="left")


def _label_tasks(panel: "Axes", split: Split, parts: Parts) -> None:
    """Names of classes below, if there is room, tasks above, and lines between them."""
    order = [label for classes in split.classes for label in classes]
    ends = np.cumsum([len(classes) for classes in split.classes])
    for end in ends[:-1]:
        panel.axvline(end - 0.5, color=INK, linewidth=0.8)
    if len(order) <= 30:
        names = [_short(parts.names[label]) for label in order]
        turned = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
        panel.set_xticks(range(len(order)), names, **turned)
    else:
        panel.set_xticks([])
        panel.set_xlabel(f"{len(order)} classes")
    above = panel.secondary_xaxis("top")
    shown = _steps(len(ends), 20)
    middles = ends - np.array([len(classes) for classes in split.classes]) / 2 - 0.5
    above.set_xticks(middles[shown], [f"{'task ' if len(ends) <= 10 else ''}{task}" for task in shown])
    above.tick_params(length=0)
    above.spines["top"].set_visible(False)


def _gap(height: int) -> int:
    """Pixels between images."""
    return max(1, height // 16)


def _first_of_each(y: np.ndarray, most: int) -> np.ndarray:
    """The first sample of each of the first classes."""
    return np.sort(np.unique(y, return_index=True)[1])[:most]


def _spread(count: int, most: int) -> list[int]:
    """At most so many of 0 to count - 1, evenly over all."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def _steps(count: int, most: int) -> list[int]:
    """At most so many of 0 to count - 1, equally far apart."""
    return list(range(0, count, -(-count // most)))


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:14]}.."
