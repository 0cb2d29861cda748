"""A part of the server's state as named arrays, so that all of it fits into one file, and back. No pickle, no object arrays.

A snapshot is a dict of arrays whose names are paths: `weights/conv1.weight`. Every class that changes from round to round has
`snapshot()` and `restore(snapshot)`; this module has what they share. Taking one copies nothing that is an array already, and the
next round changes those arrays in place: write it before that. Restoring copies, bit for bit.
"""

from collections.abc import Iterable

import numpy as np

from sparcl_core.codec import Encoded, Sizes
from sparcl_core.sparsity.masks import State

Snapshot = dict[str, np.ndarray]


def under(part: str, arrays: Snapshot) -> Snapshot:
    """The arrays, named as `part/NAME`."""
    return {f"{part}/{name}": array for name, array in arrays.items()}


def within(part: str, snapshot: Snapshot) -> Snapshot:
    """The inverse of `under`: the arrays of `part`, by their own names."""
    start = f"{part}/"
    return {name.removeprefix(start): array for name, array in snapshot.items() if name.startswith(start)}


def same_model(part: str, snapshot: Snapshot, fresh: State) -> State:
    """Copies of the arrays of `part`, in the order of `fresh`, which they stand in for.

    Raises:
        ValueError: if names, shapes or types are not those of `fresh`.
    """
    found = within(part, snapshot)
    kinds, wanted = ({name: (array.dtype.name, array.shape) for name, array in state.items()} for state in (found, fresh))
    if kinds != wanted:
        name = min(name for name in kinds.keys() | wanted.keys() if kinds.get(name) != wanted.get(name))
        raise ValueError(
            f"{part}/{name} is {kinds.get(name, 'not there')} in the snapshot and {wanted.get(name, 'not there')} in this run: "
            f"it was made by another experiment; resume it with its own"
        )
    return {name: found[name].copy() for name in fresh}


def in_order(names: Iterable[str], found: Snapshot) -> State:
    """Copies of the arrays in the order of `names`: sums over a dict depend on its order. Names without an array are left out."""
    return {name: found[name].copy() for name in names if name in found}


def pack(payloads: list[Encoded]) -> Snapshot:
    """Payloads as arrays. lengths: [n] int64, bytes of each; sizes: [n, kinds] int64, what they are for; data: [sum] uint8."""
    kinds = list(vars(Sizes()))
    return {
        "lengths": np.array([len(payload) for payload in payloads], np.int64),
        "sizes": np.array([[getattr(payload.sizes, kind) for kind in kinds] for payload in payloads], np.int64).reshape(-1, len(kinds)),
        "data": np.frombuffer(b"".join(payload.data for payload in payloads), np.uint8),
    }


def unpack(arrays: Snapshot) -> list[Encoded]:
    """The inverse of `pack`."""
    data, ends = arrays["data"].tobytes(), np.cumsum(arrays["lengths"])
    columns = (ends - arrays["lengths"], ends, arrays["sizes"])
    return [Encoded(data[start:end], Sizes(*sizes)) for start, end, sizes in zip(*(column.tolist() for column in columns), strict=True)]
