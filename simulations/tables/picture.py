"""The picture of a sweep: accuracy over the values of a setting, a line for each row, with 95 % intervals over the seeds.

A row and the one that it is paired with have one colour; the latter is dashed.
"""

from pathlib import Path

import numpy as np

from simulations.tables.claim_file import Claim
from simulations.tables.markdown import Results, curve_of, shown

COLOURS = ("#0b6e99", "#b4541a", "#7a5195", "#2a9d8f", "#c0392b", "#8a6d1b", "#5b7f2b", "#44546a", "#b58db6", "#222222")
MARKS = "osD^vPX*<>"


def draw_sweep(claim: Claim, results: Results, path: Path) -> None:
    """Write a PNG to `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    references = {row.versus for row in claim.families if row.versus}
    groups = list(dict.fromkeys(row.versus or row.name for row in claim.families))
    values = claim.sweep.values
    is_number = all(isinstance(value, float | int) for value in values)
    places = np.array(values, float) if is_number else np.arange(len(values))
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
        for row in claim.families:
            curves = [curve_of([*results[claim.sweep.name(row.name, value)].values()], claim.scenario) for value in values]
            number = groups.index(row.versus or row.name)
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)], "markersize": 4, "linewidth": 1.2}
            mean, half = np.array([100 * curve.mean() for curve in curves]), [100 * interval(curve) for curve in curves]
            panel.errorbar(
                places,
                mean,
                yerr=half,
                capsize=2,
                elinewidth=0.7,
                linestyle="--" if row.name in references else "-",
                label=row.name,
                **style,
            )
        if is_number and places.min() > 0 and places.max() / places.min() > 8:
            panel.set_xscale("log")
        panel.set_xticks(places, [shown(value) for value in values], minor=False)
        panel.minorticks_off()
        panel.set(xlabel=claim.sweep.title or claim.sweep.key, ylabel="average accuracy, %", ylim=(0, 102))
        panel.grid(axis="y", color="#eeeeee")
        figure.legend(loc="outside right upper", frameon=False)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def interval(values: np.ndarray) -> float:
    """Half-width of the 95 % interval of their mean (Student's t); 0 of a single one."""
    if len(values) < 2:
        return 0.0
    from scipy import stats

    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
