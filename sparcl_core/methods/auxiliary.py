"""What a learning method and the correction of its steps send beside the model, as one. Both sides make it of the same settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sparcl_core.codec import CodecError, Layout
from sparcl_core.methods.correction import Correction
from sparcl_core.methods.given import Arrays, Running
from sparcl_core.methods.sends_arrays import SendsArrays, Upload
from sparcl_core.wire.auxiliary import Channel

if TYPE_CHECKING:
    from sparcl_core.methods.base import LearningMethod


class Auxiliary:
    """The arrays beside a model, named `method/NAME` and `correction/NAME`.

    Attributes:
        up, down: what crosses the wire; false where nothing does.
        once_a_task: a device is sent what is down with the first round of a task alone.
    """

    def __init__(self, method: LearningMethod, correction: Correction, model: Layout, classifier: tuple[str, ...], *, dtype: str):
        self.parts: dict[str, SendsArrays] = {"method": method, "correction": correction}
        up, down, labels = {}, {}, set()
        for part, sender in self.parts.items():
            own_up = {f"{part}/{name}": tuple(shape) for name, shape in sender.shapes_up(model, classifier).items()}
            own_down = {f"{part}/{name}": tuple(shape) for name, shape in sender.shapes_down(model, classifier).items()}
            up, down = up | own_up, down | own_down
            labels |= own_up.keys() | own_down.keys() if sender.labels else set()
        self.up, self.down = (Channel.of(shapes, model, dtype, frozenset(labels & shapes.keys())) for shapes in (up, down))
        self.once_a_task = all(sender.once_a_task for sender in self.parts.values() if sender.shapes_down(model, classifier))
        self.counts = tuple(f"{part}/{name}" for part, sender in self.parts.items() for name in sender.counts)

    def start(self) -> Arrays:
        """What the server has before the first round."""
        return {name: np.zeros(shape, self.down.dtype) for name, shape in self.down.layout.shapes.items()}

    def upload(self, running: Running) -> Arrays:
        """What a device sends."""
        return {f"{part}/{name}": value for part, sender in self.parts.items() for name, value in sender.upload(running).items()}

    def check(self, arrays: Arrays, samples: int) -> None:
        """Raises CodecError if counts of samples in `arrays`, which came in, cannot be. samples: that the device has trained on."""
        for name in self.counts:
            value = arrays[name]
            if ((value < 0) | (value > samples) | (value != np.floor(value))).any():
                raise CodecError(f"{name} is no count of samples: whole numbers from 0 to {samples} were expected")

    def combine(self, kept: Arrays, uploads: list[Upload], fleet: int) -> Arrays:
        """See `SendsArrays.combine`."""
        found: Arrays = {}
        for part, sender in self.parts.items():
            own = [Upload(one.device, one.samples, within(part, one.arrays)) for one in uploads]
            combined = sender.combine(within(part, kept), own, fleet)
            found |= {f"{part}/{name}": np.asarray(value, self.down.dtype) for name, value in combined.items()}
        return found


def within(part: str, arrays: Arrays) -> Arrays:
    """Those of `method` or of `correction`, by their own names."""
    return {name.removeprefix(f"{part}/"): value for name, value in arrays.items() if name.startswith(f"{part}/")}
