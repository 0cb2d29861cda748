"""Arrays that a method sends beside the model's update, or receives beside the model, as a payload of their own: lossless, with a checksum.

Both sides know names and shapes before a byte is sent. An array that bears the name of a sparse tensor of the model, behind its prefix,
crosses over the active places of that tensor alone, as its update does: a place that has been dropped since is 0 on the other side.
"""

from dataclasses import dataclass

import numpy as np

from sparcl_core import codec
from sparcl_core.codec import CodecError, Encoded, Layout, SparseTensor
from sparcl_core.sparsity.masks import Masks

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Channel:
    """What crosses one way.

    Attributes:
        layout: of the arrays, named PREFIX/NAME.
        dtype: of all of them, that of the model: float32 or float64.
        labels: names of those that hold whole numbers from 0 to 255, which cross as such, and take a byte each where they are kept.
    """

    layout: Layout
    dtype: str
    labels: frozenset[str] = frozenset()

    @classmethod
    def of(cls, shapes: dict[str, tuple[int, ...]], model: Layout, dtype: str, labels: frozenset[str] = frozenset()) -> "Channel":
        """A channel for arrays of these shapes, beside a model of layout `model`."""
        masked = {name for name, shape in shapes.items() if _tensor(name) in model.masked and shape == model.shapes[_tensor(name)]}
        return cls(Layout(shapes, frozenset(masked)), dtype, labels)

    def __bool__(self) -> bool:
        return bool(self.layout.shapes)

    def held_bytes(self, active: dict[str, int]) -> int:
        """What the arrays take on a device with `active` weights in each sparse tensor of the model."""
        layout, itemsize = self.layout, np.dtype(self.dtype).itemsize
        places = {name: active[_tensor(name)] if name in layout.masked else layout.size(name) for name in layout.shapes}
        return sum(count * (1 if name in self.labels else itemsize) for name, count in places.items())

    def encode(self, arrays: Arrays, masks: Masks, version: int) -> Encoded:
        """`arrays` as bytes; those of sparse tensors as far as `masks` go. `version`: of the model that they belong to.

        Raises:
            ValueError: if they are others than the layout's, or hold a value that is not finite, or no label.
        """
        if (found := {name: value.shape for name, value in arrays.items()}) != self.layout.shapes:
            raise ValueError(f"arrays to send have shapes {found}: {self.layout.shapes} are wanted")
        form, named, coded = "f64" if self.dtype == "float64" else "f32", self._named(masks), {}
        for name in self.layout.shapes:
            value = arrays[name]
            over, flat = codec.reference(codec.AUXILIARY, self.layout, name, named), value.reshape(-1)
            places = np.flatnonzero(flat) if over.places is None else over.places[flat[over.places] != 0]
            tensor = SparseTensor(places, flat[places])
            coded[name] = codec.labelled(tensor, over, name) if name in self.labels else codec.quantise(tensor, over, form, name)
        return codec.encode(codec.AUXILIARY, self.layout, coded, model_version=version, mask_version=0)

    def decode(self, data: bytes, masks: Masks, version: int) -> tuple[Arrays, codec.Sizes]:
        """The inverse of `encode`, and what the bytes are for.

        Raises:
            CodecError: if anything about `data` is wrong.
        """
        payload = codec.decode(data, self.layout, self._named(masks))
        if payload.kind != codec.AUXILIARY or payload.model_version != version:
            raise CodecError(
                f"payload {payload.kind!r} of version {payload.model_version}: auxiliary arrays of version {version} were expected"
            )
        arrays = {}
        for name, shape in self.layout.shapes.items():
            if name not in payload.tensors:
                raise CodecError(f"the auxiliary arrays leave out {name}")
            arrays[name] = np.zeros(shape, self.dtype)
            arrays[name].reshape(-1)[payload.tensors[name].places] = payload.tensors[name].values
        return arrays, payload.sizes

    def within(self, arrays: Arrays, masks: Masks) -> Arrays:
        """The same, those of sparse tensors 0 where `masks` have no weight; others are the same objects."""
        named = self._named(masks)
        return {name: np.where(named[name], value, 0).astype(value.dtype) if name in named else value for name, value in arrays.items()}

    def _named(self, masks: Masks) -> Masks:
        return {name: masks[_tensor(name)] for name in self.layout.masked}


def _tensor(name: str) -> str:
    """The name without its prefix."""
    return name.partition("/")[2]
