"""Part `step`: a whole training step of the learner."""

import statistics
import sys

from benchmarks.kernels.settings import TARGETS, Settings
from benchmarks.kernels.sides import LAYOUTS
from benchmarks.kernels.timing import Times, fastest, in_turn, speed_up
from benchmarks.kernels.workload import INTERVAL, Plain, Training


def measure(settings: Settings) -> dict:
    """The dense sides beside each other, and one row per method and sparsity; times in seconds."""
    size = settings.width, settings.image, settings.batch
    sides = {"learner": Training("sgd", 0.0, "auto", *size)} | {layout: Plain("sgd", layout, *size) for layout in LAYOUTS}
    dense = in_turn({name: side.step for name, side in sides.items()}, settings.dense_repeats)
    base, rows = fastest(dense), []
    for method in settings.methods:
        for sparsity in settings.sparsities:
            print(f"step: {method} at sparsity {sparsity}", file=sys.stderr, flush=True)
            rows.append({"method": method, "sparsity": sparsity} | _row(method, sparsity, base, settings))
    return {"dense": dense, "base": base, "rows": rows}


def _row(method: str, sparsity: float, base: str, settings: Settings) -> dict:
    size = settings.width, settings.image, settings.batch
    dense = Training(method, 0.0, "auto", *size) if base == "learner" else Plain(method, base, *size)
    sparse = {"kernels": Training(method, sparsity, "sparse", *size)}
    if sparsity == settings.sparsities[0]:  # its products are dense, whatever the sparsity
        sparse["masked"] = Training(method, sparsity, "dense", *size)
    sides = {"dense": dense, **sparse}
    parts: dict[str, Times] = {name: {"draw": [], "next": [], "other": []} for name in sides}
    draws = {name: lambda side=side: side.step(draws=True) for name, side in sparse.items()}
    steps = {name: side.step for name, side in sides.items()}
    in_turn(draws, 1, warm=0)  # to warm up: lists, scratch memory and PyTorch's own caches are made
    in_turn(steps, 1, warm=0)
    for _ in range(settings.cycles):
        for kind, turn, repeats in (
            ("draw", draws, 1),
            ("next", {name: steps[name] for name in sparse}, 1),
            ("other", steps, settings.normals),
        ):
            for name, found in in_turn(turn, repeats, warm=0).items():
                parts[name][kind] += found
    cycles = {name: _cycles(part, settings.normals) for name, part in parts.items()}
    return {
        "seconds": {name: _fastest(part) for name, part in parts.items()},
        "speed_up": {name: speed_up(cycles["dense"], cycle) for name, cycle in cycles.items()},
        "times": parts,
    }


def _cycles(part: Times, normals: int) -> list[float]:
    """Seconds of a step, the mean of an interval, per cycle."""
    count = len(part["other"]) // normals
    usual = [statistics.median(part["other"][normals * cycle : normals * (cycle + 1)]) for cycle in range(count)]
    return [_mean(part["draw"][i], part["next"][i], usual[i]) if part["draw"] else usual[i] for i in range(count)]


def _fastest(part: Times) -> float:
    usual = min(part["other"])
    return _mean(min(part["draw"]), min(part["next"]), usual) if part["draw"] else usual


def _mean(draw: float, following: float, usual: float) -> float:
    return (draw + following + (INTERVAL - 2) * usual) / INTERVAL


def show(found: dict, settings: Settings) -> None:
    print(f"\nTraining steps of ResNet-18 width {settings.width}, batch {settings.batch}. Fastest ms, median speed-up over dense\n")
    parts = f"{'draw':>8} {'next':>8} {'other':>8}"
    print(f"{'':<6} {'':>8} {'':>7}   {'':>15} {'':>7}   {'kernels, by kind of step':>26}")
    print(f"{'method':<6} {'sparsity':>8} {'dense':>7}   {'kernels':>15} {'target':>7}   {parts}   {'dense products':>15}")
    for row in found["rows"]:
        cells = {name: f"{1000 * row['seconds'][name]:>8.0f} {row['speed_up'][name]:>5.2f}x" for name in row["seconds"]}
        target = TARGETS["step"].get(row["sparsity"]) if settings.judges else None
        kinds = " ".join(f"{1000 * min(row['times']['kernels'][kind]):>8.0f}" for kind in ("draw", "next", "other"))
        print(
            f"{row['method']:<6} {row['sparsity']:>8.2f} {1000 * row['seconds']['dense']:>7.0f}   {cells['kernels']:>15} "
            f"{f'{target}x' if target else '':>7}   {kinds}   {cells.get('masked', '-'):>15}"
        )
    names = {"learner": "the learner at sparsity 0"} | {layout: f"PyTorch {layout}" for layout in LAYOUTS}
    told = ", ".join(f"{text} {1000 * min(found['dense'][name]):.0f} ms" for name, text in names.items())
    print(f"\nDense is {names[found['base']]}, the fastest of three with sgd:\n{told}.")
