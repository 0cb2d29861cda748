"""Part `plot`: speed-up of each layer over sparsity, and where it crosses 1."""

import math
from itertools import pairwise
from pathlib import Path

from benchmarks.kernels.settings import KEEP, Settings
from benchmarks.kernels.sides import Case, faster_layout, resnet_layers
from benchmarks.kernels.timing import in_turn, speed_up

COLOURS = ("#1b4f8f", "#6fa8dc", "#1e7d4f", "#7fc69b", "#b3541e", "#eda35f", "#7a3b8f")  # a stage's stride 2 in the lighter shade


def measure(settings: Settings) -> list[dict]:
    """One row per layer: speed-ups at `plotted` sparsities, and the sparsity at which they cross 1 (None: nowhere)."""
    rows = []
    for layer in resnet_layers(settings.width, settings.image):
        layout = faster_layout(layer, settings.batch, settings.plot_repeats)
        found = []
        for sparsity in settings.plotted:
            case = Case(layer, settings.batch, sparsity)
            times = in_turn({"dense": case.dense(layout), "ours": case.ours(True)}, settings.plot_repeats)
            found.append(speed_up(times["dense"], times["ours"]))
        row = {"layer": layer.name, "sparsities": settings.plotted, "speed_up": found}
        rows.append(row | {"crossover": crossover(settings.plotted, found)})
    return rows


def crossover(sparsities: tuple[float, ...], speed_ups: list[float]) -> float | None:
    """The sparsity from which on a layer is faster than dense, on a straight line between logarithms of density and speed-up."""
    points = [(math.log(1 - s), math.log(value)) for s, value in zip(sparsities, speed_ups, strict=True)]
    for (x0, y0), (x1, y1) in reversed(list(pairwise(points))):
        if y0 < 0 <= y1:
            return 1 - math.exp(x0 + (x1 - x0) * -y0 / (y1 - y0))
    return None


def show(rows: list[dict], settings: Settings) -> None:
    print(f"\nSpeed-up over dense by sparsity, batch {settings.batch}, DGM at {KEEP:.0%} of the active weights\n")
    print(f"{'layer':<18}" + "".join(f"{sparsity:>6.2f}" for sparsity in settings.plotted) + f"{'1x at':>9}")
    for row in rows:
        print(f"{row['layer']:<18}" + "".join(f"{value:>6.2f}" for value in row["speed_up"]) + f"{where(row):>9}")


def where(row: dict) -> str:
    """The crossover in words."""
    if row["crossover"] is not None:
        return f"{row['crossover']:.2f}"
    first, last = row["sparsities"][0], row["sparsities"][-1]
    if row["speed_up"][-1] < 1:
        return f">{last:.2f}"
    return f"<{first:.2f}" if first else "all"


def draw(rows: list[dict], settings: Settings, machine: str, file: Path) -> None:
    """Write the picture, 1200 x 800."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    figure, axes = plt.subplots(figsize=(12, 8), dpi=100, layout="constrained")
    axes.set_xscale("function", functions=(lambda s: -_logarithm(1 - s), lambda u: 1 - 10 ** (-u)))
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=1.2)
    for row, colour in zip(rows, COLOURS, strict=True):
        told = where(row)
        label = row["layer"].replace("->", " → ").replace("x", "×") + (": never below 1×" if told == "all" else f": 1× at {told}")
        dashes = {"linestyle": "--"} if row["layer"].endswith("s2") else {}
        axes.plot(row["sparsities"], row["speed_up"], color=colour, linewidth=2, marker="o", markersize=4, label=label, **dashes)
    _mark_crossovers(axes, rows)
    values = [value for row in rows for value in row["speed_up"]]
    low, high = min(0.5, *values) / 1.6, max(2.0, *values) * 1.15
    axes.set_ylim(low, high)
    ticks = [tick for tick in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100) if low <= tick <= high]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(settings.plotted))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=12)
    axes.grid(color="#dddddd")
    axes.set_axisbelow(True)
    axes.set_xlabel("share of weights that are zero (spaced by the logarithm of the rest)", fontsize=13)
    axes.set_ylabel("speed-up over PyTorch's dense float32 convolution", fontsize=13)
    axes.set_title(f"Forward and backward pass of ResNet-18's 3×3 layers, batch {settings.batch}, one thread\n{machine}", fontsize=13)
    axes.legend(fontsize=12, loc="upper left", frameon=True, framealpha=1, edgecolor="#dddddd")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
    plt.close(figure)


def _mark_crossovers(axes, rows: list[dict]) -> None:
    """Rings on the line of 1, and their sparsities in a row below, in the same order, so that the lines to them do not cross."""
    crossing = sorted((row["crossover"], colour) for row, colour in zip(rows, COLOURS, strict=True) if row["crossover"] is not None)
    for number, (place, colour) in enumerate(crossing):
        axes.plot([place], [1], marker="o", markersize=10, markerfacecolor="white", markeredgecolor=colour, markeredgewidth=2, zorder=5)
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkB": 6}
        at, text = (0.06 + 0.06 * number, 0.035), {"color": colour, "fontsize": 12, "ha": "center", "zorder": 6}
        axes.annotate(f"{place:.2f}", (place, 1), at, textcoords="axes fraction", arrowprops=line, **text)


def _logarithm(value):
    import numpy as np

    return np.log10(np.maximum(value, 1e-6))
