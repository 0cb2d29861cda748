"""The virtual clock: simulated seconds, from events alone. Nothing here reads the time of the machine.

Second 0 is a Monday, 00:00 UTC. Events at the same instant are taken in device order, so that a run does not depend on the order in which
they were put in.
"""

import heapq
from dataclasses import dataclass
from typing import ClassVar, Literal

from server.fleet.local_time import HOUR

MODES = ("sync", "semi-sync", "async")


@dataclass(frozen=True)
class ClockConfig:
    """Section [clock]: when rounds begin and end. What is not over in time has been paid for, and its update is lost.

    Attributes:
        mode: `sync`, a round ends when its devices are done; `semi-sync`, it ends every `period_s`, and devices that still work go
            on (their updates count, discounted, in the round in which they arrive); `async`, it ends when `buffer_size` updates are in,
            and a device that is done is replaced at once (FedBuff, Nguyen et al., AISTATS 2022).
        start_hour: virtual time at which the run begins, hours after Monday, 00:00 UTC.
        deadline_s: virtual seconds of a synchronous round; who is not done by then is a straggler, and is dropped. 0: none.
        over_selection: share of devices that a synchronous round asks beyond `federation.cohort_size`; it ends when as many as that have
            reported, the others are told to stop (Bonawitz et al., MLSys 2019, asked 1.3 times the devices).
        period_s: virtual seconds of a semi-synchronous round; synchronous rounds begin at least that far apart.
        min_devices: a synchronous round waits until so many can take part.
        buffer_size: updates per asynchronous round.
        staleness_exponent: a: an update that is tau versions old has the weight (1 + tau)^-a (FedBuff has 0.5), see aggregation.stale.
        max_staleness: older updates are not used. 0: all are.
        horizon_hours: the run ends with the first round that ends so many hours after its start. 0: after all rounds.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {"clock.mode=semi-sync|async": ("staleness_exponent", "max_staleness")}
    mode: Literal["sync", "semi-sync", "async"] = "sync"
    start_hour: float = 0.0
    deadline_s: float = 0.0
    over_selection: float = 0.0
    period_s: float = 0.0
    min_devices: int = 1
    buffer_size: int = 0
    staleness_exponent: float = 0.5
    max_staleness: int = 0
    horizon_hours: float = 0.0

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}: choose one of {', '.join(MODES)}")
        for name in ("start_hour", "deadline_s", "over_selection", "period_s", "staleness_exponent", "horizon_hours"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}: finite and not negative")
        if self.min_devices < 1:
            raise ValueError(f"min_devices is {self.min_devices}: a round needs at least 1")
        if self.buffer_size < 0 or self.max_staleness < 0:
            raise ValueError(f"buffer_size is {self.buffer_size}, max_staleness {self.max_staleness}: neither may be negative")
        if self.mode == "async" and not self.buffer_size:
            raise ValueError("buffer_size is 0: an asynchronous round ends when so many updates are in; take at least 1")
        if self.mode == "semi-sync" and not self.period_s:
            raise ValueError("period_s is 0: a semi-synchronous round lasts so long; take more")
        if self.mode != "sync":
            for name in ("deadline_s", "over_selection"):
                if getattr(self, name):
                    raise ValueError(f"{name} is {getattr(self, name)}: only synchronous rounds have it; mode is {self.mode!r}")
            if self.min_devices > 1:
                raise ValueError(f"min_devices is {self.min_devices}: only synchronous rounds wait for devices; mode is {self.mode!r}")
        if self.mode == "async" and self.period_s:
            raise ValueError(f"period_s is {self.period_s}: an asynchronous round ends by buffer_size alone; leave it at 0")
        if self.mode != "async" and self.buffer_size:
            raise ValueError(f"buffer_size is {self.buffer_size}: only asynchronous rounds end by it; mode is {self.mode!r}")

    @property
    def deadline(self) -> float:
        """Seconds; infinite where there is none."""
        return self.deadline_s or float("inf")

    @property
    def start_s(self) -> float:
        """The instant at which the run begins."""
        return self.start_hour * HOUR

    @property
    def horizon_s(self) -> float:
        """The instant at which the run ends; infinite where it goes by rounds."""
        return (self.start_hour + self.horizon_hours) * HOUR if self.horizon_hours else float("inf")

    @property
    def is_buffered(self) -> bool:
        """Do devices go on across the ends of rounds?"""
        return self.mode != "sync"


class EventHeap:
    """What is to happen, by instant and then by device; a device has at most one event."""

    def __init__(self):
        self._heap: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, time: float, device: int) -> None:
        heapq.heappush(self._heap, (time, device))

    def pop(self) -> tuple[float, int]:
        """The next event: (instant, device). Raises IndexError if there is none."""
        return heapq.heappop(self._heap)

    @property
    def next_time(self) -> float:
        """The instant of the next event, infinite if there is none."""
        return self._heap[0][0] if self._heap else float("inf")
