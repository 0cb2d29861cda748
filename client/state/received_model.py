"""Model: what a broadcast version is, the same on all devices that hold it. Made once per process, shared, never written to."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from client.state import array_bytes, packing
from sparcl_core.codec import Reference
from sparcl_core.sparsity.masks import Masks, State, count_active


@dataclass(frozen=True, eq=False)
class Model:
    """A model as received. Its arrays are made read-only: many devices share them.

    Attributes:
        base: w^ of `version`, every tensor that crosses the wire; empty before anything was received.
        masks: weight masks of `mask_version`.
    """

    base: State
    masks: Masks
    version: int = 0
    mask_version: int = 0

    def __post_init__(self):
        for array in (*self.base.values(), *self.masks.values()):
            array.flags.writeable = False

    @cached_property
    def references(self) -> dict[str, Reference]:
        """The places that a delta or importance of each tensor is counted over: active ones, or all of a dense tensor."""
        active = {name: np.flatnonzero(mask) for name, mask in self.masks.items()}
        return {
            name: Reference(active[name].size, active[name]) if name in active else Reference(value.size)
            for name, value in self.base.items()
        }

    @cached_property
    def active(self) -> dict[str, int]:
        """Active weights per masked tensor."""
        return count_active(self.masks)

    @cached_property
    def saved(self) -> bytes:
        """The model as bytes, the same for all devices that hold this version. Active places of masked tensors, and masks as bits."""
        if not self.version:
            return b""
        packed = [packing.pack(value, self.references[name].places) for name, value in self.base.items()]
        head = {
            "versions": [self.version, self.mask_version],
            "names": list(self.base),
            "shapes": [list(value.shape) for value in self.base.values()],
            "dtype": next(iter(self.base.values())).dtype.str,
            "forms": "".join(form for form, _ in packed),
            "masked": list(self.masks),
        }
        masks = [np.packbits(mask) for mask in self.masks.values()]
        return array_bytes.write(head, [*masks, *(array for _, arrays in packed for array in arrays)])


NO_MODEL = Model({}, {})


def load_model(saved: bytes) -> Model:
    """The inverse of `Model.saved`; the bytes are kept as the model's own, and not made again.

    Raises:
        ValueError: if another release saved it, see `array_bytes.read`.
    """
    if not saved:
        return NO_MODEL
    head, found = array_bytes.read(saved)
    arrays, shapes, dtype = iter(found), dict(zip(head["names"], map(tuple, head["shapes"]), strict=True)), np.dtype(head["dtype"])
    masks = {}
    for name in head["masked"]:
        size = int(np.prod(shapes[name]))
        masks[name] = np.unpackbits(next(arrays), count=size).view(bool).reshape(shapes[name])
    base = {}
    for (name, shape), form in zip(shapes.items(), head["forms"], strict=True):
        places = np.flatnonzero(masks[name]) if name in masks else None
        base[name] = packing.unpack(form, arrays, shape=shape, dtype=dtype, places=places)
    model = Model(base, masks, *head["versions"])
    vars(model)["saved"] = saved
    return model
