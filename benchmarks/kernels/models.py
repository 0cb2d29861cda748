"""Part `models`: CPU seconds of a training step of every model by name, dense and sparse, kernels as `auto` chooses them."""

import sys

from benchmarks.kernels.settings import Settings
from simulations.calibration.timed_sessions import Point, PointSessions
from sparcl_core.config import MODELS, ModelConfig

WIDTHS = {
    "mlp": 256, "cnn": 32, "resnet18": 20, "mobilenetv2": 32, "mobilenetv3-small": 16, "efficientnet-b0": 32, "vit-tiny": 192,
}  # fmt: skip
SHAPE, BATCH, STEPS, SPARSITY = (3, 32, 32), 32, 2, 0.9


def measure(settings: Settings) -> list[dict]:
    """A row for each model; the least of some sessions, in turn, in seconds of a step. CPU time, so that a busy machine counts less."""
    rows = []
    for name in MODELS.ours if settings.judges else ("cnn", "mobilenetv3-small"):
        print(f"models: {name}", file=sys.stderr, flush=True)
        model = ModelConfig(name, width=WIDTHS[name])
        sides = {sparsity: PointSessions(Point(model, SHAPE, "sgd", sparsity, BATCH, STEPS)) for sparsity in (0.0, SPARSITY)}
        times = {sparsity: [] for sparsity in sides}
        for _ in range(1 + settings.cycles):
            for sparsity, side in sides.items():
                times[sparsity].append(side.run() / STEPS)
        dense, sparse = (min(found[1:]) for found in times.values())
        on_kernels = sum(type(layer).__name__.startswith("Sparse") for layer in sides[SPARSITY].learner.network.sparse.values())
        layers = len(sides[SPARSITY].learner.network.sparse)
        rows.append({"name": name, "width": model.width, "dense": dense, "sparse": sparse, "on_kernels": on_kernels, "layers": layers})
    return rows


def show(rows: list[dict], settings: Settings) -> None:
    print(f"\nTraining steps at batch {BATCH} on 32x32x3, one thread, CPU ms\n")
    print(f"{'model':<18} {'width':>5} {'dense':>8} {f'at {SPARSITY}':>8} {'faster':>7}   layers on kernels")
    for row in rows:
        told = f"{row['on_kernels']} of {row['layers']}"
        print(
            f"{row['name']:<18} {row['width']:>5} {1000 * row['dense']:>8.0f} {1000 * row['sparse']:>8.0f} "
            f"{row['dense'] / row['sparse']:>6.2f}x   {told}"
        )
