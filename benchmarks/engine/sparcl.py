"""Our apps on our engine, with everything that they do: bytes are encoded, checked, averaged in float64 and booked in the ledger.

The `cnn` backbone has two convolutions and one pooling layer, so its model of 2.17 million parameters is another one than that of the
other sides: these sides are measured against a bare loop with their own model.
"""

import time

import numpy as np

from benchmarks.engine import work
from server.app import Evaluation, RoundRecord, run_rounds
from simulations.build import World, choose_kernels, make_roster, make_strategy
from simulations.client_app import client_app
from simulations.config.loading import from_tree
from simulations.data.partition import make_streams
from simulations.data.raw import Dataset, Raw
from sparcl_core.inputs import InputSpec
from sparcl_core.networks.models import ModelConfig

MODEL = ModelConfig("cnn", width=32, hidden=263)
DERPP = {"method": "derpp", "lr": work.LR, "batch_size": work.BATCH, "buffer_size": work.SAMPLES}
SHORTEST_TASK = 4  # rounds; with fewer, masks would never adapt


def dense(rounds: int, cores: int) -> dict:
    wire = {"up": "f32", "down": "f32", "importance": "f32"}
    return _measure({"sparsity": 0.0, "wire": wire, "tdm": {"enabled": False}, "dgm": {"enabled": False}}, rounds, cores)


def sparse(rounds: int, cores: int) -> dict:
    return _measure({"sparsity": 0.9, "tdm": {"batches": 1}}, rounds, cores)


def derpp_dense(rounds: int, cores: int) -> dict:
    wire = {"up": "f32", "down": "f32", "importance": "f32"}
    settings = {"sparsity": 0.0, "wire": wire, "tdm": {"enabled": False}, "dgm": {"enabled": False}, "learner": DERPP}
    return _measure(settings, rounds, cores)


def derpp_sparse(rounds: int, cores: int) -> dict:
    return _measure({"sparsity": 0.9, "tdm": {"batches": 1}, "learner": DERPP}, rounds, cores)


def _measure(settings: dict, rounds: int, cores: int) -> dict:
    from simulations.engine.ray import RayGrid

    world, times, heard = _world(settings, max(rounds + 1, SHORTEST_TASK)), [], []
    strategy, start = make_strategy(world), time.perf_counter()
    grid = RayGrid(client_app, world.app_args, work.DEVICES, workers=cores, on_reply=lambda device: heard.append(time.perf_counter()))

    def observe(record: RoundRecord) -> None:
        if record.round and record.num_devices != work.DEVICES:
            raise RuntimeError(f"only {record.num_devices} devices could be used")
        times.append(time.perf_counter())

    try:
        nothing = Evaluation(np.zeros((2, 1)), np.zeros((2, 1, work.CLASSES)))
        loop = {"rounds": world.experiment.rounds, "evaluate_every": 0, "evaluate": lambda state: nothing, "observe": observe}
        run_rounds(grid, strategy, **loop, roster=make_roster(world.streams))
    finally:
        grid.close()
    rounds_s = np.diff(times)[1:]  # the first is the warm-up
    return work.measured(list(rounds_s), heard[0] - start, sum(value.size for value in strategy.weights.values()))


def _world(settings: dict, rounds: int) -> World:
    """One task of that many rounds over synthetic images, 50 of them per device."""
    experiment = from_tree(
        {
            "name": "engine",
            "stream": {"tasks": 1, "devices": work.DEVICES, "partition": "iid"},
            "model": {"name": MODEL.name, "width": MODEL.width, "hidden": MODEL.hidden},
            "learner": {"method": "sgd", "lr": work.LR, "batch_size": work.BATCH},
            "ddr": {"enabled": False},
            "federation": {"rounds_per_task": rounds, "local_epochs": 1},
            **settings,
        }
    )
    rng, count = np.random.default_rng(work.SEED), work.DEVICES * work.SAMPLES
    x, y = rng.integers(0, 256, (count, *work.SHAPE), dtype=np.uint8), np.arange(count) % work.CLASSES
    mean, std = x.mean((0, 2, 3)), x.std((0, 2, 3))
    data = Dataset(Raw(x, y, x[:1], y[:1]), InputSpec(work.SHAPE, work.CLASSES, tuple(map(float, mean)), tuple(map(float, std))))
    return World(choose_kernels(experiment, data), data, make_streams(experiment.stream, data, experiment.seed))
