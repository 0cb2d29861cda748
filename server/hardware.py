"""The devices of a fleet as hardware: which profile each has, and by how much its figures differ from it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from sparcl_core.costs import DeviceProfile

FIGURES = tuple(field.name for field in fields(DeviceProfile) if field.name != "name")


@dataclass(frozen=True, eq=False)
class Hardware:
    """The profiles of all devices, numbered from 0. Nothing is made for a device that is not asked for.

    Attributes:
        kinds: the profiles that there are.
        kind: [N] int64, which of them each device has.
        factors: figure -> [N] float64, by which that of its profile is multiplied; figures left out are as in the profile.

    Raises:
        ValueError: if the arrays do not fit each other, or a factor is of no figure.
    """

    kinds: tuple[DeviceProfile, ...]
    kind: np.ndarray
    factors: Mapping[str, np.ndarray]

    def __post_init__(self):
        if self.kind.ndim != 1 or len(self.kind) and not 0 <= self.kind.min() <= self.kind.max() < len(self.kinds):
            raise ValueError(f"kinds of devices must be a list of numbers from 0 to {len(self.kinds) - 1}")
        for figure, factor in self.factors.items():
            if figure not in FIGURES:
                raise ValueError(f"{figure!r} is no figure of a profile; there are {', '.join(FIGURES)}")
            if factor.shape != self.kind.shape or not (factor >= 0).all():
                raise ValueError(f"the factors of {figure} must be {len(self.kind)} numbers that are not negative")

    @classmethod
    def alike(cls, profile: DeviceProfile, count: int) -> "Hardware":
        """`count` devices of one profile."""
        return cls((profile,), np.zeros(count, np.int64), {})

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, device: int) -> DeviceProfile:
        """The profile of one device."""
        profile = self.kinds[self.kind[device]]
        own = {figure: getattr(profile, figure) * float(factor[device]) for figure, factor in self.factors.items()}
        return replace(profile, **own) if own else profile

    def column(self, figure: str) -> np.ndarray:
        """[N] float64: one figure of all devices."""
        values = np.array([getattr(profile, figure) for profile in self.kinds], np.float64)[self.kind]
        return values * self.factors[figure] if figure in self.factors else values
