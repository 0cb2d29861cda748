"""Layers whose weights are a vector over their active places, batch-last in memory; those between them are in `between`.

A tensor between layers has its usual shape [B, C, H, W] or [B, F]; only its strides say that samples lie innermost. So the forward
code of a model stays as it is: sums, ReLU and flatten keep the layout, and a layer that does not know it (softmax, a dense classifier)
reads it by strides. `convert.py` puts these layers into a model and takes them out again.

A sparse layer's `state_dict` is the dense layer's: `weight`, with zeros at inactive places.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparcl_core.kernels import native
from sparcl_core.kernels.between import BatchNorm
from sparcl_core.kernels.connections import Connections
from sparcl_core.kernels.operations import Convolve, ForkConvolve, Layer, NormConvolve, batch_first, batch_last, supported


class Sparse(nn.Module):
    """What sparse convolutions and linear layers share.

    Attributes:
        values: Parameter [active weights], float32 or float64, in the order of their flat indices.
        places: int64 [active weights], the flat indices; a buffer that is no part of the state.
        weight_shape: of the dense weight.
    """

    is_connected = False
    _mask: np.ndarray | None = None

    def __init__(self, dense: nn.Conv2d | nn.Linear, mask: np.ndarray):
        """`dense`: its weight is read at `mask`, its bias is kept.

        Raises:
            ValueError: if the mask has another shape than the weight.
        """
        super().__init__()
        self.weight_shape = tuple(dense.weight.shape)
        self.bias = dense.bias
        self.is_channels_last = dense.weight.dim() == 4 and dense.weight.is_contiguous(memory_format=torch.channels_last)
        self.values = nn.Parameter(torch.empty(0, dtype=dense.weight.dtype))
        self.register_buffer("places", torch.empty(0, dtype=torch.int64), persistent=False)
        self.set_mask(mask)
        self.load_dense_(dense.weight)
        self.train(dense.training)

    def set_mask(self, mask: np.ndarray) -> None:
        """Make `mask` (bool, the weight's shape) the layer's mask; a weight that stays keeps its value, a new one is 0."""
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            found = f"{mask.dtype} numbers" if isinstance(mask, np.ndarray) else f"a {type(mask).__name__}"
            raise ValueError(f"the mask is {found}: take a NumPy array of bool, as `weight.numpy() != 0` gives")
        if mask.shape != self.weight_shape:
            raise ValueError(f"the mask has shape {mask.shape}: the weight's is {self.weight_shape}")
        self.set_updated(None)
        if mask is self._mask and not mask.flags.writeable:  # devices share masks
            return
        self._mask = mask
        places = np.flatnonzero(mask)
        if self.is_connected and np.array_equal(places, self.places.numpy()):
            return
        if self.is_connected:
            flat = torch.zeros(mask.size, dtype=self.values.dtype)
            flat[self.places] = self.values.detach()
            values = flat[torch.from_numpy(places)]
        else:
            values = torch.zeros(places.size, dtype=self.values.dtype)
        self.is_connected = True
        self.values.data, self.values.grad = values, None
        self.places = torch.from_numpy(places)
        self._connect(places)

    @property
    def weight(self) -> Tensor:
        """For code that reads a layer's weight itself, as torch's transformer layers do where no gradients are wanted."""
        return self.dense()

    def set_updated(self, positions: np.ndarray | None) -> None:
        """Gradients are wanted at these positions of `values` only (int64, increasing); None: at all."""

    def _connect(self, places: np.ndarray) -> None:
        """Called with new places."""

    def dense(self) -> Tensor:
        """The weight [weight_shape] with zeros at inactive places: a new tensor, through which gradients flow to `values`."""
        flat = torch.zeros(int(np.prod(self.weight_shape)), dtype=self.values.dtype)
        return flat.index_copy(0, self.places, self.values).view(self.weight_shape)

    @torch.no_grad()
    def load_dense_(self, weight: Tensor) -> None:
        """Take the active weights from `weight`."""
        self.values.copy_(weight.detach().reshape(-1).index_select(0, self.places))

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "weight"] = self.dense() if keep_vars else self.dense().detach()  # first, as in the dense layer
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "values"]

    def _load_from_state_dict(self, state_dict, prefix, *arguments):
        _, strict, missing, _, errors = arguments
        weight, values = state_dict.get(prefix + "weight"), self.values.detach()
        if weight is None:
            missing += [prefix + "weight"] if strict else []
        elif tuple(weight.shape) != self.weight_shape:
            errors.append(f"size mismatch for {prefix}weight: {tuple(weight.shape)} in the state, {self.weight_shape} in the model")
        else:
            values = weight.detach().reshape(-1).index_select(0, self.places)
        state_dict = {name: value for name, value in state_dict.items() if name != prefix + "weight"} | {prefix + "values": values}
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __copy__(self) -> "Sparse":
        """A deep copy: a shallow one would share a vector of weights, and not the places that say which they are."""
        return copy.deepcopy(self)

    def extra_repr(self) -> str:
        return f"{self.weight_shape}, {self.values.numel()} active"


class KernelMixin:
    """A sparse layer that runs on the C kernels. float32 only.

    Copies and pickles carry weights and mask; lists are made where they arrive.
    """

    def __getstate__(self) -> dict:
        own = {name: value for name, value in self.__dict__.items() if name not in ("connections", "layer")}
        return own | {"updated": self.connections.updated}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({name: value for name, value in state.items() if name != "updated"})
        self._connect(self.places.numpy())
        self.connections.update(state["updated"])

    def _connect(self, places: np.ndarray) -> None:
        outs, channels, *kernel = (*self.weight_shape, 1, 1)[:4]
        self.connections = Connections((outs, channels, *kernel), places, native.vector_floats())
        self.layer = Layer(self.connections, getattr(self, "stride", (1, 1)), getattr(self, "pad", (0, 0)))

    def set_updated(self, positions: np.ndarray | None) -> None:
        if self.is_connected:
            self.connections.update(positions)

    def convolve(self, x: Tensor) -> Tensor:
        """x [C, H, W, B] -> [O, H', W', B]."""
        return Convolve.apply(x, self.values, self.bias, self.layer)


class SparseConv2d(KernelMixin, Sparse):
    """[B, C, H, W] -> [B, O, H', W'], batch-last in memory."""

    def __init__(self, dense: nn.Conv2d, mask: np.ndarray):
        self.stride, self.pad = supported(dense)
        super().__init__(dense, mask)

    def __setattr__(self, name, value):  # stride and padding are known before Module.__init__, which connects
        object.__setattr__(self, name, value) if name in ("stride", "pad") else super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return batch_first(self.convolve(batch_last(x)))

    def fork(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """self(x), and x for a shortcut that ends in a `BatchNorm.activate`; their gradients become one without a further tensor."""
        out, same = ForkConvolve.apply(batch_last(x), self.values, self.bias, self.layer)
        return batch_first(out), batch_first(same)

    def behind(self, norm: BatchNorm, x: Tensor) -> Tensor:
        """self(relu(norm(x))), where what lies in between is not stored."""
        inner = batch_last(x)
        found = norm.observe(inner)
        return batch_first(NormConvolve.apply(inner, norm.weight, norm.bias, self.values, self.bias, found, self.layer))


class SparseLinear(KernelMixin, Sparse):
    """[B, F] -> [B, O], batch-last in memory; of tokens, [B, T, F] -> [B, T, O], each is a sample."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.convolve(batch_last(x.flatten(0, -2))).flatten(1).t()
        return out.unflatten(0, x.shape[:-1]) if x.dim() > 2 else out


class MaskedConv2d(Sparse):
    """The dense twin of `SparseConv2d`: PyTorch's convolution with a weight that is zero at inactive places."""

    in_bf16 = False  # the product in bfloat16: faster on some machines, other results

    def __init__(self, dense: nn.Conv2d, mask: np.ndarray):
        if dense.padding_mode != "zeros":
            raise ValueError(f"{dense}: a sparse convolution is padded with zeros")
        super().__init__(dense, mask)
        self.geometry = dense.stride, dense.padding, dense.dilation, dense.groups

    def forward(self, x: Tensor) -> Tensor:
        weight = self.dense().contiguous(memory_format=torch.channels_last)
        if not self.in_bf16:
            return F.conv2d(x, weight, self.bias, *self.geometry)
        bias = None if self.bias is None else self.bias.bfloat16()
        return F.conv2d(x.bfloat16(), weight.bfloat16(), bias, *self.geometry).to(x.dtype)


class MaskedLinear(Sparse):
    """The dense twin of `SparseLinear`."""

    in_bf16 = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.in_bf16:
            return F.linear(x, self.dense(), self.bias)
        bias = None if self.bias is None else self.bias.bfloat16()
        return F.linear(x.bfloat16(), self.dense().bfloat16(), bias).to(x.dtype)
