"""One device that holds all data, lossless codec, no row voting: the federation must be SparCL run alone.

Same masks, batches, buffer and data removal; weights within 1e-12 relative in fp64 and 1e-5 in fp32. Not bit for bit, since a
federation stores base + (w - base), which floating point does not make equal to w.
"""

import numpy as np
import pytest
from worlds import RecordingGrid, play, tiny_world

from sparcl_core.solo import Progress, train_stream

LOSSLESS = {"float32": "f32", "float64": "f64"}


def run_both(dtype: str, *overrides: str) -> tuple[list[Progress], list[dict]]:
    """What both sides held after every session: alone, and the device and the server of a federation."""
    values = LOSSLESS[dtype]
    world = tiny_world(
        "stream.devices=1", f"model.dtype={dtype}", f"wire.up={values}", f"wire.down={values}", f"wire.importance={values}",
        "aggregation.row_voting=false", "learner.buffer_size=10", *overrides,
    )  # fmt: skip
    e, grid, federated = world.experiment, RecordingGrid(world), []

    def observe(record, strategy):
        if record.round:
            device = grid.device(0)
            weights = {name: value.copy() for name, value in strategy.weights.items()}
            federated.append({"weights": weights, "masks": device.masks, "memory": device.memory, "server_masks": strategy.masks})

    play(world, grid, observe)
    alone = []
    tasks = [world.streams[0].task(number) for number in range(e.stream.tasks)]
    epochs = e.federation.task_epochs
    options = {"task_epochs": epochs, "seed": e.seed, "session_epochs": e.federation.local_epochs}
    train_stream(e.method, world.data.inputs, tasks, **options, observe=alone.append)
    return alone, federated


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, relative to the largest weight of the tensor."""
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("learner.method=er", "ddr.criterion=forgetting"),
        ("federation.local_epochs=2", "tdm.stage_epochs=2", "tdm.importance=two-term", "dgm.importance=two-term", "dgm.interval=3"),
        ("sparsity=0",),
        ("masks.scheme=set", "masks.stage_epochs=1"),
        ("masks.scheme=rigl", "masks.stage_epochs=1", "masks.densities=erk", "masks.batches=2"),
        ("masks.scheme=static", "masks.initial=snip", "masks.densities=global"),
        ("masks.initial=snip", "masks.densities=erk"),
        ("masks.scheme=set", "masks.initial=magnitude", "masks.densities=global", "masks.stage_epochs=2"),
    ],
    ids=["derpp", "er", "two-term", "dense", "set", "rigl", "snip", "tdm-from-snip", "set-from-magnitude"],
)
def test_a_federation_of_one_is_sparcl_alone(dtype, tolerance, overrides):
    alone, federated = run_both(dtype, *overrides)
    assert len(alone) == len(federated) == 8
    for solo, fleet in zip(alone, federated, strict=True):
        for masks in (fleet["masks"], fleet["server_masks"]):
            assert masks.keys() == solo.masks.keys()
            assert all(np.array_equal(masks[name], solo.masks[name]) for name in masks)
        ours, theirs = fleet["memory"], solo.memory
        assert (ours.epochs, ours.buffer.offered, ours.twin_offered) == (theirs.epochs, theirs.buffer.offered, theirs.twin_offered)
        assert np.array_equal(ours.buffer.x, theirs.buffer.x) and np.array_equal(ours.buffer.y, theirs.buffer.y)
        assert distance(ours.buffer.logits, theirs.buffer.logits) < 100 * tolerance  # sums over a layer of such weights
        assert np.array_equal(ours.ddr.kept, theirs.ddr.kept) and ours.ddr.stages == theirs.ddr.stages
        assert np.array_equal(ours.ddr.misses, theirs.ddr.misses)
        for name, value in solo.state.items():
            assert distance(fleet["weights"][name], value) < tolerance, name


def test_the_worlds_compared_are_not_trivial():
    """Masks change five times in two tasks, data is removed, the buffer overflows, weights move."""
    alone, _ = run_both("float64")
    changes = [any((a.masks[n] != b.masks[n]).any() for n in a.masks) for a, b in zip(alone, alone[1:], strict=False)]
    assert changes == [True, True, False, True, True, True, False]
    assert all(progress.memory.ddr.kept.mean() == pytest.approx(0.7) for progress in (alone[3], alone[7]))
    assert alone[-1].memory.buffer.offered > 10
    for name, value in alone[0].state.items():
        assert distance(alone[-1].state[name], value) > 1e-3, name
