"""DeviceState: everything a device keeps between rounds, as a value that saves to and loads from bytes.

Two byte strings: `model` is what all devices have that hold the same version, `own` what is this device's alone. Whoever keeps many
devices keeps equal bytes once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from client.state import array_bytes, packing
from client.state.received_model import NO_MODEL, Model, load_model
from client.streams.stream import Stream
from sparcl_core.learner import Learner
from sparcl_core.replay.buffer import Buffer
from sparcl_core.replay.memory import Memory
from sparcl_core.sparsity.ddr import DDRState
from sparcl_core.sparsity.masks import Masks, State


@dataclass(frozen=True, eq=False, kw_only=True)
class DeviceState:
    """What a device keeps. Its arrays may be read-only: whoever changes one copies it.

    Attributes:
        model: what it has received, shared with all devices that hold the same version.
        statistics: tensors of BatchNorm that stay on the device; empty if all of them cross the wire.
        residual: what encoding has lost so far, for every tensor of the model.
        memory: buffer, data removal, epochs, what its learning method keeps.
        task: the task it last trained on, -1 before the first; where it is not told, as many changes as it has noticed.
        step: of its stream, whose data it last had, -1 before the first.
        losses: [n] float64, what it notices a change by, see `sparcl_core.task_change`.
        seen: [C] bool, classes it has had data of.
    """

    model: Model
    statistics: State
    residual: State
    memory: Memory
    seen: np.ndarray
    task: int = -1
    step: int = -1
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def base(self) -> State:
        """Every tensor of the network, as training starts from; empty for a device that was never reached."""
        return self.model.base | self.statistics

    @property
    def masks(self) -> Masks:
        return self.model.masks

    @property
    def version(self) -> int:
        return self.model.version

    @property
    def mask_version(self) -> int:
        return self.model.mask_version


def new_device(learner: Learner, stream: Stream) -> DeviceState:
    """A device that has received nothing yet; its buffer is sized by its whole stream."""
    seen, memory = np.zeros(learner.inputs.num_classes, dtype=bool), learner.new_memory(sum(stream.sizes))
    return DeviceState(model=NO_MODEL, statistics={}, residual={}, memory=memory, seen=seen)


def save_state(device: DeviceState) -> dict[str, bytes]:
    """The device as bytes: `model`, one object for all devices of this process that share the model, and `own`."""
    memory, buffer, removal = device.memory, device.memory.buffer, device.memory.ddr
    references = device.model.references
    packed = [packing.pack(value, references[name].places) for name, value in device.residual.items()]
    head = {
        "counts": [device.task, device.step, memory.epochs, memory.twin_offered, buffer.offered, removal.stages],
        "method": list(memory.arrays),
        "correction": list(memory.corrected),
        "statistics": list(device.statistics),
        "residual": "".join(form for form, _ in packed),
    }
    arrays = [device.seen, device.losses, buffer.x, buffer.y, buffer.logits, *(getattr(removal, key) for key in _DDR_ARRAYS)]
    arrays += [
        *memory.arrays.values(),
        *memory.corrected.values(),
        *device.statistics.values(),
        *(array for _, arrays in packed for array in arrays),
    ]
    return {"model": device.model.saved, "own": array_bytes.write(head, [np.asarray(array, order="C") for array in arrays])}


def load_state(saved: Mapping[str, bytes]) -> DeviceState:
    """The inverse of `save_state`.

    Raises:
        ValueError: if another release saved it, see `array_bytes.read`.
    """
    return load_own(saved["own"], load_model(saved["model"]))


def load_own(own: bytes, model: Model | None) -> DeviceState:
    """A device from the bytes that are its own, and the model that it held when they were saved.

    Args:
        model: None if it will be replaced by a whole model at once: then the device holds none, and its residual, which is stored over the
            model's active places and would not survive, is left out.
    """
    head, found = array_bytes.read(own)
    arrays = iter(found)
    task, step, epochs, twin_offered, offered, stages = head["counts"]
    seen, losses = next(arrays), next(arrays)
    buffer = Buffer(next(arrays), next(arrays), next(arrays), offered)
    removal = DDRState(**{key: next(arrays) for key in _DDR_ARRAYS}, stages=stages)
    kept, corrected = ({name: next(arrays) for name in head[part]} for part in ("method", "correction"))
    memory = Memory(buffer, removal, epochs, twin_offered, kept, corrected)
    statistics = {name: next(arrays) for name in head["statistics"]}
    residual = {}
    if model is not None:
        for (name, value), form in zip(model.base.items(), head["residual"], strict=True):
            residual[name] = packing.unpack(form, arrays, shape=value.shape, dtype=value.dtype, places=model.references[name].places)
    return DeviceState(
        model=model or NO_MODEL, statistics=statistics, residual=residual, memory=memory, seen=seen, task=task, step=step, losses=losses
    )


_DDR_ARRAYS = ("kept", "misses", "forgotten", "learned", "was_right", "passes")
