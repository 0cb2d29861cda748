"""Rules of when devices are there: always, by slots, by the local time of day; and lives around any rule.

Every rule is a function of (seed, device, time): no state, and no answer depends on what was asked before or together with it. A period
holds its begin and not its end. Times are seconds of virtual time, see `.local_time`; `.availability` says what each
rule stands for.
"""

from abc import ABC, abstractmethod

import numpy as np

from server.fleet.local_time import DAY, Draws, whole_seconds

FAR = 10_000  # slots or days: what lies further off than that is never


def each(time: np.ndarray | float, devices: np.ndarray) -> np.ndarray:
    """[n] float64: a time for every device."""
    return np.broadcast_to(np.asarray(time, np.float64), (len(devices),))


class Availability(ABC):
    """When each of N devices is there.

    All methods take `devices`, [n] int64 from 0 to N - 1, in any order, and `time`, one float for all of them or [n] float64.
    For every device: on(t) if and only if until(t) > t, if and only if next_on(t) == t.
    """

    def on(self, devices: np.ndarray, time: np.ndarray | float) -> np.ndarray:
        """[n] bool: whether it is there."""
        return self.until(devices, time) > time

    @abstractmethod
    def until(self, devices: np.ndarray, time: np.ndarray | float) -> np.ndarray:
        """[n] float64: when the on-period that holds `time` ends; inf if it never does, `time` if the device is off."""

    @abstractmethod
    def next_on(self, devices: np.ndarray, time: np.ndarray | float) -> np.ndarray:
        """[n] float64: the first instant from `time` on at which it is there; inf if that is never."""

    def gone(self, devices: np.ndarray, time: np.ndarray | float) -> np.ndarray:
        """[n] bool: whether it has left for good. One that is gone stays gone."""
        return np.zeros(len(devices), bool)


class Always(Availability):
    """Every device, all the time."""

    def until(self, devices, time):
        return np.full(len(devices), np.inf)

    def next_on(self, devices, time):
        return each(time, devices)


class Bernoulli(Availability):
    """On in a slot with `probability`, by itself. A run of more than 10,000 slots counts as one without an end."""

    def __init__(self, probability: float, slot_s: float, seed: int):
        self.probability, self.slot_s = probability, slot_s
        self._draws = Draws(seed, "availability", "slot")

    def on(self, devices, time):
        return self._is_on(devices, self._slot(each(time, devices)))

    def until(self, devices, time):
        time = each(time, devices)
        if self.probability == 1:
            return np.full(len(devices), np.inf)
        slot = self._slot(time)
        off = self._first(devices, slot, wanted=False)
        return np.where(off == slot, time, off * self.slot_s)

    def next_on(self, devices, time):
        time = each(time, devices)
        slot = self._slot(time)
        first = self._first(devices, slot, wanted=True)
        return np.where(first == slot, time, first * self.slot_s)

    def _slot(self, time: np.ndarray) -> np.ndarray:
        return time // self.slot_s

    def _is_on(self, devices: np.ndarray, slot: np.ndarray) -> np.ndarray:
        return self._draws(devices, slot.astype(np.int64)) < self.probability

    def _first(self, devices: np.ndarray, slot: np.ndarray, wanted: bool) -> np.ndarray:
        """The first slot from `slot` on in which a device is on, or is off; inf if there is none within FAR."""
        found = np.full(len(devices), np.inf)
        rows = np.arange(len(devices))
        for ahead in range(FAR):
            fits = self._is_on(devices[rows], slot[rows] + ahead) == wanted
            found[rows[fits]] = slot[rows[fits]] + ahead
            rows = rows[~fits]
            if not len(rows):
                break
        return found


class Diurnal(Availability):
    """On for some hours of every local day, or of some of them. Windows of neighbouring days that touch or overlap are one period.

    Args:
        from_hour, hours, jitter_hours, probability: as in `server.fleet.availability.AvailabilityConfig`.
        offsets: [N] float64, local time minus UTC in whole seconds.
        seed: of the days on which a device shows up, and of its jitter. Begin and end of a window are whole seconds.
    """

    REACH = np.arange(-2, 2)  # a window may begin 12 h before its day and end 60 h after it began: windows of these days can hold a time

    def __init__(self, *, from_hour: float, hours: float, jitter_hours: float, probability: float, offsets: np.ndarray, seed: int):
        self.probability, self.offsets = probability, offsets
        self.from_s, self.length_s, self.jitter_s = (whole_seconds(h) for h in (from_hour, hours, jitter_hours))
        self._shows, self._jitter = Draws(seed, "availability", "shows"), Draws(seed, "availability", "jitter")

    def on(self, devices, time):
        time = each(time, devices)
        return self._end(devices, time) > time

    def until(self, devices, time):
        end = each(time, devices).copy()
        if self.probability == 1 and self.jitter_s == 0 and self.length_s == DAY:
            return np.full(len(devices), np.inf)
        rows = np.arange(len(devices))
        for _ in range(FAR):
            later = self._end(devices[rows], end[rows])
            goes_on = later > end[rows]
            rows = rows[goes_on]
            if not len(rows):
                return end
            end[rows] = later[goes_on]
        end[rows] = np.inf
        return end

    def next_on(self, devices, time):
        time = each(time, devices)
        found = np.where(self.on(devices, time), time, np.inf)
        rows = np.flatnonzero(np.isinf(found))
        day = self._day(devices, time) + self.REACH[0]
        for ahead in range(FAR):  # days begin in order, so the first that begins later than `time` is the next
            begin = self._begin(devices[rows], day[rows] + ahead)
            fits = (begin > time[rows]) & (begin < np.inf)
            found[rows[fits]] = begin[fits]
            rows = rows[~fits]
            if not len(rows):
                break
        return found

    def _day(self, devices: np.ndarray, time: np.ndarray) -> np.ndarray:
        return ((time + self.offsets[devices]) // DAY).astype(np.int64)

    def _begin(self, devices: np.ndarray, day: np.ndarray) -> np.ndarray:
        """When the window of a local day begins; inf on a day without one."""
        jitter = np.rint(self.jitter_s * (2 * self._jitter(devices, day) - 1))
        return np.where(self._shows(devices, day) < self.probability, day * DAY + self.from_s + jitter - self.offsets[devices], np.inf)

    def _end(self, devices: np.ndarray, time: np.ndarray) -> np.ndarray:
        """The latest end of the windows that hold `time`; `time` where none does."""
        day, end = self._day(devices, time), time
        for near in self.REACH:
            begin = self._begin(devices, day + near)
            end = np.where((begin <= time) & (time < begin + self.length_s), np.maximum(end, begin + self.length_s), end)
        return end


class Lifetimes(Availability):
    """Another rule within the lives of the devices. One that would leave before it joins is never there.

    Args:
        inner: the rule.
        join, leave: [N] float64, from when to when a device belongs to the fleet; inf: it stays.
    """

    def __init__(self, inner: Availability, join: np.ndarray, leave: np.ndarray):
        self.inner, self.join, self.leave = inner, join, leave

    def until(self, devices, time):
        time = each(time, devices)
        alive = (self.join[devices] <= time) & (time < self.leave[devices])
        return np.where(alive, np.minimum(self.inner.until(devices, time), self.leave[devices]), time)

    def next_on(self, devices, time):
        begin = self.inner.next_on(devices, np.maximum(each(time, devices), self.join[devices]))
        return np.where(begin < self.leave[devices], begin, np.inf)

    def gone(self, devices, time):
        return (self.leave[devices] <= time) | self.inner.gone(devices, time)
