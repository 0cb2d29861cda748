"""Tables of a claim's runs, as Markdown.

`learning`: accuracy over seeds, paired differences, and what was saved beside what can be saved at all. `costs`: accuracy, and what it
cost in absolute figures. `fleet`: what it took on the virtual clock. `sweep`: accuracy over the values of a setting, a line for each row.
"""

import numpy as np

from simulations.tables.claim_file import Claim, ClaimRow, Scenario

Results = dict[str, dict[int, dict]]  # row -> seed -> summary
NAMES: dict[Scenario, str] = {"class-il": "Class-IL", "task-il": "Task-IL"}


def paired(values: list[float], reference: list[float]) -> tuple[float, float]:
    """Mean difference and half-width of its 95 % interval (Student's t over the pairs)."""
    differences = np.asarray(values) - np.asarray(reference)
    if len(differences) < 2:
        return float(differences.mean()), float("nan")
    from scipy import stats  # imported late: it takes half a second, and a misspelt claim needs none of it

    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(half)


def markdown(claim: Claim, results: Results) -> str:
    """The claim's table."""
    make = {"fleet": _fleet_table, "learning": _learning_table, "costs": _costs_table, "sweep": _sweep_table}[claim.table]
    return make(claim, results)


def gap(row: ClaimRow, results: Results, scenario: Scenario = "class-il") -> tuple[float, float] | None:
    """Mean and half-width of the difference in average accuracy to the row that this one is paired with, over the seeds of both.

    None where there is no such row, or one of the two has no accuracy in this scenario.
    """
    if not row.versus:
        return None
    own, other = results[row.name], results[row.versus]
    both = [seed for seed in own if seed in other]
    found = [_averages([runs[seed] for seed in both], scenario) for runs in (own, other)]
    return paired(*found) if found[0].size == found[1].size else None


def _fleet_table(claim: Claim, results: Results) -> str:
    """Means over the seeds. What it took to reach the target is the mean over all seeds, and missing if one of them never did."""
    head = (
        "run",
        f"{NAMES[claim.scenario]} %",
        "rounds in time %",
        "too small",
        "joules",
        "virtual hours",
        "target %",
        "hours to it",
        "joules to it",
    )
    lines = []
    for row in claim.rows:
        summaries = [*results[row.name].values()]
        fleets = [summary["fleet"] for summary in summaries]
        apart = gap(row, results, claim.scenario)
        lines.append(
            (
                row.name,
                _percent(_averages(summaries, claim.scenario)) + (f" ({_difference(apart)})" if apart else ""),
                f"{100 * np.mean([fleet['in_time'] or 0 for fleet in fleets]):.0f}",
                f"{np.mean([fleet['refused'] for fleet in fleets]):.0f}",
                f"{np.mean([summary['totals']['joules'] for summary in summaries]):,.0f}",
                f"{np.mean([fleet['virtual_hours'] for fleet in fleets]):.3g}",
                f"{100 * fleets[0]['target']:.0f}",
                *(_to_target(fleets, kind, unit) for kind, unit in (("hours", 1), ("joules", 1), ("bytes", 1e6))),
            )
        )
    return _table((*head, "MB to it"), lines)


def _to_target(fleets: list[dict], kind: str, unit: float) -> str:
    found = [fleet["to_target"][kind] for fleet in fleets]
    missed = found.count(None)
    return f"missed by {missed} of {len(found)}" if missed else f"{np.mean(found) / unit:,.3g}"


def _learning_table(claim: Claim, results: Results) -> str:
    """Accuracy over seeds, paired difference to the row it is compared with, savings beside their ceilings.

    The plain ceiling of bytes is without entropy coding and without values that round to 0: it can be beaten.
    """
    head = ("run", *_headings(claim), "forgetting")
    head += ("FLOPs saved (ceiling)", "bytes up (plain ceiling)", "bytes down (plain ceiling)")
    lines = []
    for row in claim.rows:
        summaries = [*results[row.name].values()]
        savings = [_saving(summaries, kind) for kind in ("flops", "up_bytes", "down_bytes")]
        lines.append((row.name, *_accuracies(claim, row, results), *savings))
    return _table(head, lines)


def _costs_table(claim: Claim, results: Results) -> str:
    """Accuracy, and what it cost: means over the seeds. FLOPs of training and all else that is computed, over all devices; peak memory of
    the device that needs most; bytes of payloads, of all devices.
    """
    head = ("run", "seeds", *_headings(claim), "forgetting", "FLOPs", "peak memory MB")
    lines = []
    for row in claim.rows:
        summaries = [*results[row.name].values()]
        flops = np.mean([summary["totals"]["flops"] for summary in summaries])
        memory = np.mean([summary["peak_device_memory_bytes"] for summary in summaries]) / 1e6
        costs = [_scientific(flops), f"{memory:.3g}"]
        if not claim.alone:
            costs += [f"{np.mean([summary['totals'][key] for summary in summaries]) / 1e6:.3g}" for key in ("up_bytes", "down_bytes")]
        lines.append((row.name, f"{len(summaries)}", *_accuracies(claim, row, results), *costs))
    return _table(head + (() if claim.alone else ("MB up", "MB down")), lines)


def _sweep_table(claim: Claim, results: Results) -> str:
    """Mean accuracy over the seeds, in the scenario that there is, and in brackets the FLOPs of all devices."""
    head = (
        claim.sweep.title or claim.sweep.key,
        *(f"{value:g}" if isinstance(value, float) else f"{value}" for value in claim.sweep.values),
    )
    lines = []
    for family in claim.families:
        cells = []
        for value in claim.sweep.values:
            summaries = [*results[claim.sweep.name(family.name, value)].values()]
            flops = np.mean([summary["totals"]["flops"] for summary in summaries])
            cells.append(f"{_percent(curve_of(summaries, claim.scenario))} ({_scientific(flops).replace(' ', '')})")
        lines.append((family.name, *cells))
    return _table(head, lines)


def shown(value: float | int | str) -> str:
    """A value of a sweep as people write it."""
    if isinstance(value, str) or abs(value) < 1e4:
        return f"{value:g}" if isinstance(value, float) else f"{value}"
    return _scientific(value).strip()


def curve_of(summaries: list[dict], scenario: Scenario) -> np.ndarray:
    """Average accuracies in this scenario, or in Task-IL where there is no other."""
    found = _averages(summaries, scenario)
    return found if found.size else _averages(summaries, "task-il")


def _accuracies(claim: Claim, row: ClaimRow, results: Results) -> list[str]:
    """What `_headings` says, and forgetting, in the claim's scenario or in the one that there is."""
    summaries, apart = [*results[row.name].values()], gap(row, results, claim.scenario)
    found = {scenario: _averages(summaries, scenario) for scenario in _in_order(claim)}
    forgotten = next((scenario for scenario in found if found[scenario].size), claim.scenario)
    first, second = found.values()
    return [
        _percent(first),
        *([_difference(apart) if apart and np.isfinite(apart[0]) else "-"] if _minus(claim) else []),
        _percent(second),
        f"{100 * np.mean([summary['accuracy'][forgotten]['forgetting'] for summary in summaries]):.1f}",
    ]


def _headings(claim: Claim) -> tuple[str, ...]:
    """Of the accuracies: the claim's scenario, the difference to the row that a row is compared with where rows are, the other scenario."""
    first, second = (f"{NAMES[scenario]} %" for scenario in _in_order(claim))
    return (first, *_minus(claim), second)


def _in_order(claim: Claim) -> list[Scenario]:
    return sorted(NAMES, key=lambda scenario: scenario != claim.scenario)


def _difference(apart: tuple[float, float]) -> str:
    """Of a single pair there is no interval."""
    return f"{100 * apart[0]:+.1f}" + (f" ± {100 * apart[1]:.1f}" if np.isfinite(apart[1]) else "")


def _percent(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f}" if values.size else "-"


def _minus(claim: Claim) -> tuple[str, ...]:
    """The heading of what rows are compared with: the one row that all name, or each its own; none where no row is compared."""
    named = {row.versus for row in claim.rows if row.versus}
    return (f"minus {named.pop() if len(named) == 1 else 'its twin'}, 95 % interval",) if named else ()


def _averages(summaries: list[dict], scenario: str) -> np.ndarray:
    """Average accuracies; empty where a run has none in this scenario."""
    found = [summary["accuracy"][scenario]["average"] for summary in summaries]
    return np.array([value for value in found if value is not None])


def _saving(summaries: list[dict], kind: str) -> str:
    value = np.mean([summary["savings"][kind] for summary in summaries])
    ceiling = summaries[0]["ceilings"].get(kind)
    return f"{value:.1f}x" + (f" ({ceiling:.1f}x)" if ceiling else "")


def _scientific(value: float) -> str:
    """1.25e+13 as `12.5 T`."""
    power = max(0, min(5, int(np.log10(max(value, 1))) // 3))
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}"


def _table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
