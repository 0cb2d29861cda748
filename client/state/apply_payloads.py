"""What a device does with the payloads of an instruction, in two halves.

`follow` applies them to the model that the device held, and gives the new model: the same for all devices that held the same one, so it is
done once for all of them (`client.state.model_cache`). `bring` then changes what belongs to one device alone: what encoding has lost so far
is forgotten where a mask update dropped the weight.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from client.config import ClientConfig
from client.state import packing
from client.state.device_state import DeviceState
from client.state.received_model import Model
from sparcl_core import codec
from sparcl_core.codec import CodecError, Layout, Payload, SparseTensor
from sparcl_core.networks.models import fresh_statistics
from sparcl_core.sparsity.masks import Masks, State, apply_masks_
from sparcl_core.sparsity.update import MaskUpdate


@dataclass(frozen=True, eq=False)
class Surviving:
    """What of a device's residual outlives an instruction: it depends on the payloads, not on the device.

    Attributes:
        nothing: a whole model came, and the residual starts at zero.
        masks: else, where it stays as it is, per masked tensor: what no mask update dropped. Empty if there was no mask update.
    """

    nothing: bool
    masks: Masks

    def of(self, residual: State, model: Model) -> State:
        """The residual of a device that was brought to `model`; the old one is not changed."""
        if self.nothing:
            return {name: packing.zeros(value.shape, value.dtype) for name, value in model.base.items()}
        return residual | {name: packing.only(residual[name], mask) for name, mask in self.masks.items()}


def bring(device: DeviceState, model: Model, surviving: Surviving, *, whole: Layout, config: ClientConfig) -> DeviceState:
    """The device with the model that its own was followed by; statistics that stay on it begin as an untrained network's."""
    layout = config.layout(whole)
    stays = {name: shape for name, shape in whole.shapes.items() if name not in layout.shapes}
    statistics = device.statistics or fresh_statistics(stays, np.dtype(config.method.model.dtype))
    return replace(device, model=model, statistics=statistics, residual=surviving.of(device.residual, model))


def begins_anew(payloads: tuple[bytes, ...]) -> bool:
    """Do these payloads lead to the same model whatever is held? So says the first one; whether it is sound shows when it is decoded."""
    return bool(payloads) and payloads[0][4:5] == _WHOLE


def follow(model: Model, payloads: Iterable[bytes], whole: Layout, config: ClientConfig) -> tuple[Model, Surviving]:
    """The model after `payloads`, applied in sequence, and what of a residual survives them.

    Args:
        whole: layout of the whole model, statistics included.

    Raises:
        CodecError: if a payload is damaged or does not follow the version that is held.
    """
    held = _Held(model, whole, config)
    for raw in payloads:
        held.apply(codec.decode(raw, held.layout, held.masks))
    if not held.version:
        raise CodecError("the device holds no model and the instruction brings none")
    if held.awaits_growth:
        raise CodecError("a mask update drops weights and adds none: its second half is missing")
    surviving = Surviving(held.is_new, {} if held.is_new else held.surviving)
    return Model(held.base, held.masks, held.version, held.mask_version), surviving


class _Held:
    """A model while payloads are applied: copies. `surviving` stands in for every residual: it is 0 where theirs become 0."""

    def __init__(self, model: Model, whole: Layout, config: ClientConfig):
        self.config, self.layout = config, config.layout(whole)
        self.dtype = np.dtype(config.method.model.dtype)
        self.base: State = {name: value.copy() for name, value in model.base.items()}
        self.masks, self.version, self.mask_version = model.masks, model.version, model.mask_version
        self.surviving: Masks = {}
        self.is_new = self.awaits_growth = False

    def apply(self, payload: Payload) -> None:
        kind = payload.kind
        if self.awaits_growth != (kind == "add"):
            raise CodecError(f"payload {kind!r} does not belong here: `add` follows `drop`, and nothing else does")
        if kind == "whole":
            self._replace(payload)
        elif kind == "delta":
            self._add(payload)
        elif kind in ("grow", "adapt"):
            self._redo(payload)
        elif kind in ("drop", "add"):
            self._flip(payload)
        else:
            raise CodecError(f"an instruction brings whole models, deltas and mask updates, not {kind!r}")

    def _replace(self, payload: Payload) -> None:
        shapes, tensors = self.layout.shapes, payload.tensors
        _expect_all(payload, shapes)
        self.base = {
            name: packing.put(tensors[name].values.astype(self.dtype), tensors[name].places, shape) for name, shape in shapes.items()
        }
        self.masks = {name: _support(tensors[name], shape) for name, shape in shapes.items() if name in self.layout.masked}
        self.version, self.mask_version, self.is_new = payload.model_version, payload.mask_version, True

    def _add(self, payload: Payload) -> None:
        if not self.base:
            raise CodecError("the device holds no model that a delta could follow: it needs the whole model first")
        _expect(payload.model_version, self.version + 1, "model")
        _expect(payload.mask_version, self.mask_version, "mask")
        for name, tensor in payload.tensors.items():
            self.base[name].reshape(-1)[tensor.places] += tensor.values.astype(self.dtype)
        self.version = payload.model_version

    def _redo(self, payload: Payload) -> None:
        """A mask update whose growth is drawn here as it was at the server."""
        _expect(payload.mask_version, self.mask_version + 1, "mask")
        scheme = self.config.method.scheme(self.config.task_epochs, self.config.seed)
        self.masks = scheme.redo(
            self.masks, self._dropped_from(), MaskUpdate(payload.mask_version, payload.kind, _places(payload, self.masks))
        )
        self.mask_version = payload.mask_version

    def _flip(self, payload: Payload) -> None:
        """One half of a mask update that names every place: `drop` first, then `add`."""
        is_drop = payload.kind == "drop"
        _expect(payload.mask_version, self.mask_version + is_drop, "mask")
        places, masks = _places(payload, self.masks), {}
        for name, mask in self.masks.items():
            masks[name] = mask.copy()
            masks[name].reshape(-1)[places[name]] = not is_drop
        self.masks = masks
        for state in self._dropped_from():
            apply_masks_(state, masks)
        self.mask_version, self.awaits_growth = payload.mask_version, is_drop

    def _dropped_from(self) -> list[State]:
        """What becomes 0 at places that a mask update drops."""
        self.surviving = self.surviving or {name: np.ones(mask.shape, dtype=bool) for name, mask in self.masks.items()}
        return [self.base, self.surviving]


def _expect(got: int, wanted: int, what: str) -> None:
    if got != wanted:
        raise CodecError(f"payload brings {what} version {got} where {wanted} must follow")


def _expect_all(payload: Payload, names: Iterable[str]) -> None:
    if missing := [name for name in names if name not in payload.tensors]:
        raise CodecError(f"payload {payload.kind!r} leaves out {missing[0]}")


def _places(payload: Payload, masks: Masks) -> dict[str, np.ndarray]:
    _expect_all(payload, masks)
    return {name: payload.tensors[name].places for name in masks}


def _support(tensor: SparseTensor, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask.reshape(-1)[tensor.places] = True
    return mask


_WHOLE = bytes([codec.KINDS.index("whole")])
