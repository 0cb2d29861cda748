"""A worker process simulates many devices, and most of them hold the same model and receive the same payloads.

So a model is loaded from its bytes once per process, and payloads are decoded and applied to it once; every further device that comes with
the same bytes gets the result from here.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from client.config import ClientConfig
from client.state.apply_payloads import Surviving, begins_anew, follow
from client.state.received_model import NO_MODEL, Model, load_model
from sparcl_core.codec import Layout

Key, Value = TypeVar("Key"), TypeVar("Value")


class ModelCache:
    """Models by their bytes, and what payloads make of them. Only speeds up: `follow` and `load_model` give the same bits.

    Bytes are looked up by content. Python hashes a bytes object once, so it pays to hand the same objects to all devices.
    """

    def __init__(self, whole: Layout, config: ClientConfig, models: int = 4, steps: int = 16):
        """
        Args:
            whole: layout of the whole model, statistics included.
            models: so many are kept, each with its arrays and its bytes. With 3 or more, that of the round stays while stale devices
                bring older ones along.
            steps: so many ways to them are kept, one for each version that the devices of a round come from; a way takes the masks
                of what survives, and the bytes where it begins.
        """
        self._whole, self._config = whole, config
        self._models: _Recent[bytes, Model] = _Recent(models)
        self._steps: _Recent[tuple[bytes, tuple[bytes, ...]], tuple[Model, Surviving]] = _Recent(steps)

    def load(self, saved: bytes) -> Model:
        """The model that `saved` is; empty bytes are no model.

        Raises:
            ValueError: see `load_model`.
        """
        return (self._models.get(saved) or self._keep(load_model(saved))) if saved else NO_MODEL

    def follow(self, saved: bytes, payloads: tuple[bytes, ...]) -> tuple[Model, Surviving]:
        """The model that `payloads` make of the one that `saved` is, and what of a device's residual survives.

        Raises:
            CodecError: see `client.state.apply_payloads.follow`; nothing is kept of an attempt that failed.
        """
        key = (b"" if begins_anew(payloads) else saved, payloads)
        step = self._steps.get(key)
        if step is None:
            model, surviving = follow(self.load(key[0]), payloads, self._whole, self._config)
            step = self._steps.put(key, (self._keep(model), surviving))
        self._models.get(step[0].saved)  # it was used
        return step

    def _keep(self, model: Model) -> Model:
        """`model`, or an equal one that is held. Ways to a model that makes room for it go, too: they would keep it in memory."""
        if held := self._models.get(model.saved):
            return held
        self._models.put(model.saved, model)
        self._steps.forget(lambda step: step[0].saved not in self._models)
        return model


class _Recent(Generic[Key, Value]):
    """The `size` values that were used last."""

    def __init__(self, size: int):
        self._size, self._held = size, OrderedDict[Key, Value]()

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def get(self, key: Key) -> Value | None:
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: Key, value: Value) -> Value:
        self._held[key] = value
        if len(self._held) > self._size:
            self._held.popitem(last=False)
        return value

    def forget(self, which: Callable[[Value], bool]) -> None:
        self._held = OrderedDict((key, value) for key, value in self._held.items() if not which(value))
