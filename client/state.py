"""DeviceState: everything a device keeps between rounds, as a value that saves to and loads from bytes."""

from dataclasses import dataclass

import numpy as np
from safetensors.numpy import load, save

from client.stream import Stream
from sparcl_core import buffer as rehearsal
from sparcl_core import ddr
from sparcl_core.learner import Learner, Memory
from sparcl_core.masks import Masks, State
from sparcl_core.method import MethodConfig


@dataclass(frozen=True)
class DeviceState:
    """What a device keeps.

    Attributes:
        base: the model as received, w^ of `version`, and statistics that stay on the device; empty for a device that was never reached.
        masks: weight masks of `mask_version`.
        residual: what encoding has lost so far, per tensor on the wire.
        memory: buffer, data removal, epochs.
        task: the task it last trained on, -1 before the first.
        seen: [C] bool, classes it has had data of.
    """

    base: State
    masks: Masks
    residual: State
    memory: Memory
    seen: np.ndarray
    task: int = -1
    version: int = 0
    mask_version: int = 0


def new_device(method: MethodConfig, learner: Learner, stream: Stream) -> DeviceState:
    """A device that has received nothing yet; its buffer is sized by its whole stream."""
    inputs = learner.inputs
    buffer = rehearsal.empty(method.learner.buffer_capacity(sum(stream.sizes)), inputs.shape, inputs.num_classes, method.model.dtype)
    return DeviceState({}, {}, {}, Memory(buffer, ddr.start(0)), np.zeros(inputs.num_classes, dtype=bool))


def save_state(device: DeviceState) -> bytes:
    """The device as safetensors bytes."""
    memory, buffer, removal = device.memory, device.memory.buffer, device.memory.ddr
    arrays = {
        "scalars": np.array(
            [device.task, device.version, device.mask_version, memory.epochs, memory.twin_offered, buffer.offered, removal.stages],
            dtype=np.int64,
        ),
        "seen": device.seen,
        "buffer.x": buffer.x,
        "buffer.y": buffer.y,
        "buffer.logits": buffer.logits,
    }
    arrays |= {f"ddr.{key}": getattr(removal, key) for key in _DDR_ARRAYS}
    for part in ("base", "masks", "residual"):
        arrays |= {f"{part}/{name}": value for name, value in getattr(device, part).items()}
    return save({key: np.ascontiguousarray(value) for key, value in arrays.items()})


def load_state(data: bytes) -> DeviceState:
    """The inverse of `save_state`."""
    arrays = load(data)
    task, version, mask_version, epochs, twin_offered, offered, stages = map(int, arrays["scalars"])
    buffer = rehearsal.Buffer(arrays["buffer.x"], arrays["buffer.y"], arrays["buffer.logits"], offered)
    removal = ddr.DDRState(*(arrays[f"ddr.{key}"].copy() for key in _DDR_ARRAYS), stages=stages)
    parts = {
        part: {key.removeprefix(f"{part}/"): value for key, value in arrays.items() if key.startswith(f"{part}/")}
        for part in ("base", "masks", "residual")
    }
    memory = Memory(buffer, removal, epochs, twin_offered)
    return DeviceState(**parts, memory=memory, seen=arrays["seen"], task=task, version=version, mask_version=mask_version)


_DDR_ARRAYS = ("kept", "misses", "forgotten", "learned", "was_right", "passes")
