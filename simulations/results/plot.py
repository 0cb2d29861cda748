"""The static picture of a run, drawn from its stored results only."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sparcl_core.costs.flops import FLOP_COLUMNS

INK, SPARSE, DENSE, FAINT = "#222222", "#0b6e99", "#b4541a", "#cccccc"
KINDS = {  # all that the bytes of a message are for, see `codec.Sizes`
    "values": "#0b6e99", "positions": "#63a9c4", "rest": "#e0a458", "masks": "#7a5195", "auxiliary": "#2a9d8f", "header": "#8c8c8c",
    "unread": "#c0392b",
}  # fmt: skip
ENDINGS = {
    "ok": "#0b6e99", "clipped": "#2a9d8f", "late": "#e0a458", "cancelled": "#cccccc", "stale": "#b58db6", "failed": "#c0392b",
    "rejected": "#7a1f14", "skipped": "#8c8c8c",
}  # fmt: skip
UNITS = (("days", 24, 48), ("hours", 1, 2), ("minutes", 1 / 60, 1 / 30), ("seconds", 1 / 3600, 0))
NAMES = {"rest": "dense rest", "header": "headers"}


def draw_report(folder: Path) -> Path:
    """Draw `report.png` into a run folder: accuracy; cumulative FLOPs, bytes and joules beside the dense twin's; bytes by kind; and on the
    virtual clock the accuracy on all tasks, and how the rounds of devices ended."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rounds = pq.read_table(folder / "rounds.parquet").to_pydict()
    ledger = pq.read_table(folder / "ledger.parquet").to_pydict()
    numbers = np.array(rounds["round"])
    starts = [r for r, (a, b) in enumerate(zip(rounds["task"], rounds["task"][1:], strict=False), start=1) if b != a]

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK}):
        figure, axes = plt.subplots(4, 2, figsize=(10, 12), layout="constrained")
        panel = axes[0, 0]
        for scenario, style in (("class-il", "-"), ("task-il", ":")):
            values = 100 * np.array(rounds[scenario], dtype=float)
            known = ~np.isnan(values)
            label = scenario.title().replace("Il", "IL") if known.any() else None
            panel.plot(numbers[known], values[known], style, color=SPARSE, label=label)
        panel.set(title="Accuracy on the tasks so far", ylabel="%", ylim=(0, 102), xlabel="round")
        _legend(panel, frameon=False, loc="center right")

        _costs(axes[0, 1], ledger, numbers, own=FLOP_COLUMNS, dense=("dense_flops",), title="Training FLOPs, total so far")
        _costs(axes[1, 0], ledger, numbers, own=("up_bytes", "down_bytes"), dense=("dense_bytes",), title="Bytes up and down, total so far")
        _costs(axes[1, 1], ledger, numbers, own=("joules",), dense=("dense_joules",), title="Joules (simulated), total so far")
        _bytes_by_kind(axes[2, 0], ledger, numbers, phase="upload", title="Bytes up per device and round, by kind")
        _bytes_by_kind(axes[2, 1], ledger, numbers, phase="download", title="Bytes down per device and round, by kind")
        _over_time(axes[3, 0], rounds)
        _endings(axes[3, 1], ledger, numbers)
        for panel in (*axes[:3].flat, axes[3, 1]):
            for task, start in enumerate(starts):
                panel.axvline(start - 0.5, color=FAINT, linewidth=0.8, zorder=0)
                if panel is axes[0, 0]:
                    panel.annotate(f"task {task}", (start, 3), fontsize=7, color="#777777", ha="left")
        summary = json.loads((folder / "summary.json").read_text())
        title = f"{summary['experiment']}, seed {summary['seed']}, sparsity {summary['sparsity']:g}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        path = folder / "report.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
    return path


def _legend(panel, **options) -> None:
    """A legend, if there is anything to be explained."""
    if panel.get_legend_handles_labels()[0]:
        panel.legend(**options)


def _over_time(panel, rounds: dict) -> None:
    """Accuracy on all tasks, also those to come, over virtual time: a run whose rounds are faster climbs earlier."""
    hours = (np.array(rounds["time_s"]) - rounds["time_s"][0]) / 3600
    unit, size = next((unit, size) for unit, size, least in UNITS if hours[-1] >= least)
    for scenario, style in (("class-il", "-"), ("task-il", ":")):
        values = 100 * np.array(rounds[f"{scenario}-all"], dtype=float)
        known = ~np.isnan(values)
        label = scenario.title().replace("Il", "IL") if known.any() else None
        panel.plot(hours[known] / size, values[known], style, color=SPARSE, drawstyle="steps-post", label=label)
    panel.set(title="Accuracy on all tasks, over virtual time", xlabel=unit, ylabel="%", ylim=(0, 102))
    _legend(panel, frameon=False, loc="lower right")


def _endings(panel, ledger: dict, numbers: np.ndarray) -> None:
    """How the rounds of devices ended, per round of the server."""
    outcomes, phases = (np.array(ledger[name], object) for name in ("outcome", "phase"))
    rounds = np.array(ledger["round"], np.int64)
    below = np.zeros(numbers.max() + 1)
    for outcome, color in ENDINGS.items():
        own = (outcomes == outcome) & ((phases == "upload") | (outcome != "ok")) & (rounds <= numbers.max())
        height = np.bincount(rounds[own], minlength=below.size).astype(float)
        if height[1:].any():
            panel.bar(numbers[1:], height[1:], bottom=below[1:], width=1.0, color=color, label=outcome, linewidth=0)
        below += height
    panel.set(title="Devices per round, by how it ended", xlabel="round", ylabel="devices")
    panel.margins(x=0.01)
    panel.set_ylim(0, 1.3 * below[1:].max(initial=1))
    _legend(panel, frameon=False, fontsize=8, ncols=4, loc="upper right")


def _costs(panel, ledger: dict, numbers: np.ndarray, *, own: tuple[str, ...], dense: tuple[str, ...], title: str) -> None:
    """Cumulative cost over rounds, all devices together, on a logarithmic axis."""
    for names, color, label in ((own, SPARSE, "this run"), (dense, DENSE, "dense twin")):
        per_round = np.zeros(numbers.max() + 1)
        for name in names:
            np.add.at(per_round, np.array(ledger["round"], np.int64), ledger[name])
        total = np.cumsum(per_round)
        panel.plot(numbers[1:], total[1:], color=color)
        panel.annotate(f"{label} {total[-1]:.3g}", (numbers[-1], total[-1]), color=color, ha="right", va="bottom", fontsize=8)
    panel.set(title=title, xlabel="round")
    if any(line.get_ydata().any() for line in panel.lines):
        panel.set_yscale("log")
    panel.margins(y=0.15)


def _bytes_by_kind(panel, ledger: dict, numbers: np.ndarray, *, phase: str, title: str) -> None:
    """What the average message of a round is made of; its first bar is cut where it dwarfs the others (whole models going out)."""
    own = np.array([p == phase for p in ledger["phase"]], bool)
    rounds = np.array(ledger["round"], np.int64)[own]
    messages = np.maximum(np.bincount(rounds, minlength=numbers.max() + 1), 1)
    below = np.zeros(numbers.max() + 1)
    for kind, color in KINDS.items():
        height = np.bincount(rounds, np.array(ledger[f"{kind}_bytes"])[own], minlength=below.size) / messages
        if height.any():
            panel.bar(numbers[1:], height[1:], bottom=below[1:], width=1.0, color=color, label=NAMES.get(kind, kind), linewidth=0)
        below += height
    panel.set(title=title, xlabel="round", ylabel="bytes")
    panel.margins(x=0.01)
    usual, largest = np.percentile(below[1:], 95) if below[1:].size else 0.0, below.max()
    cut = largest > 1.6 * usual > 0
    panel.set_ylim(0, 1.35 * (usual if cut else largest) or 1)
    if cut:
        where = (numbers[1 + int(below[1:].argmax())] + 1, 1.3 * usual)
        panel.annotate(f"up to {largest:,.0f}", where, fontsize=7, color="#555555", va="top")
    _legend(panel, frameon=False, fontsize=8, ncols=3, loc="upper right")
