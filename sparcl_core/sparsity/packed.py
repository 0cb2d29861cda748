"""A network as named arrays that take what they must: of a masked tensor its active weights and one bit per place, all others whole.

For whoever keeps a second network beside the one that is trained, as a teacher. The names are the tensors', behind a prefix.
"""

from collections.abc import Mapping

import numpy as np

from sparcl_core.sparsity.masks import Masks, State

BITS = "/mask"  # behind the name of a masked tensor: one bit per place


def pack(state: State, masks: Masks, prefix: str = "") -> dict[str, np.ndarray]:
    """Copies of the tensors of `state`: [active] of one that has a mask, and beside it ceil(size / 8) uint8."""
    arrays = {}
    for name, value in state.items():
        if name in masks:
            arrays[prefix + name] = value[masks[name]]
            arrays[prefix + name + BITS] = np.packbits(masks[name])
        else:
            arrays[prefix + name] = value.copy()
    return arrays


def unpack(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> tuple[State, Masks]:
    """The inverse of `pack`; `shapes`: of all tensors, by name. Tensors that have no mask are not copied."""
    state, masks = {}, {}
    for name, shape in shapes.items():
        value, bits = arrays[prefix + name], arrays.get(prefix + name + BITS)
        if bits is None:
            state[name] = value
            continue
        masks[name] = np.unpackbits(bits, count=int(np.prod(shape))).view(bool).reshape(shape)
        state[name] = np.zeros(shape, value.dtype)
        state[name][masks[name]] = value
    return state, masks
