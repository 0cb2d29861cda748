"""The static picture of a run, drawn from its stored results only."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

INK, SPARSE, DENSE, FAINT = "#222222", "#0b6e99", "#b4541a", "#cccccc"


def draw_report(folder: Path) -> Path:
    """Draw `report.png` into a run folder: accuracy, and cumulative FLOPs, bytes and joules beside the dense twin's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rounds = pq.read_table(folder / "rounds.parquet").to_pydict()
    ledger = pq.read_table(folder / "ledger.parquet").to_pydict()
    numbers = np.array(rounds["round"])
    starts = [r for r, (a, b) in enumerate(zip(rounds["task"], rounds["task"][1:], strict=False), start=1) if b != a]

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK}):
        figure, axes = plt.subplots(2, 2, figsize=(10, 6.2), layout="constrained")
        panel = axes[0, 0]
        for scenario, style in (("class-il", "-"), ("task-il", ":")):
            values = 100 * np.array(rounds[scenario], dtype=float)
            known = ~np.isnan(values)
            panel.plot(numbers[known], values[known], style, color=SPARSE, label=scenario.title().replace("Il", "IL"))
        panel.set(title="Accuracy on the tasks so far", ylabel="%", ylim=(0, 102), xlabel="round")
        panel.legend(frameon=False, loc="center right")

        _costs(axes[0, 1], ledger, numbers, ("train_flops", "importance_flops", "mask_flops"), ("dense_flops",), "Training FLOPs")
        _costs(axes[1, 0], ledger, numbers, ("up_bytes", "down_bytes"), ("dense_bytes",), "Bytes up and down")
        _costs(axes[1, 1], ledger, numbers, ("joules",), ("dense_joules",), "Joules (simulated)")
        for panel in axes.flat:
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


def _costs(panel, ledger: dict, numbers: np.ndarray, own: tuple[str, ...], dense: tuple[str, ...], title: str) -> None:
    """Cumulative cost over rounds, all devices together, on a logarithmic axis."""
    for names, color, label in ((own, SPARSE, "this run"), (dense, DENSE, "dense twin")):
        per_round = np.zeros(numbers.max() + 1)
        for name in names:
            np.add.at(per_round, ledger["round"], ledger[name])
        total = np.cumsum(per_round)
        panel.plot(numbers[1:], total[1:], color=color)
        panel.annotate(f"{label} {total[-1]:.3g}", (numbers[-1], total[-1]), color=color, ha="right", va="bottom", fontsize=8)
    panel.set(title=title, xlabel="round", yscale="log")
    panel.margins(y=0.15)
