"""`receive`: the payloads of an instruction, applied to what a device holds."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from client.config import ClientConfig
from client.state import DeviceState
from sparcl_core import codec, tdm
from sparcl_core.codec import CodecError, Layout, Payload, SparseTensor
from sparcl_core.masks import Masks, State, apply_masks_
from sparcl_core.models import fresh_statistics


def receive(device: DeviceState, payloads: Iterable[bytes], whole: Layout, config: ClientConfig) -> DeviceState:
    """The device after applying `payloads` in sequence.

    Args:
        whole: layout of the whole model, statistics included.

    Raises:
        CodecError: if a payload is damaged or does not follow the version that the device holds.
    """
    held = _Held(device, whole, config)
    for raw in payloads:
        held.apply(codec.decode(raw, held.layout, held.masks))
    if not held.version:
        raise CodecError("the device holds no model and the instruction brings none")
    if held.awaits_growth:
        raise CodecError("a mask update drops weights and adds none: its second half is missing")
    return replace(device, base=held.base, residual=held.residual, masks=held.masks, version=held.version, mask_version=held.mask_version)


class _Held:
    """What a device holds while payloads are applied: copies."""

    def __init__(self, device: DeviceState, whole: Layout, config: ClientConfig):
        self.config, self.layout = config, config.layout(whole)
        self.dtype = np.dtype(config.method.model.dtype)
        self.base: State = {name: value.copy() for name, value in device.base.items()}
        self.residual: State = {name: value.copy() for name, value in device.residual.items()}
        self.masks, self.version, self.mask_version = device.masks, device.version, device.mask_version
        self.awaits_growth = False
        self._own = {name: whole.shapes[name] for name in whole.shapes if name not in self.layout.shapes}

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
        own = {name: self.base[name] for name in self._own if name in self.base} or fresh_statistics(self._own, self.dtype)
        self.base = {name: _scatter(tensors[name], shape, self.dtype) for name, shape in shapes.items()} | own
        self.residual = {name: np.zeros(shape, self.dtype) for name, shape in shapes.items()}
        self.masks = {name: _support(tensors[name], shape) for name, shape in shapes.items() if name in self.layout.masked}
        self.version, self.mask_version = payload.model_version, payload.mask_version

    def _add(self, payload: Payload) -> None:
        _expect(payload.model_version, self.version + 1, "model")
        _expect(payload.mask_version, self.mask_version, "mask")
        for name, tensor in payload.tensors.items():
            self.base[name].reshape(-1)[tensor.places] += tensor.values.astype(self.dtype)
        self.version = payload.model_version

    def _redo(self, payload: Payload) -> None:
        """A mask update whose growth is drawn here as it was at the server."""
        _expect(payload.mask_version, self.mask_version + 1, "mask")
        method = self.config.method
        update = tdm.MaskUpdate(payload.mask_version, payload.kind, _places(payload, self.masks))
        states = [self.base, self.residual]
        self.masks = tdm.update_masks(self.masks, states, update, method.tdm, method.sparsity, self.config.seed)
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
        for state in (self.base, self.residual):
            apply_masks_(state, masks)
        self.mask_version, self.awaits_growth = payload.mask_version, is_drop


def _expect(got: int, wanted: int, what: str) -> None:
    if got != wanted:
        raise CodecError(f"payload brings {what} version {got} where {wanted} must follow")


def _expect_all(payload: Payload, names: Iterable[str]) -> None:
    if missing := [name for name in names if name not in payload.tensors]:
        raise CodecError(f"payload {payload.kind!r} leaves out {missing[0]}")


def _places(payload: Payload, masks: Masks) -> dict[str, np.ndarray]:
    _expect_all(payload, masks)
    return {name: payload.tensors[name].places for name in masks}


def _scatter(tensor: SparseTensor, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    array = np.zeros(shape, dtype)
    array.reshape(-1)[tensor.places] = tensor.values
    return array


def _support(tensor: SparseTensor, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask.reshape(-1)[tensor.places] = True
    return mask
