"""Averaging: by hand, by plain FedAvg, and in device order."""

from dataclasses import replace

import numpy as np
import pytest
from worlds import RecordingGrid, play, tiny_world

from client import device as devices
from server.aggregate import Update, mean_importance, mean_update
from simulations.build import make_strategy
from sparcl_core.codec import Layout, SparseTensor
from sparcl_core.learner import Learner
from sparcl_core.protocol import Instruction

LAYOUT = Layout({"hidden": (2, 3), "rows": (3, 2), "bias": (3,)}, frozenset({"hidden"}))
CLASSIFIER = ("rows", "bias")


def dense(values) -> SparseTensor:
    values = np.array(values, dtype=np.float32).reshape(-1)
    return SparseTensor(np.arange(values.size), values)


def update(device: int, samples: int, seen=(1, 1, 1), **tensors: SparseTensor) -> Update:
    return Update(device, samples, np.array(seen, dtype=bool), tensors)


def test_full_updates_average_as_in_fedavg():
    rng = np.random.default_rng(0)
    samples = (30, 10, 60)
    arrays = [{name: rng.standard_normal(shape).astype(np.float32) for name, shape in LAYOUT.shapes.items()} for _ in samples]
    updates = [
        update(device, n, **{name: dense(value) for name, value in tensors.items()})
        for device, (n, tensors) in enumerate(zip(samples, arrays, strict=True))
    ]
    mean = mean_update(updates, LAYOUT, ())
    for name in LAYOUT.shapes:
        one, two, three = (tensors[name].astype(float) for tensors in arrays)
        by_hand = 0.3 * one + 0.1 * two + 0.6 * three
        assert mean[name].dtype == np.float64
        assert np.allclose(mean[name], by_hand, rtol=1e-12, atol=1e-15)


def test_what_a_device_did_not_send_counts_as_zero():
    """Two devices of 1 and 3 samples; place 4 is sent by the second alone: (1 * 0 + 3 * 8) / 4 = 6."""
    one = update(0, 1, hidden=SparseTensor(np.array([0]), np.array([4.0])))
    two = update(1, 3, hidden=SparseTensor(np.array([0, 4]), np.array([8.0, 8.0])))
    mean = mean_update([one, two], LAYOUT, ())
    assert mean["hidden"].tolist() == [[7.0, 0.0, 0.0], [0.0, 6.0, 0.0]]  # place 0: (1 * 4 + 3 * 8) / 4
    assert not mean["rows"].any() and mean["rows"].shape == (3, 2)


def test_classifier_rows_are_voted_on_by_those_who_saw_the_class():
    """n = 1 and 3. Class 0 seen by both: (1 * 4 + 3 * 8) / 4 = 7. Class 1 by the first alone: 4, whatever the second sends.
    Class 2 by nobody: 0. The same for the bias, and for no other tensor."""
    one = update(0, 1, (1, 1, 0), rows=dense([4] * 6), bias=dense([4] * 3), hidden=dense([4] * 6))
    two = update(1, 3, (1, 0, 0), rows=dense([8] * 6), bias=dense([8] * 3), hidden=dense([8] * 6))
    mean = mean_update([one, two], LAYOUT, CLASSIFIER)
    assert mean["rows"].tolist() == [[7, 7], [4, 4], [0, 0]]
    assert mean["bias"].tolist() == [7, 4, 0]
    assert (mean["hidden"] == 7).all()
    without = mean_update([one, two], LAYOUT, ())
    assert (without["rows"] == 7).all() and (without["bias"] == 7).all()


def test_a_vote_without_a_word_counts_as_zero():
    """A device that saw the class and sent no change for the row pulls the mean towards no change: (2 * 0 + 2 * 6) / 4 = 3."""
    silent = update(0, 2, (1, 0, 0))
    loud = update(1, 2, (1, 0, 0), bias=dense([6, 6, 6]))
    assert mean_update([silent, loud], LAYOUT, CLASSIFIER)["bias"].tolist() == [3, 0, 0]


@pytest.mark.parametrize("order", [[1, 0], [0, 0], []])
def test_updates_must_come_in_device_order(order):
    """The order of a floating-point sum changes its bits: a result must not depend on who finished first."""
    with pytest.raises(ValueError, match="device order"):
        mean_update([update(device, 1) for device in order], LAYOUT, ())


def test_updates_without_a_sample_have_no_mean():
    with pytest.raises(ValueError, match="no update has a sample"):
        mean_update([update(0, 0), update(1, 0)], LAYOUT, ())


def test_importance_is_weighted_by_samples():
    """(1 * 0.2 + 3 * 0.6) / 4 = 0.5 at place 1, (1 * 0.8 + 3 * 0) / 4 = 0.2 at place 5; 0 at inactive places."""
    one = {"hidden": SparseTensor(np.array([1, 5]), np.array([0.2, 0.8]))}
    two = {"hidden": SparseTensor(np.array([1, 5]), np.array([0.6, 0.0]))}
    mean = mean_importance([(1, one), (3, two)], LAYOUT)
    assert mean.keys() == {"hidden"}
    assert np.allclose(mean["hidden"], [[0, 0.5, 0], [0, 0, 0.2]])
    with pytest.raises(ValueError, match="no device reported"):
        mean_importance([], LAYOUT)


def test_one_dense_round_is_fedavg_end_to_end():
    """Everything that could differ is off: two devices, no sparsity, lossless codec, no row voting, one round through the engine.

    By hand: train both devices from the same weights with the learner itself, w = (n_0 w_0 + n_1 w_1) / (n_0 + n_1).
    """
    world = tiny_world(
        "stream.devices=2", "stream.tasks=1", "sparsity=0", "model.dtype=float64", "federation.rounds_per_task=1",
        "federation.up_values=f64", "federation.down_values=f64", "federation.row_voting=false",
    )  # fmt: skip
    e = world.experiment
    start = make_strategy(world).weights
    learner = Learner(e.method, world.data.inputs, e.federation.task_epochs, e.seed)
    sessions = []
    for number, stream in enumerate(world.streams):
        device = replace(devices.new_device(e.method, learner, stream), base=start)
        sessions.append(devices.train(device, Instruction(1, 0, 1, False, ()), learner, stream, number)[1])

    counts = [session.samples for session in sessions]
    assert counts[0] != counts[1]  # otherwise a mean without weights would pass too
    trained = play(world, RecordingGrid(world)).weights
    for name in start:
        by_hand = sum(session.samples * session.state[name] for session in sessions) / sum(counts)
        assert np.abs(by_hand - start[name]).max() > 1e-4  # something was learned
        assert np.allclose(trained[name], by_hand, rtol=1e-12, atol=1e-13)
