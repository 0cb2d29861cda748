"""Settings of batteries, and a day of charging as stretches of constant power.

Charging power of device k with the charger or panel charge_w, at local time h of local day d:

- `none`: 0.  - `always`: charge_w.  - `windows`: charge_w from from_hour for `hours`, else 0.
- `solar`: charge_w sin(pi (h - sunrise) / (sunset - sunrise)) c between the two, else 0; c = 1 - clouds u, u uniform in [0, 1) for every
  (device, day). The half sine and the clouds are ours.

The sun is taken in equal steps of at most half an hour, each with the mean of the sine over it. So every charging power is constant
between two edges of the local day, and a day's sun is exact. Hours are rounded to whole seconds.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from server.fleet.local_time import DAY, MINUTE, check_daily_window, whole_seconds

CHARGING = ("none", "always", "windows", "solar")
SUN_STEP_S = 30 * MINUTE


@dataclass(frozen=True)
class EnergyConfig:
    """Settings of batteries; capacity, charger and idle power come from the device's profile, time zones from `[availability]`.

    Attributes:
        charging: `none`, `always`, `windows` or `solar`; the rules stand in the module's text.
        from_hour, hours: local time at which a device is plugged in, and for how long; read by `windows` only.
        sunrise_hour, sunset_hour: local time; read by `solar` only.
        clouds: the largest share of a day's sun that clouds may take, 0: a clear sky; read by `solar` only.
        start_level, start_spread: share of the capacity at time 0, uniform within start_level +- start_spread and cut to [0, 1].
        reserve: a device with less than this share declines to train; so does one whose battery is empty.
        daily_joules: what a device may spend on training and transfers in a local day; 0: as much as there is.
        drain_idle: whether a resting device draws idle_w from its battery.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "energy.charging=windows": ("from_hour", "hours"),
        "energy.charging=solar": ("sunrise_hour", "sunset_hour", "clouds"),
    }
    charging: Literal["none", "always", "windows", "solar"] = "always"
    from_hour: float = 22.0
    hours: float = 8.0
    sunrise_hour: float = 6.0
    sunset_hour: float = 18.0
    clouds: float = 0.5
    start_level: float = 1.0
    start_spread: float = 0.0
    reserve: float = 0.2
    daily_joules: float = 0.0
    drain_idle: bool = True

    def __post_init__(self):
        if self.charging not in CHARGING:
            raise ValueError(f"charging is {self.charging!r}: choose one of {', '.join(CHARGING)}")
        check_daily_window(self.from_hour, self.hours)
        if not 0 <= self.sunrise_hour <= 24 or not self.sunrise_hour + 1 / 60 <= self.sunset_hour <= 24:
            raise ValueError(
                f"sunrise_hour is {self.sunrise_hour} and sunset_hour is {self.sunset_hour}: "
                f"local times from 0 to 24, sunset a minute after sunrise or more"
            )
        for key in ("clouds", "start_level", "start_spread", "reserve"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} is {getattr(self, key)}: a share from 0 to 1; the default is {getattr(type(self), key)}")
        if not 0 <= self.daily_joules < math.inf:
            raise ValueError(f"daily_joules is {self.daily_joules}: finite and not negative; 0 sets no budget")


@dataclass(frozen=True, eq=False)
class DayPlan:
    """A day's charging as shares of charge_w. edges: [E] seconds after midnight; the rest [E + 1], by how many edges have passed."""

    edges: np.ndarray
    shares: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


def day_plan(config: EnergyConfig) -> DayPlan:
    """What is charged when; clouds are not in it, they differ by device and day."""
    if config.charging == "solar":
        sunrise, sunset = whole_seconds(config.sunrise_hour), whole_seconds(config.sunset_hour)
        steps = math.ceil((sunset - sunrise) / SUN_STEP_S)
        edges = [sunrise + (sunset - sunrise) * step // steps for step in range(steps + 1)]
        angle = [math.pi * (edge - sunrise) / (sunset - sunrise) for edge in edges]
        # the mean of sin over [a, b] is (cos a - cos b) / (b - a)
        sun = [(math.cos(a) - math.cos(b)) / (b - a) for a, b in zip(angle[:-1], angle[1:], strict=True)]
        return _plan(edges, [*sun, 0.0])
    start, length = whole_seconds(config.from_hour) % DAY, whole_seconds(config.hours)
    if config.charging == "windows" and length < DAY:
        return _plan(*zip(*sorted([(start, 1.0), ((start + length) % DAY, 0.0)]), strict=True))
    share = 0.0 if config.charging == "none" else 1.0
    return DayPlan(np.zeros(0), np.array([share]), np.array([-np.inf]), np.array([np.inf]))


def _plan(edges: list[float], shares: list[float]) -> DayPlan:
    """From edge to the share that holds behind it; before a day's first edge that of the last holds on."""
    day = np.array(edges)
    begins, ends = np.append(day[-1] - DAY, day), np.append(day, day[0] + DAY)
    return DayPlan(day, np.append(shares[-1], shares), begins, ends)
