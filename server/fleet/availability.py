"""When devices are there: on and off by a rule or by a recorded trace, joining late, leaving for good, failing at work.

- `always`: every device, all the time.
- `bernoulli`: time is cut into slots; device k is on in slot i with `probability`, independent of all others. Runs of on-slots are one
  period, so a period lasts 1 / (1 - probability) slots on average.
- `diurnal`: on local day d a device shows up with `probability`, at from_hour + U(-jitter_hours, jitter_hours), for `hours`. That phones
  train at night, idle and on a charger, is what Bonawitz et al., "Towards Federated Learning at Scale: System Design" (MLSys 2019)
  describe (four times as many devices at the peak of the day as at its low); traces of real devices show the same: FLASH (Yang et al.,
  "Characterizing Impacts of Heterogeneity in Federated Learning upon Large-Scale Smartphone Data", WWW 2021) and FedScale (Lai et al.,
  ICML 2022). The rule with its window and jitter is ours.
- `trace`: the windows of a CSV file.

The rules themselves are in `.availability_rules` and `.availability_trace`: functions of (seed, device, time), without state.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from server.fleet.availability_foreign import foreign
from server.fleet.availability_rules import Always, Availability, Bernoulli, Diurnal, Lifetimes
from server.fleet.availability_trace import read_trace
from server.fleet.local_time import HOUR, MINUTE, check_daily_window, check_time_zones, draw_offsets
from sparcl_core.foreign import printable
from sparcl_core.plugins.kinds import Kind
from sparcl_core.plugins.options import check_options
from sparcl_core.seeding import generator

OURS = {name: f"server.fleet.availability:{name}" for name in ("always", "bernoulli", "diurnal", "trace")}
KINDS = Kind(setting="availability.kind", noun="availability model", group="sparcl.availability", ours=OURS)
LEAST = 0.001  # a device that is there less often than one time in a thousand would seldom be found within `.availability_rules.FAR`


@dataclass(frozen=True)
class AvailabilityConfig:
    """Settings of when devices are there; the rules stand in the module's text.

    Attributes:
        kind: `always`, `bernoulli`, `diurnal` or `trace`; or one of an installed package, or `package.module:name`.
        options: of a model of another package, if it has any.
        probability: chance that a device is on in a slot (`bernoulli`), or shows up on a day (`diurnal`).
        slot_minutes: length of a slot; read by `bernoulli` only.
        from_hour, hours, jitter_hours: local time at which a device comes, for how long it stays, and by how much it comes earlier or
            later, another draw for every device and day; read by `diurnal` only.
        time_zones: hours from UTC, dealt evenly over the devices; read by `diurnal` and by everything else with a local time.
        trace: path of a CSV file, see `read_trace`; read by `trace` only.
        join_hours: devices join at times uniform within the first so many hours; 0: all are there from the start.
        leave_share, leave_hours: this share of the devices leaves for good, at times uniform within the first so many hours.
        failure: probability that a device fails in the middle of a round's work, see `failure_point`.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "availability.kind=bernoulli|diurnal": ("probability",),
        "availability.kind=bernoulli": ("slot_minutes",),
        "availability.kind=diurnal": ("from_hour", "hours", "jitter_hours"),
        "availability.kind=trace": ("trace",),
        "availability.leave_share": ("leave_hours",),
    }
    kind: str = "always"
    options: dict[str, Any] = field(default_factory=dict)
    probability: float = 0.8
    slot_minutes: float = 10.0
    from_hour: float = 22.0
    hours: float = 8.0
    jitter_hours: float = 1.0
    time_zones: tuple[float, ...] = (0.0,)
    trace: str = ""
    join_hours: float = 0.0
    leave_share: float = 0.0
    leave_hours: float = 0.0
    failure: float = 0.0

    def __post_init__(self):
        KINDS.offer(self.kind)
        if self.kind in KINDS.ours and self.options:
            raise ValueError(f"kind is {self.kind!r}, whose settings are keys of this section, and options has {', '.join(self.options)}")
        if self.kind == "trace" and not self.trace:
            raise ValueError('kind is "trace" and trace is empty: name a CSV file with the columns device,on,off')
        if not LEAST <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability}: from {LEAST} to 1; leave devices that are never there out of the fleet")
        if not 1 <= self.slot_minutes < math.inf:
            raise ValueError(f"slot_minutes is {self.slot_minutes}: at least a minute, and finite; the default is 10")
        check_daily_window(self.from_hour, self.hours)
        if not 0 <= self.jitter_hours <= 12:
            raise ValueError(f"jitter_hours is {self.jitter_hours}: from 0 to 12, so that the days keep their order; 0 is every day alike")
        check_time_zones(self.time_zones)
        for key in ("join_hours", "leave_hours"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key} is {getattr(self, key)}: finite and not negative; 0 switches it off")
        for key in ("leave_share", "failure"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"{key} is {getattr(self, key)}: a share from 0 to 1; 0 switches it off")
        if self.leave_share > 0 and self.leave_hours == 0:
            raise ValueError(f"leave_share is {self.leave_share} and leave_hours is 0: say within how many hours, or set leave_share=0")


def always(config: AvailabilityConfig, devices: int, seed: int) -> Availability:
    """Every device, all the time."""
    return Always()


def bernoulli(config: AvailabilityConfig, devices: int, seed: int) -> Availability:
    """Time is cut into slots; each device is on in each with one probability."""
    return Bernoulli(config.probability, float(round(config.slot_minutes * MINUTE)), seed)


def diurnal(config: AvailabilityConfig, devices: int, seed: int) -> Availability:
    """Some hours of every local day, or of some days: phones on their chargers at night."""
    return Diurnal(
        from_hour=config.from_hour,
        hours=config.hours,
        jitter_hours=config.jitter_hours,
        probability=config.probability,
        offsets=draw_offsets(config.time_zones, devices, seed),
        seed=seed,
    )


def trace(config: AvailabilityConfig, devices: int, seed: int) -> Availability:
    """Recorded windows, from a CSV file with the columns device, on, off."""
    return read_trace(config.trace, devices)


def check_kind(config: AvailabilityConfig) -> None:
    """Raises ValueError if there is no model of that name, it is no function, or its options do not fit it. Makes nothing."""
    needed = f"availability.kind is {printable(repr(config.kind), 120)}: a model is a function (config, devices, seed, **options)"
    check_options(KINDS.find(config.kind), config.options, setting="availability.options", given=3, needed=needed)


def make_availability(config: AvailabilityConfig, devices: int, seed: int) -> Availability:
    """When the N = `devices` devices of a fleet are there.

    Raises:
        ValueError: if the trace cannot be used, see `read_trace`; or what another package has made is no model, see `foreign`.
    """
    make = KINDS.find(config.kind)
    inner = make(config, devices, seed, **config.options)
    if config.kind not in KINDS.ours:
        inner = foreign(inner, devices, config.kind)
    if config.join_hours == 0 and config.leave_share == 0:
        return inner
    join = generator(seed, "availability", "join").random(devices) * config.join_hours * HOUR
    leave = generator(seed, "availability", "leave").random(devices) * config.leave_hours * HOUR
    leaves = generator(seed, "availability", "leaves").permutation(devices) < round(config.leave_share * devices)
    return Lifetimes(inner, join, np.where(leaves, leave, np.inf))


def failure_point(seed: int, device: int, server_round: int, probability: float) -> float | None:
    """Share of a round's work, uniform in (0, 1), after which a device fails; None if it does not.

    A device that fails with one probability fails with every larger one, at the same point.
    """
    chance, share = generator(seed, "failure", server_round, device).random(2)
    return max(float(share), 2.0**-53) if chance < probability else None
