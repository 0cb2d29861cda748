"""Who could be in a round, as a selection policy sees them; and draws from them by weight."""

import math
from dataclasses import dataclass

import numpy as np

TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """The n devices that could be in a round, as the server knows them.

    Attributes:
        devices: [n] int64, numbers, ascending, none twice.
        samples: [n] int64, what each would train on.
        seconds: [n] float, estimated duration of its round; infinite if it would never end.
        charge: [n] float, state of charge in [0, 1]; 1 for a device on the mains.
        loss: [n] float, mean training loss of its last round; NaN: never trained.
        last_round: [n] int64, the round it last trained in, from 1; 0: never.
        server_round: the round that they are to be chosen for, from 1.
        deadline_s: how long it may take, from its start, in virtual seconds.

    Raises:
        ValueError: if the arrays do not fit each other, devices are not in ascending order, or a value cannot be.
    """

    devices: np.ndarray
    samples: np.ndarray
    seconds: np.ndarray
    charge: np.ndarray
    loss: np.ndarray
    last_round: np.ndarray
    server_round: int = 1
    deadline_s: float = math.inf

    def __post_init__(self):
        shapes = {name: column.shape for name, column in vars(self).items() if name not in ("server_round", "deadline_s")}
        if set(shapes.values()) != {(len(self.devices),)}:
            raise ValueError(f"the columns of the candidates have shapes {shapes}: they must be [n], all of the same length")
        if not (np.diff(self.devices) > 0).all():
            raise ValueError("candidates must be in ascending order of their devices, and none twice")
        for name in ("samples", "seconds", "last_round"):
            if not (getattr(self, name) >= 0).all():  # also refuses NaN
                raise ValueError(f"{name} of a candidate is negative or NaN: give an estimate of at least 0")
        if not ((self.charge >= 0) & (self.charge <= 1)).all():
            raise ValueError("charge of a candidate is not in [0, 1]: it is a share of the full battery, 1 for a device on the mains")

    def __len__(self) -> int:
        return len(self.devices)


def draw_by_weight(rows: np.ndarray, weights: np.ndarray, noise: np.ndarray, size: int) -> np.ndarray:
    """`size` of `rows` without replacement, by weight w: the lowest of E / w, E exponential, as if drawn one after another in proportion to
    w among those that are left (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006). Weight 0 comes last, in
    random order; ties go to the lower device.

    Args:
        rows: which candidates, ascending.
        weights, noise: [n] of all candidates; noise is exponential, one draw each.
    """
    with np.errstate(divide="ignore"):
        keys = np.log(np.maximum(noise[rows], TINY)) - np.log(weights[rows])
    return rows[np.lexsort((noise[rows], keys))[:size]]
