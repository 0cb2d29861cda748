"""When devices are there by a recorded trace: a CSV file with the columns device,on,off, see `read_trace`."""

import math
from pathlib import Path

import numpy as np

from server.fleet.availability_rules import Availability, each
from server.fleet.table import read_table
from sparcl_core.foreign import printable

COLUMNS = ("device", "on", "off")


class Trace(Availability):
    """On in recorded windows. After its last one a device is gone, and one without windows is so from the start.

    Args:
        device: [W] int64, of whom a window is; in any order.
        begin, end: [W] float64, seconds. Windows that touch are one period; an end may be inf.

    Raises:
        ValueError: if a window has no length, or two of a device overlap.
    """

    def __init__(self, device: np.ndarray, begin: np.ndarray, end: np.ndarray):
        order = np.lexsort((begin, device))
        device, begin, end = device[order], begin[order], end[order]
        same = device[1:] == device[:-1]
        wrong = ~(begin < end)
        wrong[1:] |= same & (begin[1:] < end[:-1])
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"device {device[row]} has a window from {begin[row]:g} to {end[row]:g} s: "
                f"windows must end after they begin, and begin when the one before has ended"
            )
        opens, closes = np.ones(len(device), bool), np.ones(len(device), bool)
        opens[1:] = closes[:-1] = ~(same & (begin[1:] == end[:-1]))
        self.device, self.begin, self.end = device[opens], begin[opens], end[closes]
        # one sorted key for all devices: (device, rank of the time among all begins), as integers
        self._begins = np.unique(self.begin)
        self._keys = self._key(self.device, self.begin)

    def until(self, devices, time):
        time = each(time, devices)
        last = self._ended(devices, time) - 1
        own = last >= 0
        own[own] = self.device[last[own]] == devices[own]
        end = time.copy()
        end[own] = np.maximum(time[own], self.end[last[own]])
        return end

    def next_on(self, devices, time):
        time = each(time, devices)
        following = self._ended(devices, time)
        own = following < len(self.device)
        own[own] = self.device[following[own]] == devices[own]
        begin = np.full(len(devices), np.inf)
        begin[own] = self.begin[following[own]]
        return np.where(self.on(devices, time), time, begin)

    def gone(self, devices, time):
        return np.isinf(self.next_on(devices, time))

    def _key(self, device: np.ndarray, time: np.ndarray) -> np.ndarray:
        return device * (len(self._begins) + 1) + np.searchsorted(self._begins, time, side="right")

    def _ended(self, devices: np.ndarray, time: np.ndarray) -> np.ndarray:
        """[n]: the row behind a device's last window that has begun by `time`."""
        return np.searchsorted(self._keys, self._key(devices, time), side="right")


def read_trace(path: str | Path, devices: int) -> Trace:
    """The windows in a CSV file: a header with the columns device, on, off (others are not read), then a window a row.

    `device` is a number from 0 to `devices` - 1, `on` and `off` are seconds of virtual time, `off` may be `inf`. The windows of
    a device stand in the order of time; devices may alternate. Devices without a row are never there.

    Raises:
        ValueError: names the file and its lines, if the file cannot be read, has no such columns or no rows; if something is no
            number, or a device is not of this fleet; if a trace goes back in time.
    """
    table, ended, windows = read_table(path, "trace", f"the columns {','.join(COLUMNS)}"), {}, []
    if missing := [name for name in COLUMNS if name not in table.header]:
        has = f"; it has {printable(', '.join(table.header))}" if table.header else ""
        raise ValueError(f"{path}, line 1: no column {', '.join(missing)}; the first line of a trace is {','.join(COLUMNS)}{has}")
    for number, cells in table.rows:
        with table.line(number):
            device, on, off = _window(cells, devices)
            if on < ended.get(device, -math.inf):
                raise ValueError(
                    f"device {device} comes at {on:g} s, and its window before ends at {ended[device]:g} s: "
                    f"a trace must not go back in time; sort it by on, and merge windows that overlap"
                )
            ended[device] = off
            windows.append((device, on, off))
    table.check()
    if not windows:
        raise ValueError(f"{path}, line 2: no rows, so no device would ever be there; write a line device,on,off for every window")
    device, on, off = zip(*windows, strict=True)
    return Trace(np.array(device, np.int64), np.array(on, np.float64), np.array(off, np.float64))


def _window(cells: dict[str, str], devices: int) -> tuple[int, float, float]:
    device = _number(cells, "device", int)
    if not 0 <= device < devices:
        raise ValueError(f"device is {device}: the fleet has devices 0 to {devices - 1}; drop the row, or take more devices")
    on, off = _number(cells, "on", float), _number(cells, "off", float)
    if not math.isfinite(on) or math.isnan(off):
        raise ValueError(f"a window from {on} to {off} s: write seconds; off may be inf, for a device that stays")
    if off <= on:
        raise ValueError(f"off is {off:g} s and on is {on:g} s: a window must end after it begins; drop the row, or swap them")
    return device, on, off


def _number(cells: dict[str, str], column: str, kind: type):
    text = cells[column]
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number of seconds"
        raise ValueError(f"{column} is {printable(text)!r}: write {what}") from None
