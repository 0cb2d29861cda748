"""When a device's learning method is told that a task begins or ends, with what data and which model, and what that adds to the round."""

from dataclasses import replace

import numpy as np
from lab import Lab
from worlds import assert_same_arrays

from sparcl_core import task_change
from sparcl_core.costs.flops import Passes, per_sample
from sparcl_core.methods.base import LearningMethod
from sparcl_core.task_change import ChangeConfig


class Telling(LearningMethod):
    """Notes every border, counts a pass for each sample there, and keeps how many borders there were."""

    def __init__(self, config):
        super().__init__(config)
        self.seen = []

    def begin_task(self, border):
        return self._note("begin", border)

    def end_task(self, border):
        return self._note("end", border)

    def _note(self, what, border):
        arrays = {"borders": border.memory.arrays.get("borders", np.zeros(1, np.int64)) + 1}
        self.seen.append((what, border))
        return replace(border.memory, arrays=arrays), Passes(taught=len(border.data.y))


def telling_lab(**settings) -> tuple[Lab, Telling]:
    lab = Lab()
    lab.config = replace(lab.config, **settings)
    lab.learner.method = Telling(lab.method.learner)
    return lab, lab.learner.method


def test_a_task_ends_when_the_next_one_comes():
    """With its own data, and the model that came with the next: a device cannot know before that there is no further round of it."""
    lab, method = telling_lab()
    device, first = lab.train(lab.receive(lab.new_device()))
    device, second = lab.train(device)
    assert [what for what, _ in method.seen] == ["begin"]
    lab.next_version(what="grow")
    device = lab.receive(device)
    device, third = lab.train(device, task=1)
    assert [(what, border.data.task) for what, border in method.seen] == [("begin", 0), ("end", 0), ("begin", 1)]
    (_, begun), (_, ended), (_, next_begun) = method.seen
    for border, task in ((begun, 0), (ended, 0), (next_begun, 1)):
        data = lab.stream.task(task)
        assert np.array_equal(border.data.x, data.x) and border.data.classes == data.classes
    for border in (ended, next_begun):
        assert_same_arrays(border.state, lab.broadcast.held)
        assert_same_arrays(border.masks, lab.broadcast.masks)
    assert ended.memory.epochs == 2 and ended.memory.buffer.offered == second.session.memory.buffer.offered
    assert device.memory.arrays["borders"].tolist() == [3] and device.memory.epochs == 1
    layers, masks = lab.learner.layers, device.masks
    own = lab.learner.cost_at(masks).forward
    whole = per_sample(layers, {name: mask.size for name, mask in masks.items()}, {name: mask.size for name, mask in masks.items()}).forward
    for done, samples in ((first, 12), (second, 0), (third, 24)):
        assert done.flops.statistics == samples * lab.learner.cost_at(done.masks).forward
        assert done.dense_flops.statistics == samples * whole
        assert done.dense_flops.train == done.session.dense_flops.train
    assert own < whole


def test_the_pieces_of_a_task_are_one_task():
    """Two chunks of six samples a task: the task ends with the last of them."""
    lab, method = telling_lab(chunks=2)
    lab.stream = replace(lab.stream, samples=tuple(np.split(np.arange(24), 4)), classes=((0, 1), (0, 1), (2, 3), (2, 3)))
    device = lab.receive(lab.new_device())
    for step in range(3):
        device, _ = lab.train(device, task=step)
    told = [(what, border.data.task, border.data.y.tolist()) for what, border in method.seen]
    y = lab.stream.y.tolist()
    assert told == [("begin", 0, y[:6]), ("end", 0, y[6:12]), ("begin", 1, y[12:18])]


def test_a_device_that_comes_late_ends_nothing_and_one_that_skips_a_task_ends_what_it_had():
    lab, method = telling_lab()
    lab.stream = replace(lab.stream, samples=tuple(np.split(np.arange(24), 4)), classes=((0,), (1,), (2,), (3,)))
    device, _ = lab.train(lab.receive(lab.new_device()), task=1)
    lab.train(device, task=3)
    assert [(what, border.data.task) for what, border in method.seen] == [("begin", 1), ("end", 1), ("begin", 3)]


def test_where_nobody_tells_it_a_task_ends_as_soon_as_a_device_notices(monkeypatch):
    """Its number is that of the changes it has noticed, its classes are those that its data had."""
    lab, method = telling_lab(change=ChangeConfig())
    monkeypatch.setattr(task_change, "has_changed", lambda losses, loss, config: len(method.seen) == 1)
    device, _ = lab.train(lab.receive(lab.new_device()))
    device, done = lab.train(device, task=1)
    assert done.has_changed
    assert [(what, border.data.task, border.data.classes) for what, border in method.seen] == [
        ("begin", 0, (0, 1)),
        ("end", 0, (0, 1)),
        ("begin", 1, (2, 3)),
    ]


def test_a_round_that_is_lost_can_be_played_again():
    """What a method keeps is a value: the device that failed still has the old one."""
    lab, _ = telling_lab()
    device, _ = lab.train(lab.receive(lab.new_device()))
    one, again = (lab.train(device, task=1)[0] for _ in range(2))
    assert device.memory.arrays["borders"].tolist() == [1]
    assert one.memory.arrays["borders"].tolist() == again.memory.arrays["borders"].tolist() == [3]
