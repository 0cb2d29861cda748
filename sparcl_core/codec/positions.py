"""Which of n places are meant: a subset of k as bytes, near its information content log2 C(n, k).

Forms, of which the smallest is taken: `none` and `all` (nothing to send), `bitmap` (one bit a place), `gaps` (entropy-coded
distances between the places), `holes` (the same for the places that are *not* meant: a gradient mask keeps most of the
active weights). Measured beside the bound in benchmarks/codec.py.
"""

import numpy as np

from sparcl_core.codec.parts import Coded, Part, Plain, cheapest

FORMS = ("none", "all", "bitmap", "gaps", "holes")


def encode(ranks: np.ndarray, total: int) -> tuple[str, Part | None]:
    """The cheapest form of the sorted `ranks` among `total` places, and what it sends."""
    if ranks.size == 0:
        return "none", None
    if ranks.size == total:
        return "all", None
    present = np.zeros(total, dtype=bool)
    present[ranks] = True
    options = {"bitmap": Plain(present, 1)}
    if ranks.size <= total // 2:
        options["gaps"] = _gaps(ranks)
    else:
        options["holes"] = _gaps(np.flatnonzero(~present))
    return cheapest(options)


def listed(form: str, count: int, total: int) -> int:
    """How many numbers the form codes for `count` places of `total`."""
    return {"none": 0, "all": 0, "bitmap": total, "gaps": count, "holes": total - count}[form]


def decode(form: str, numbers: np.ndarray | None, count: int, total: int) -> np.ndarray | None:
    """Ranks int64, or None if the numbers are no `count` places among `total`."""
    if form in ("none", "all"):
        return np.arange(count)
    if form == "bitmap":
        ranks = np.flatnonzero(numbers)
        return ranks if ranks.size == count else None
    ranks = np.cumsum(numbers, dtype=np.int64)
    ranks += np.arange(ranks.size)
    if ranks.size and ranks[-1] >= total:
        return None
    if form == "gaps":
        return ranks
    present = np.ones(total, dtype=bool)
    present[ranks] = False
    return np.flatnonzero(present)


def _gaps(ranks: np.ndarray) -> Coded:
    return Coded.of(np.diff(ranks, prepend=-1) - 1)
