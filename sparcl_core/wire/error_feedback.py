"""How updates are put on the wire: the form of their values, how much of them is sent, and what happens to the rest.

Error feedback (Seide et al. 2014; Karimireddy et al. 2019): what a lossy code loses is kept by the sender, added to the next
update, and so reaches the other side in the end. A device keeps its residual, the server the one of the broadcast.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from sparcl_core.codec import LOSSLESS, SIGNED, Quantised, Reference, SparseTensor, Values, quantise
from sparcl_core.sparsity.masks import highest

WEIGHT_FORMS = ("f64", "f32", "f16", "bf16", "int8", "int6", "int4")
IMPORTANCE_FORMS = ("f64", "f32", "u8", "u4", "votes")


@dataclass(frozen=True)
class WireConfig:
    """Settings of the wire.

    Attributes:
        up, down: form of the values of updates from and to devices: f64 and f32 lose nothing; f16, bf16, int8, int6, int4 do.
        rounding: to integers, `nearest` or `stochastic` (seeded).
        block: places of a tensor that share a scale of integer forms; 0: the whole tensor does.
        up_share: share of a tensor's places (active weights, or all of a dense tensor) that an update may send, largest first
            (top-k); 1 sends whatever changed.
        importance: what devices report for a shared mask's update: the importance of every active weight in the given form,
            or `votes`, the places that they would drop.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "wire.up=int8|int6|int4 or wire.down=int8|int6|int4": ("rounding", "block"),
        "sparsity": ("importance",),
    }
    up: Literal["f64", "f32", "f16", "bf16", "int8", "int6", "int4"] = "int6"
    down: Literal["f64", "f32", "f16", "bf16", "int8", "int6", "int4"] = "int8"
    rounding: Literal["nearest", "stochastic"] = "nearest"
    block: int = 0
    up_share: float = 1.0
    importance: Literal["f64", "f32", "u8", "u4", "votes"] = "votes"

    def __post_init__(self):
        forms = {"up": WEIGHT_FORMS, "down": WEIGHT_FORMS, "importance": IMPORTANCE_FORMS, "rounding": ("nearest", "stochastic")}
        for name, known in forms.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}: take one of {', '.join(known)}")
        if self.block < 0:
            raise ValueError(f"block is {self.block}: places per scale, or 0 for one scale per tensor")
        if not 0 < self.up_share <= 1:
            raise ValueError(f"up_share is {self.up_share}: a share in (0, 1]; 1 sends whatever changed")


@dataclass(frozen=True)
class CodedUpdate:
    """What of one tensor is sent, and what is not: `residual`, in the shape and dtype of what was given."""

    coded: Quantised
    residual: np.ndarray


def code_update(
    delta: np.ndarray,
    residual: np.ndarray | None,
    reference: Reference,
    form: Values,
    *,
    name: str,
    rng: np.random.Generator | None = None,
    block: int = 0,
    share: float = 1.0,
) -> CodedUpdate:
    """Code `delta` plus what is left from before.

    Args:
        delta: the change, any shape; 0 outside the reference set.
        residual: same shape, what was not sent so far; None: nothing.
        reference: the places that may be sent.
        rng, block: see `codec.quantise`.
        share: top-k, share of the reference set.

    Of float forms only what changed is sent, or under top-k the largest; of integer forms everything whose code is not 0.
    """
    flat, before = delta.reshape(-1), None if residual is None else residual.reshape(-1)
    if reference.places is None:
        sent = code_active(flat, before, reference, form, name=name, rng=rng, block=block, share=share)
        return CodedUpdate(sent.coded, sent.residual.reshape(delta.shape))
    some = None if before is None else before[reference.places]
    sent = code_active(flat[reference.places], some, reference, form, name=name, rng=rng, block=block, share=share)
    left = flat.copy() if before is None else flat + before
    left[reference.places] = sent.residual
    return CodedUpdate(sent.coded, left.reshape(delta.shape))


def code_active(
    delta: np.ndarray,
    residual: np.ndarray | None,
    reference: Reference,
    form: Values,
    *,
    name: str,
    rng: np.random.Generator | None = None,
    block: int = 0,
    share: float = 1.0,
) -> CodedUpdate:
    """`code_update` of vectors over the reference set: `delta`, `residual` and what is left, each [reference.total]."""
    wanted = delta if residual is None else delta + residual
    changed = delta if residual is not None and form not in SIGNED and share == 1 else wanted
    ranks = np.flatnonzero(changed)
    keep = max(1, int(np.ceil(share * reference.total)))
    if ranks.size > keep:
        ranks = ranks[highest(np.abs(changed[ranks]), keep)]
    coded = quantise(SparseTensor(reference.at(ranks), wanted[ranks], ranks), reference, form, name, rng=rng, block=block)
    left = wanted.copy()
    left[coded.ranks] -= coded.values.astype(left.dtype)
    return CodedUpdate(coded, left)


def statistics_form(form: Values) -> Values:
    """The form of running statistics: coarse integers could turn a variance negative; bf16's error is relative."""
    return form if form in LOSSLESS else "bf16"
