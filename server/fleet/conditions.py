"""The physical side of a device's round: how long its work takes, and what may end it early.

Work is cut short when the device goes offline, when it fails, or when its battery is empty, whichever comes first.
"""

from dataclasses import dataclass, replace

import numpy as np

from server.fleet.availability import Availability, failure_point
from server.fleet.battery import Batteries
from server.fleet.hardware import Hardware
from server.fleet.stream_progress import Pace
from server.snapshot import Snapshot
from sparcl_core.costs.device import Cost, DeviceProfile
from sparcl_core.seeding import generator


@dataclass(frozen=True)
class Fate:
    """What becomes of a device's round.

    Attributes:
        device: its number.
        start, end: instants. If it was cut short, `end` is when.
        shares: of each of its phases that was carried out, 0 to 1: download, training, upload.
        outcome: `ok`, `failed`, `late` (a deadline) or `cancelled` (it was not needed any more).
        reason: why it was cut short.
        joules: used from `start` to `end`.
    """

    device: int
    start: float
    end: float
    shares: tuple[float, ...]
    outcome: str = "ok"
    reason: str = ""
    joules: float = 0.0

    @property
    def is_done(self) -> bool:
        return self.outcome == "ok"

    @property
    def has_trained(self) -> bool:
        """Was all of the training done, so that the device's state has moved on?"""
        return self.shares[1] == 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Conditions:
    """The physical side of a fleet: devices as hardware, when they are there, their batteries, and what they see when.

    `failure`: probability that a device fails in the middle of a round. Only the batteries change.
    """

    hardware: Hardware
    availability: Availability
    batteries: Batteries
    pace: Pace
    failure: float
    seed: int

    def profile(self, device: int) -> DeviceProfile:
        return self.hardware[device]

    def until(self, device: int, time: float) -> float:
        """The end of the time that the device is there."""
        return float(self.availability.until(np.array([device]), time)[0])

    def may_fail(self, device: int) -> bool:
        """Can anything but its leaving cut its work short: chance, or an empty battery?"""
        return bool(self.failure) or bool(self.hardware[device].battery_j)

    def jitter(self, device: int, server_round: int, phase: str) -> float:
        """Seconds that a message takes beyond the profile's latency."""
        mean = self.profile(device).jitter_s
        return float(generator(self.seed, "jitter", phase, server_round, device).exponential(mean)) if mean else 0.0

    def declines(self, devices: np.ndarray, time: float) -> list[str]:
        """[n]: why a device's battery lets it decline to train at `time`; "" if it does not."""
        return self.batteries.declines(devices, time)

    def charge(self, devices: np.ndarray, time: float) -> np.ndarray:
        """[n] float64: states of charge from 0 to 1; 1 on the mains."""
        return self.batteries.share(devices, time)

    def spend(self, device: int, start: float, end: float, joules: float) -> None:
        """Take what was used from the device's battery."""
        start = max(start, float(self.batteries.time[device]))  # it was told off meanwhile: what it had begun is booked already
        self.batteries.spend(device, start, max(start, end), joules)

    def fate(self, device: int, server_round: int, start: float, costs: tuple[Cost, ...]) -> Fate:
        """What becomes of work that begins at `start`. `costs`: of its phases, one after the other. Changes nothing.

        Where several things would cut it short, the first one does. A battery is looked at as if the work drew its mean power throughout.
        """
        seconds, joules = sum(cost.seconds for cost in costs), sum(cost.joules for cost in costs)
        limits = [(self.until(device, start), "it went offline")]
        share = failure_point(self.seed, device, server_round, self.failure) if self.failure else None
        if share is not None:
            limits.append((start + share * seconds, "it failed in the middle of its work"))
        booked = max(start, float(self.batteries.time[device]))  # a download whose device then failed may outlast the round
        limits.append((self.batteries.empties(device, booked, joules, seconds), "its battery was empty"))
        end, reason = min(limits, key=lambda limit: limit[0])
        whole = Fate(device, start, start + seconds, (1.0,) * len(costs), joules=joules)
        return whole if end >= whole.end else cut(whole, costs, end, outcome="failed", reason=reason)

    def snapshot(self) -> Snapshot:
        """All that changes from round to round, see `server.snapshot`."""
        return self.batteries.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where `snapshot` was taken. Raises ValueError if it is of another fleet."""
        self.batteries.restore(snapshot)


def cut(fate: Fate, costs: tuple[Cost, ...], end: float, *, outcome: str, reason: str) -> Fate:
    """`fate` cut short at `end`, an instant not before its start."""
    left, shares, joules = max(end - fate.start, 0.0), [], 0.0
    for cost, most in zip(costs, fate.shares, strict=True):
        share = min(most, left / cost.seconds if cost.seconds else 1.0)
        shares.append(share)
        joules += share * cost.joules
        left = max(left - cost.seconds, 0.0) if share == 1 else 0.0
        if share < 1:
            break
    shares += [0.0] * (len(costs) - len(shares))
    if all(share == 1 for share in shares):  # it ends with the very last phase: what is cut is not done
        shares[-1] = float(np.nextafter(1.0, 0.0))
    return replace(fate, end=end, shares=tuple(shares), outcome=outcome, reason=reason, joules=joules)
