"""Part `layers`: the convolutions of ResNet-18, one by one."""

import torch
from torch import Tensor

from benchmarks.kernels.settings import ERROR_TARGET, KEEP, TARGETS, Settings
from benchmarks.kernels.sides import Case, Pass, faster_layout, faster_peer, resnet_layers, sparseprop
from benchmarks.kernels.timing import geometric_mean, in_turn, speed_up


def measure(settings: Settings) -> list[dict]:
    """One row per sparsity and layer; times in seconds."""
    rows = []
    layers = resnet_layers(settings.width, settings.image)
    layouts = {layer: faster_layout(layer, settings.batch, settings.layer_repeats) for layer in layers}
    for sparsity in settings.sparsities:
        for layer in layers:
            case = Case(layer, settings.batch, sparsity)
            sides = {"dense": case.dense(layouts[layer]), "masks": case.ours(True), "ours": case.ours(False)}
            if sparseprop():
                sides["peer"] = faster_peer(case, settings.layer_repeats)
            times = in_turn(sides, settings.layer_repeats)
            row = {"sparsity": sparsity, "layer": layer.name, "count": layer.count, "layout": layouts[layer], "error": _errors(case, sides)}
            row["seconds"] = {name: min(times[name]) for name in sides}
            row["speed_up"] = {name: speed_up(times["dense"], times[name]) for name in sides}
            rows.append(row | {"times": times})
    return rows


def _errors(case: Case, sides: dict[str, Pass]) -> dict[str, float]:
    """Errors of the gradients of input and weights of our side, with and without gradient masks, and of both of the dense side."""
    x, weight = case.dense("contiguous", torch.float64)()
    weight = weight.reshape(-1)
    active = weight[torch.from_numpy(case.mask.reshape(-1))]
    ours, masked, dense = sides["ours"](), sides["masks"](), sides["dense"]()
    wanted = torch.zeros_like(active)
    wanted[torch.from_numpy(case.updated)] = active[torch.from_numpy(case.updated)]
    weights = max(_error(ours[1], active), _error(masked[1], wanted))
    return {"x": _error(ours[0], x), "w": weights, "dense": max(_error(dense[0], x), _error(dense[1].reshape(-1), weight))}


def _error(found: Tensor, true: Tensor) -> float:
    return float((found - true).abs().max() / true.abs().max())


def show(rows: list[dict], settings: Settings) -> None:
    has_peer = "peer" in rows[0]["seconds"]
    names = ["masks", "ours", *(["peer"] if has_peer else [])]
    for sparsity in settings.sparsities:
        here = [row for row in rows if row["sparsity"] == sparsity]
        q = 1 - KEEP * (1 - sparsity)
        print(f"\nLayers at sparsity {sparsity:.2f}, batch {settings.batch}; DGM: q = {q:.2f}. Fastest ms, median speed-up over dense\n")
        peer = f" {'SparseProp':>14}" if has_peer else ""
        print(f"{'layer':<17} {'of':>2} {'dense':>9}  {'ours, DGM':>14} {'ours':>14}{peer}  {'err x':>6} {'err w':>6} {'dense':>6}")
        for row in here:
            cells = [f"{1000 * row['seconds'][name]:>7.1f} {row['speed_up'][name]:>5.2f}x" for name in names]
            mark = "L" if row["layout"] == "channels_last" else "C"
            errors = " ".join(f"{row['error'][key]:>6.0e}" for key in ("x", "w", "dense"))
            dense = f"{1000 * row['seconds']['dense']:>7.1f} {mark}"
            print(f"{row['layer']:<17} {row['count']:>2} {dense}  {' '.join(cells)}  {errors}")
        means = mean_speed_up(here)
        target, counts = TARGETS["layers"].get(sparsity) if settings.judges else None, [row["count"] for row in here]
        print(f"{'geometric mean':<20} {'':>9}  " + " ".join(f"{'':>7} {means[name]:>5.2f}x" for name in names))
        sums = {
            name: 1000 * sum(row["seconds"][name] * count for row, count in zip(here, counts, strict=True)) for name in ("dense", *names)
        }
        cells = [f"{sums[name]:>7.0f} {sums['dense'] / sums[name]:>5.2f}x" for name in names]
        print(f"{'sum of all':<17} {sum(counts):>2} {sums['dense']:>7.0f}    {' '.join(cells)}")
        if target:
            print(f"target: a mean of {target}x with DGM: {'met' if means['masks'] >= target else 'missed'}")
    print("\nC: contiguous, L: channels-last, the one that PyTorch is faster in. Errors are relative to the")
    worst = max(max(row["error"]["x"], row["error"]["w"]) for row in rows)
    print(f"largest value; ours are at most {worst:.1e} (target {ERROR_TARGET:g}: {'met' if worst <= ERROR_TARGET else 'missed'}).")


def mean_speed_up(rows: list[dict]) -> dict[str, float]:
    """Geometric mean per side over the layers of the network."""
    counts = [row["count"] for row in rows]
    return {name: geometric_mean([row["speed_up"][name] for row in rows], counts) for name in rows[0]["speed_up"]}
