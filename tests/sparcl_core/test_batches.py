"""Batches: no sample lost or twice, none smaller than the net can take, and what was trained on a batch of one still is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_learning import INPUTS, MODELS, SEED, assert_same, new_memory, start, tiny_method, tiny_tasks, without

from sparcl_core.batches import batch_sizes, cut, largest_batch
from sparcl_core.learner import Learner
from sparcl_core.networks.models import ModelConfig, build_model, smallest_batch
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.task_data import TaskData

LASTS = st.sampled_from(["keep", "join", "drop"])


@given(count=st.integers(0, 200), size=st.integers(2, 40), least=st.integers(1, 2), last=LASTS)
def test_an_epoch_in_batches(count, size, least, last):
    sizes = batch_sizes(count, size, least, last)
    order = np.arange(count)
    batches = cut(order, sizes)
    assert np.array_equal(np.concatenate([order[:0], *batches]), order[: sum(sizes)])
    assert sum(sizes) == count or (last == "drop" and count > size and count - sum(sizes) == count % size)
    assert all(length >= least for length in sizes) or count < least
    assert max(sizes, default=0) <= largest_batch(np.array(count), size, least, last)
    if last == "keep" and (least == 1 or count % size != 1):
        assert sizes == [min(size, count - begin) for begin in range(0, count, size)]  # as it always was


@pytest.mark.parametrize(
    ("model", "side", "least"),
    [("resnet18", 8, 2), ("resnet18", 1, 2), ("resnet18", 9, 1), ("resnet18", 32, 1), ("cnn", 2, 1), ("mlp", 1, 1)],
)
def test_the_smallest_batch_is_what_torch_trains_on(model, side, least):
    """Halved three times: 8x8 ends in a map of 1x1, 9x9 in one of 2x2."""
    net, shape = build_model(MODELS[model], (1, side, side), 4), (1, side, side)
    assert smallest_batch(net, shape) == least and net.training
    assert net(torch.zeros(least, *shape)).isfinite().all()
    if least == 2:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            net(torch.zeros(1, *shape))


def test_a_net_with_batchnorm_trains_on_whatever_is_left():
    """9 samples in batches of 8: one of 9 instead of 8 and 1, which torch refuses. So is the pass that ranks weights for TDM."""
    learner, state, masks, memory = start(tiny_method("resnet18"))
    task = tiny_tasks(1, 9)[0]
    done = learner.train(state, masks, task, memory.in_task(9), epochs=1, device=0)
    assert (done.steps, done.samples, done.dropped, done.replayed) == (1, 9, 0, 0)
    assert done.flops.samples == done.dense_flops.samples == 9
    _, cost = learner.importance(done.state, masks, task, done.memory, device=0)
    assert cost.samples == 9 + 2 * 9  # and a draw of as many for each replay term
    assert learner.statistics(done.state, masks, task, done.memory)[1] == 9 + 9
    assert learner.loss(done.state, masks, task, 2)[1].statistics > 0


def test_joined_or_dropped_where_the_settings_say_so():
    sizes = {}
    for last in ("keep", "join", "drop"):
        learner, state, masks, memory = start(without(tiny_method("cnn", method="sgd", last_batch=last), "ddr"))
        done = learner.train(state, masks, tiny_tasks(1, 21)[0], memory.in_task(21), epochs=2, device=0)
        assert done.flops.samples == done.samples == done.dense_flops.samples
        sizes[last] = (done.steps, done.samples, done.dropped)
    assert sizes == {"keep": (6, 42, 0), "join": (4, 42, 0), "drop": (4, 32, 10)}


def test_a_single_sample_is_refused_before_anything_is_lost():
    learner, state, masks, memory = start(tiny_method("resnet18"))
    task = tiny_tasks(1, 1)[0]
    memory = memory.in_task(1)
    before = memory.buffer.offered
    for work in (
        lambda: learner.train(state, masks, task, memory, epochs=1, device=0),
        lambda: learner.importance(state, masks, task, memory, device=0),
        lambda: learner.loss(state, masks, task, 1),
        lambda: learner.statistics(state, masks, task, memory),
    ):
        with pytest.raises(ValueError, match=r"this device has 1 sample .* in task 0: BatchNorm .* needs 2 at once; .*model\.name=cnn"):
            work()
    assert memory.buffer.offered == before


def test_a_buffer_of_one_sample_is_not_replayed_where_it_cannot_be():
    learner, state, masks, _ = start(tiny_method("resnet18"))
    memory, task = new_memory(learner, 1).in_task(16), tiny_tasks(1, 16)[0]
    done = learner.train(state, masks, task, memory, epochs=2, device=0)
    assert (done.steps, done.replayed) == (4, 0) and len(done.memory.buffer) == 1
    assert done.dense_flops.samples == 32  # nor by its dense twin
    plain, state, masks, _ = start(tiny_method("cnn"))
    assert plain.train(state, masks, task, new_memory(plain, 1).in_task(16), epochs=2, device=0).replayed == 2 * 3


def test_data_removal_leaves_enough_for_a_batch():
    """Of 4 samples of one class 90 per cent would leave 1."""
    method = tiny_method("resnet18")
    for ddr in (DDRConfig(remove=0.9, cut=0.5, stage_epochs=1), DDRConfig(enabled=False)):
        learner, state, masks, memory = start(replace(method, ddr=ddr))
        data = tiny_tasks(1, 8)[0]
        data = TaskData(data.x[data.y == 0], data.y[data.y == 0], data.classes, 0)
        done = learner.train(state, masks, data, memory.in_task(4), epochs=10, device=0)
        assert np.count_nonzero(done.memory.ddr.kept) == (2 if ddr.enabled else 4)


def test_batches_of_one_are_refused_for_such_a_net():
    with pytest.raises(ValueError, match=r"learner\.batch_size is 1: BatchNorm of resnet18 on images of 4x4 .* at least 2; take more"):
        Learner(tiny_method("resnet18", batch_size=1), INPUTS, 10, SEED)
    Learner(tiny_method("cnn", batch_size=1), INPUTS, 10, SEED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((4, 1, 4, 4), np.float32)}, r"images of float32 \[4, 1, 4, 4\]: .* of uint8 are needed"),
        ({"x": np.zeros((4, 16), np.uint8)}, r"images of uint8 \[4, 16\]"),
        ({"y": np.zeros(3, np.int64)}, r"4 images and labels of int64 \[3\]"),
        ({"y": np.zeros(4)}, r"labels of float64 \[4\]: one integer for each"),
        ({"x": np.zeros((0, 1, 4, 4), np.uint8), "y": np.zeros(0, np.int64)}, "0 images"),
        ({"y": np.array([0, 1, 0, 7])}, r"has label 7, which is none of its classes \(0, 1\)"),
        ({"y": np.array([0, 1, 0, 1 << 40])}, "has label 1099511627776"),
        ({"classes": (0, 9)}, r"in classes 0 to 3: task 0 of this device has \(1, 4, 4\) and classes \(0, 9\)"),
        ({"x": np.zeros((4, 3, 4, 4), np.uint8)}, r"the model is for images of \(1, 4, 4\) .* has \(3, 4, 4\)"),
    ],
)
def test_data_that_is_not_what_it_must_be(change, message):
    learner, state, masks, memory = start(tiny_method("mlp"))
    with pytest.raises(ValueError, match=message):
        data = replace(tiny_tasks(1, 4)[0], **change)
        learner.train(state, masks, data, memory.in_task(4), epochs=1, device=0)


def test_images_too_small_for_the_pooling_are_refused():
    with pytest.raises(ValueError, match=r"images are 1x6: the cnn halves them, so they need 2x2 pixels at least; take model\.name=mlp"):
        build_model(ModelConfig("cnn", width=8), (1, 1, 6), 4)


def test_what_becomes_of_a_rest_does_not_matter_where_there_is_none():
    runs = []
    for last in ("keep", "drop"):
        learner, state, masks, memory = start(without(tiny_method("cnn", last_batch=last), "ddr"))
        runs.append(learner.train(state, masks, tiny_tasks(1, 16)[0], memory.in_task(16), epochs=2, device=0))
    assert_same(*runs)
