"""The devices of a fleet as hardware: which profile each has, and where its figures differ from it.

A figure of a device is its own where one is stated, else that of its profile times its factor (1 where there is none). A fleet may have a
million devices, so all of this is arrays, and a `DeviceProfile` is made only for a device that is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from sparcl_core.costs.device import DeviceProfile

FIGURES = tuple(field.name for field in fields(DeviceProfile) if field.name != "name")


@dataclass(frozen=True, eq=False)
class Hardware:
    """The profiles of all devices, numbered from 0.

    Attributes:
        kinds: the profiles that there are.
        kind: [N] int64, which of them each device has.
        factors: figure -> [N] float64, finite and above 0, by which that of its profile is multiplied.
        own: figure -> [N] float64, SI units, finite and not negative: what it is on this device, whatever profile and factor say; NaN: not
            stated.

    Raises:
        ValueError: if the arrays do not fit each other, a number is out of its range, or a figure is none.
    """

    kinds: tuple[DeviceProfile, ...]
    kind: np.ndarray
    factors: Mapping[str, np.ndarray] = field(default_factory=dict)
    own: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        if self.kind.ndim != 1 or self.kind.dtype.kind not in "iu":
            raise ValueError(f"kinds of devices are {self.kind.dtype} {self.kind.shape}: they must be a list of integers")
        if len(self.kind) and not 0 <= self.kind.min() <= self.kind.max() < len(self.kinds):
            raise ValueError(f"kinds of devices go from {self.kind.min()} to {self.kind.max()}: there are only 0 to {len(self.kinds) - 1}")
        for figure, factor in self.factors.items():
            _known(figure)
            if factor.shape != self.kind.shape or not (np.isfinite(factor) & (factor > 0)).all():
                raise ValueError(f"the factors of {figure} must be {len(self.kind)} finite numbers above 0")
        for figure, own in self.own.items():
            _known(figure)
            if own.shape != self.kind.shape or not (np.isnan(own) | np.isfinite(own) & (own >= 0)).all():
                raise ValueError(
                    f"the devices' own {figure} must be {len(self.kind)} finite numbers that are not negative, or NaN for none"
                )

    @classmethod
    def alike(cls, profile: DeviceProfile, count: int) -> "Hardware":
        """`count` devices of one profile."""
        return cls((profile,), np.zeros(count, np.int64))

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, device: int) -> DeviceProfile:
        """The profile of one device."""
        profile = self.kinds[self.kind[device]]
        figures = {figure: getattr(profile, figure) * float(factor[device]) for figure, factor in self.factors.items()}
        figures |= {figure: float(own[device]) for figure, own in self.own.items() if not np.isnan(own[device])}
        return replace(profile, **figures) if figures else profile

    def column(self, figure: str) -> np.ndarray:
        """[N] float64: one figure of all devices.

        Raises:
            ValueError: if it is no figure of a profile.
        """
        _known(figure)
        values = np.array([getattr(profile, figure) for profile in self.kinds], np.float64)[self.kind]
        if figure in self.factors:
            values = values * self.factors[figure]
        return np.where(np.isnan(self.own[figure]), values, self.own[figure]) if figure in self.own else values


def _known(figure: str) -> None:
    if figure not in FIGURES:
        raise ValueError(f"{figure!r} is no figure of a profile; there are {', '.join(FIGURES)}")
