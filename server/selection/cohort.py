"""Who takes part in a round: who is there, has data, fits, and is chosen; and how long it takes until there is somebody.

All of it is a function of the seed, the round, the virtual time, and what the server knows of the devices from earlier rounds.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from server.fleet.conditions import Conditions
from server.fleet.local_time import DAY, HOUR
from server.fleet.roster import Member, Roster
from server.selection.candidates import Candidates
from server.selection.estimate import Estimates, Workload
from server.selection.history import History
from server.selection.policies import SelectionConfig, choose
from server.selection.sparsity_tiers import Tiers

PATIENCE_S = 30 * DAY


@dataclass(frozen=True)
class Chosen:
    """A device that is asked to train. step: of its stream, from 0."""

    member: Member
    step: int


class Cohorts:
    """The cohorts of a fleet's rounds.

    Attributes:
        history: what was seen of each device.
        roster: the devices that are connected; empty before `enrol`.
    """

    def __init__(
        self, conditions: Conditions, tiers: Tiers, workload: Workload, selection: SelectionConfig, *,
        origin: float = 0.0, chunks: int = 1, most_samples: int = 2**31 - 1,
    ):  # fmt: skip
        """`origin`: virtual second at which streams begin; `chunks`: steps that a task has, side by side; `most_samples`: of a step."""
        self.conditions, self.tiers, self.workload, self.selection = conditions, tiers, workload, selection
        self.origin, self.chunks, self.most_samples = origin, chunks, most_samples
        self.estimates = Estimates(conditions.hardware, workload, tiers.levels, tiers.of)
        self.history = History(len(conditions.hardware), [level.bytes for level in tiers.levels])
        self.roster = Roster.of([])

    def enrol(self, roster: Roster) -> None:
        """Take the fleet as known. Samples that are too few for the model to be trained on them count as none.

        Raises:
            ValueError: if the roster has a device that the conditions do not know.
        """
        if len(roster) and roster.devices[-1] >= len(self.conditions.hardware):
            raise ValueError(
                f"device {roster.devices[-1]} is connected, but the experiment has devices 0 to {len(self.conditions.hardware) - 1}: "
                f"set stream.devices to their number"
            )
        least = self.workload.least
        self.roster = roster if least == 1 else replace(roster, samples=np.where(roster.samples < least, 0, roster.samples))

    def steps(self, server_round: int, time: float) -> np.ndarray:
        """[N] int64 by row of the roster: the step of its stream that each device is at, -1 before the first."""
        return self.steps_of(np.arange(len(self.roster)), server_round, time, self.history.finished[self.roster.devices])

    def steps_of(self, rows: np.ndarray, server_round: int, time: float, finished: np.ndarray) -> np.ndarray:
        """[n] int64: the same of some rows of the roster, that have finished so many rounds.

        By participation, steps without data are passed over: a device could never finish a round of them.
        """
        steps = self.conditions.pace.step(self.roster.devices[rows], server_round, time - self.origin, finished)
        if self.conditions.pace.advance != "participation":
            return steps
        has_data = self.roster.samples[rows] > 0
        rank = np.minimum(steps, has_data.sum(axis=1) - 1)  # -1: not begun, or no data at all
        found = (has_data & (np.cumsum(has_data, axis=1) - 1 == rank[:, None])).argmax(axis=1)
        return np.where(rank >= 0, found, np.minimum(steps, 0))

    def samples(self, steps: np.ndarray) -> np.ndarray:
        """[N] int64: samples that each device has at its step."""
        rows = np.arange(len(steps))
        return np.where(steps >= 0, self.roster.samples[rows, np.maximum(steps, 0)], 0)

    def present(self, server_round: int, time: float, busy: Collection[int] = ()) -> np.ndarray:
        """Rows of the devices that could be asked now: there, in time for data, fit for the work, and not busy."""
        return self._present(self.steps(server_round, time), time, busy)

    def _present(self, steps: np.ndarray, time: float, busy: Collection[int]) -> np.ndarray:
        devices = self.roster.devices
        able = (self.samples(steps) > 0) & (self.tiers.of[devices] >= 0)
        if len(busy):
            able &= ~np.isin(devices, np.fromiter(busy, np.int64))
        rows = np.flatnonzero(able)
        return rows[self.conditions.availability.on(devices[rows], time)]

    def wait(self, server_round: int, time: float, least: int, until: float, *, busy: Collection[int] = ()) -> float:
        """The first instant from `time` on at which `least` devices could be asked, or infinity if there is none before `until`.

        No more are waited for than could ever be asked in this round, and nobody for longer than 30 days.
        """
        there = len(self.present(server_round, time, busy))
        if there >= least:
            return time
        devices, availability, patience = self.roster.devices, self.conditions.availability, time + PATIENCE_S
        able = self._able(server_round, time, busy) & np.isfinite(availability.next_on(devices, time))
        if not able.any():
            return float("inf")
        most = min(least, int(np.count_nonzero(able)))
        while time < patience:
            if there >= most:
                return time
            off = devices[~availability.on(devices, time)]
            begins = availability.next_on(off, time)
            later = begins[begins > time]
            # without a device that is about to come, it is data that is missing: streams begin, and tasks change, at any time
            time = min(float(later.min(initial=np.inf)), time + HOUR if self.conditions.pace.advance == "time" else np.inf)
            if time > until or not np.isfinite(time):
                break
            there = len(self.present(server_round, time, busy))
        return float("inf")

    def choose(
        self, server_round: int, time: float, size: int, deadline_s: float, *, draw: int = 1, busy: Collection[int] = ()
    ) -> tuple[Chosen, ...]:
        """The devices of a round, or those that join it at `time`, in device order. `size` 0: all; `draw`: see `selection.choose`."""
        steps = self.steps(server_round, time)
        rows = self._present(steps, time, busy)
        if self.selection.policy != "uniform" or 0 < size < len(rows):
            how = {"seed": self.conditions.seed, "server_round": server_round, "deadline_s": deadline_s, "draw": draw}
            rows = rows[choose(self.selection, self._candidates(rows, steps, time), size, **how)]
        return tuple(map(Chosen, self.roster.members(rows), steps[rows].tolist()))

    def usual_task(self, server_round: int, time: float) -> int:
        """The task of its stream, from 0, that the median device is at: half of those that can take part are there or further."""
        fit = self.tiers.of[self.roster.devices] >= 0
        steps = np.sort(self.steps(server_round, time)[fit])
        return int(steps[len(steps) // 2]) // self.chunks

    def is_deserted(self, server_round: int, time: float) -> bool:
        """Nobody is waited for in this round: will it be so in all that follow? Not where data alone is missing, which comes with tasks.

        By time, data may come as long as the clock goes on.
        """
        return bool(self._able(server_round, time).any()) or not self.anyone_comes(time)

    def anyone_comes(self, time: float) -> bool:
        """Is any device there at `time`, or later?"""
        return bool(np.isfinite(self.first_comes(time)))

    def first_comes(self, time: float) -> float:
        """The first instant from `time` on at which any device is there; infinite if none ever is."""
        return float(self.conditions.availability.next_on(self.roster.devices, time).min(initial=np.inf))

    def without_data(self, server_round: int, time: float) -> list[tuple[int, int]]:
        """(device, step) of those that have begun and could take part, had they data, or enough of it."""
        steps = self.steps(server_round, time)
        rows = np.flatnonzero((steps >= 0) & (self.samples(steps) == 0) & (self.tiers.of[self.roster.devices] >= 0))
        rows = rows[self.conditions.availability.on(self.roster.devices[rows], time)]
        return list(zip(self.roster.devices[rows].tolist(), steps[rows].tolist(), strict=True))

    def least_seconds(self) -> float:
        """A bound that no round of this fleet stays below; 0 where it has no device with data."""
        rows = np.flatnonzero(self.tiers.of[self.roster.devices] >= 0)
        some = np.where(self.roster.samples[rows] > 0, self.roster.samples[rows], np.iinfo(np.int64).max).min(axis=1, initial=1 << 62)
        rows, some = rows[some < 1 << 62], some[some < 1 << 62]
        if not len(rows):
            return 0.0
        return float(self.estimates.least_s(self.roster.devices[rows], some, 0.0).min())

    def least_s(self, device: int, samples: int, down_bytes: int) -> float:
        """A bound that this device's round does not stay below."""
        return float(self.estimates.least_s(np.array([device]), np.array([samples]), float(down_bytes))[0])

    def _able(self, server_round: int, time: float, busy: Collection[int] = ()) -> np.ndarray:
        """[N] bool by row of the roster: those that could be asked in this round at some time, if they were there."""
        devices = self.roster.devices
        able = self.tiers.of[devices] >= 0
        if self.conditions.pace.advance != "time":
            able &= self.samples(self.steps(server_round, time)) > 0
        return able & ~np.isin(devices, np.fromiter(busy, np.int64)) if len(busy) else able

    def _candidates(self, rows: np.ndarray, steps: np.ndarray, time: float) -> Candidates:
        devices, samples, history = self.roster.devices[rows], self.samples(steps)[rows], self.history
        known = {"devices": devices, "samples": samples, "last_round": history.last_round[devices]}
        if self.selection.policy == "uniform":  # nothing else is read: a fleet may be large
            nothing = np.zeros(len(rows))
            return Candidates(**known, seconds=nothing, charge=nothing, loss=nothing)
        down, up = history.message_bytes[self.tiers.of[devices]].T
        seconds, charge = self.estimates.seconds(devices, samples, down, up), self.conditions.charge(devices, time)
        return Candidates(**known, seconds=seconds, charge=charge, loss=history.loss[devices])
