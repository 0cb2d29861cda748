"""What is in the batteries: charging, draining, and who is willing to train.

While a device rests, its level E moves with charge(t) - idle_w; while it works, with charge(t) - joules / seconds, where the joules
already hold what the board takes by itself, so that idle_w is not paid twice. E stays within [0, capacity]: what is charged into a
full battery, or asked of an empty one, is lost.

The charging power is constant between two edges of the local day (`.charging`), so there the level is a straight line that is cut
at 0 and at capacity. That is exact for all charging but `solar`, and for the sun at the edges of its half hours where nothing is cut.

A level is found by walking from edge to edge. What a walk found at the last edge is kept, so that a fleet that is asked every round does
not walk its past again. That is no state: edges do not depend on what was asked, so answers are the same to the bit without it.
"""

import math

import numpy as np

from server.fleet.charging import EnergyConfig, day_plan
from server.fleet.hardware import Hardware
from server.fleet.local_time import DAY, Draws

SHORT_S = 1e-6  # work that takes less is taken at once: as a power it could be infinite


class Batteries:
    """The batteries of N devices, numbered from 0.

    Methods take `devices`, [n] int64, and times in seconds of virtual time, one float for all or [n] float64; `empties` and `spend`
    also take a single device, and then return a float.

    Args:
        config: the settings.
        capacity_j: [N] float64; 0: on the mains, which is always full.
        charge_w: [N] float64, power of the charger, or of the panel under a clear sky at noon.
        idle_w: [N] float64.
        offsets: [N] float64, local time minus UTC in seconds; the same as for `server.fleet.availability`.
        seed: of start levels and clouds.

    Attributes:
        level_j: [N] float64, what is in the battery at `time`; inf on the mains.
        time: [N] float64, up to when a device's spending is known.
        spent_j: [N] float64, spent on the local day `day`.
        day: [N] int64. These four are all that changes.

    Raises:
        ValueError: if the arrays do not fit each other, or hold a number that is negative or not finite.
    """

    def __init__(
        self, config: EnergyConfig, *, capacity_j: np.ndarray, charge_w: np.ndarray, idle_w: np.ndarray, offsets: np.ndarray, seed: int
    ):
        arrays = {"capacity_j": capacity_j, "charge_w": charge_w, "idle_w": idle_w, "offsets": offsets}
        for name, array in arrays.items():
            if array.shape != (len(capacity_j),):
                raise ValueError(f"{name} is of shape {array.shape}: there are {len(capacity_j)} devices, so give as many numbers")
            if wrong := np.flatnonzero(~np.isfinite(array) | ((array < 0) & (name != "offsets"))).tolist():
                rule = "finite" if name == "offsets" else "finite and not negative"
                raise ValueError(f"{name} of device {wrong[0]} is {array[wrong[0]]}: it must be {rule}")
        self.config, self.charge_w, self.offsets = config, charge_w, offsets
        self.mains = capacity_j == 0
        self.capacity_j = np.where(self.mains, np.inf, capacity_j)
        self.idle_w = idle_w if config.drain_idle else np.zeros(len(idle_w))
        self._plan = day_plan(config)
        self._clouds = Draws(seed, "energy", "clouds")

        everyone = np.arange(len(capacity_j))
        start = config.start_level + config.start_spread * (2 * Draws(seed, "energy", "start")(everyone, 0) - 1)
        self.level_j = np.where(self.mains, np.inf, np.clip(start, 0, 1) * capacity_j)
        self.time, self.spent_j = np.zeros(len(everyone)), np.zeros(len(everyone))
        self.day = self._local_day(everyone, self.time)
        self._edge_level, self._edge_time = self.level_j.copy(), self.time.copy()  # found at the last edge, for the next walk

    def share(self, devices: np.ndarray, time: np.ndarray | float) -> np.ndarray:
        """[n] float64: state of charge from 0 to 1 if the devices rest until `time`; changes nothing.

        A device that is already known to work beyond `time` answers as of the end of that work.
        """
        time = np.maximum(np.broadcast_to(np.asarray(time, np.float64), (len(devices),)), self.time[devices])
        level = self._rest(devices, time)
        return np.divide(level, self.capacity_j[devices], out=np.ones(len(devices)), where=~self.mains[devices])

    def declines(self, devices: np.ndarray, time: np.ndarray | float) -> list[str]:
        """[n]: why a device would not train at `time`; "" if it is willing."""
        config, reasons = self.config, [""] * len(devices)
        share = self.share(devices, time)
        day = self._local_day(devices, np.maximum(time, self.time[devices]))
        spent = np.where(day == self.day[devices], self.spent_j[devices], 0.0)
        if config.daily_joules > 0:
            for row in np.flatnonzero(spent >= config.daily_joules).tolist():
                reasons[row] = f"daily budget of {config.daily_joules:g} J is spent"
        for row in np.flatnonzero((share < config.reserve) | (share == 0)).tolist():
            percent = math.floor(1000 * share[row]) / 10  # down, so that it does not read as much as the reserve
            reasons[row] = f"battery at {percent:g} %, reserve is {100 * config.reserve:g} %" if share[row] > 0 else "battery is empty"
        return reasons

    def empties(self, device, start, joules, seconds):
        """When work of constant power joules / seconds that begins at `start` would empty the battery; inf if it is done before.

        Changes nothing. All arguments are numbers, or arrays that broadcast to [n]; so is what is returned, as float64.

        Raises:
            ValueError: as in `spend`.
        """
        devices, start, seconds, joules, shape = self._work(device, start, seconds, joules)
        empty = np.full(len(devices), np.inf)
        level = self._rest(devices, start)
        self._walk(devices, level, start, start + seconds, drain_w=_power(joules, seconds), empty=empty)
        empty[(seconds == 0) & (joules > level)] = start[(seconds == 0) & (joules > level)]
        return empty.reshape(shape)[()]

    def spend(self, device, start, end, joules):
        """Book what devices really used from `start` to `end`, their own base power included. They rested before, and are at `end` now.

        The joules count for the budget of the local day at `end`; of work that reaches over midnight, the part behind it.

        Args:
            device: one device, or [n] int64 with none twice.
            start, end: seconds; no device may have been booked beyond its start. Within a microsecond the joules go at once.
            joules: what the work took; numbers, or arrays that broadcast to [n].

        Returns:
            What is in the battery at `end`, in joules: float64, or [n].

        Raises:
            ValueError: if work ends before it begins, lies in a device's past or costs less than nothing, or a device stands there twice.
        """
        devices, start, seconds, joules, shape = self._work(device, start, np.subtract(end, start, dtype=np.float64), joules)
        if len(np.unique(devices)) < len(devices):
            raise ValueError("a device stands twice in one call of spend: book its pieces of work one after the other")
        end = np.broadcast_to(np.asarray(end, np.float64), shape).reshape(-1)
        level = self._walk(devices, self._rest(devices, start), start, end, drain_w=_power(joules, seconds))
        level = np.where(seconds == 0, np.maximum(level - joules, 0), level)

        day = self._local_day(devices, end)
        today = end - np.maximum(start, day * DAY - self.offsets[devices])
        spent = joules * np.divide(today, seconds, out=np.ones(len(devices)), where=seconds > 0)
        self.spent_j[devices] = np.where(day == self.day[devices], self.spent_j[devices], 0.0) + spent
        self.day[devices] = day
        self.level_j[devices] = self._edge_level[devices] = level
        self.time[devices] = self._edge_time[devices] = end
        return level.reshape(shape)[()]

    def snapshot(self) -> dict[str, np.ndarray]:
        """All that changes: level_j, time, spent_j [N] float64 and day [N] int64. Not copies; `spend` writes into them."""
        return {"level_j": self.level_j, "time": self.time, "spent_j": self.spent_j, "day": self.day}

    def restore(self, snapshot: dict[str, np.ndarray]) -> None:
        """Go on where `snapshot` was taken, bit for bit.

        Raises:
            ValueError: if it is not of such a fleet.
        """
        pair = (snapshot, self.snapshot())
        kinds, wanted = ({name: (array.dtype.name, array.shape) for name, array in arrays.items()} for arrays in pair)
        if kinds != wanted:
            raise ValueError(f"batteries in the snapshot are {kinds} and in this run {wanted}: resume it with its own experiment")
        self.level_j, self.time, self.spent_j, self.day = (snapshot[name].copy() for name in wanted)
        self._edge_level, self._edge_time = self.level_j.copy(), self.time.copy()

    def _work(self, device, start, seconds, joules):
        """The arguments of work as arrays [n] of their own, checked, and the shape of what the caller gave."""
        devices, start, seconds, joules = np.broadcast_arrays(device, start, seconds, joules)
        shape, devices = devices.shape, devices.reshape(-1).astype(np.int64)
        start, seconds, joules = (array.reshape(-1).astype(np.float64) for array in (start, seconds, joules))
        for name, array in (("seconds", seconds), ("joules", joules)):
            if (wrong := ~((array >= 0) & (array < np.inf))).any():
                row = int(np.argmax(wrong))
                raise ValueError(f"work of device {devices[row]} is of {array[row]:g} {name}: they must be finite and not negative")
        if (wrong := ~(start >= self.time[devices])).any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"work of device {devices[row]} begins at {start[row]:g} s, and it is booked up to {self.time[devices[row]]:g} s: "
                f"a device does one thing at a time; begin when the work before has ended"
            )
        return devices, start, np.where(seconds < SHORT_S, 0.0, seconds), joules, shape

    def _rest(self, devices: np.ndarray, time: np.ndarray) -> np.ndarray:
        """[n] joules at `time`, not before `self.time`, of devices that rested; keeps what it finds at the last edge."""
        known = self._edge_time[devices] <= time
        now = np.where(known, self._edge_time[devices], self.time[devices])
        level = np.where(known, self._edge_level[devices], self.level_j[devices])
        _, edge, _ = self._piece(devices, time)
        stop = np.where(edge <= time, np.maximum(edge, now), now)  # rounding may put an edge above `time`: then nothing is kept
        level = self._walk(devices, level, now, stop, drain_w=self.idle_w[devices])
        self._edge_level[devices], self._edge_time[devices] = level, stop
        return self._walk(devices, level, stop, time, drain_w=self.idle_w[devices])

    def _walk(self, devices, level, now, end, *, drain_w, empty=None) -> np.ndarray:
        """[n] joules at `end`, from `level` at `now` with constant `drain_w`; writes into `empty` when a battery first cannot give it."""
        level, now = level.copy(), np.array(now)
        rows = np.flatnonzero(now < end)
        while len(rows):
            device = devices[rows]
            charge, _, stop = self._piece(device, now[rows])
            stop = np.minimum(stop, end[rows])
            net = charge - drain_w[rows]
            reached = level[rows] + net * (stop - now[rows])
            if empty is not None:
                short = (reached < 0) & np.isinf(empty[rows])
                empty[rows[short]] = now[rows[short]] - level[rows[short]] / net[short]
            level[rows] = np.clip(reached, 0, self.capacity_j[device])
            now[rows] = stop
            rows = rows[stop < end[rows]]
        return level

    def _piece(self, devices: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The stretch of constant charging that holds `time`, [n] each: watts, its begin and its end."""
        day, second = np.divmod(time + self.offsets[devices], DAY)
        midnight = day * DAY - self.offsets[devices]
        place = np.searchsorted(self._plan.edges, second, side="right")
        watts = self.charge_w[devices] * self._plan.shares[place]
        if self.config.charging == "solar" and self.config.clouds > 0:
            watts = watts * (1 - self.config.clouds * self._clouds(devices, day.astype(np.int64)))
        return watts, midnight + self._plan.begins[place], midnight + self._plan.ends[place]

    def _local_day(self, devices: np.ndarray, time: np.ndarray) -> np.ndarray:
        return ((time + self.offsets[devices]) // DAY).astype(np.int64)


def make_batteries(config: EnergyConfig, hardware: Hardware, offsets: np.ndarray, seed: int) -> Batteries:
    """The batteries of a fleet.

    `offsets` come from `.local_time.draw_offsets(availability.time_zones, N, seed)`, so that the night in which a device is there is
    the night in which it is charged.
    """
    figures = {"capacity_j": "battery_j", "charge_w": "charge_w", "idle_w": "idle_w"}
    columns = {name: hardware.column(figure) for name, figure in figures.items()}
    return Batteries(config, **columns, offsets=offsets, seed=seed)


def _power(joules: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """[n] watts; 0 for work that takes no time, whose joules go at once."""
    return np.divide(joules, seconds, out=np.zeros(len(joules)), where=seconds > 0)
