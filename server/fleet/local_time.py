"""Virtual time, the local time of devices by their time zones, and random numbers that are fixed for a device and a day.

Virtual time is in seconds, a float from 0 = Monday 00:00 UTC. A device in the time zone UTC + o has the local time t + o; its local day d
begins at d * DAY - o. Hours of settings are rounded to whole seconds, so that the edges of windows are exact in float64.

Draws: u(key, device, index), uniform in [0, 1). They are a hash of these three, because a generator for each device and day would cost a
fleet of 100,000 devices as many digests a call. The hash is SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014): every device has a stream of its own, whose state is mix(key + (device + 1) G), and the draw is the upper 53 bits
of mix(state + (index + 1) G). The key is 64 bits of `generator(seed, *address)`. So a draw is a function of (seed, address, device, index)
and of nothing else: not of the other devices of a call, nor of their order.
"""

import numpy as np

from sparcl_core.seeding import Address, generator

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
WEST, EAST = -12.0, 14.0  # the time zones there are, in hours from UTC
STEP, FIRST, SECOND = (np.uint64(number) for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))  # of SplitMix64


class Draws:
    """Uniform numbers with the address (seed, *address, device, index)."""

    def __init__(self, seed: int, *address: Address):
        self.key = generator(seed, *address).integers(2**64, dtype=np.uint64)

    def __call__(self, devices: np.ndarray, index: np.ndarray | int) -> np.ndarray:
        """[n] float64 in [0, 1).

        Args:
            devices: [n] int64.
            index: [n] int64 or one number for all; a slot or a day, which may be negative.
        """
        with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
            state = _mix(self.key + (np.asarray(devices).astype(np.uint64) + np.uint64(1)) * STEP)
            bits = _mix(state + (np.asarray(index).astype(np.uint64) + np.uint64(1)) * STEP)
        return (bits >> np.uint64(11)) * 2.0**-53


def whole_seconds(hours: float) -> float:
    """Hours in seconds, to the nearest whole one."""
    return float(round(hours * HOUR))


def draw_offsets(time_zones: tuple[float, ...], devices: int, seed: int) -> np.ndarray:
    """Which device lives in which time zone: every zone gets as many devices as the others, but for one, and chance says which.

    Args:
        time_zones: hours from UTC; one that stands there twice gets twice as many devices.
        devices: N.

    Returns:
        [N] float64, what to add to UTC for local time, in seconds; `server.fleet.availability` and `server.fleet.battery` take the same.

    Raises:
        ValueError: see `check_time_zones`.
    """
    check_time_zones(time_zones)
    zones = np.array([whole_seconds(zone) for zone in time_zones])
    return zones[generator(seed, "time-zones").permutation(devices) % len(zones)]


def check_time_zones(time_zones: tuple[float, ...]) -> None:
    """
    Raises:
        ValueError: if there is no zone, or one that is not on Earth.
    """
    if not time_zones:
        raise ValueError("time_zones is empty: name at least one, in hours from UTC; [0.0] puts all devices on UTC")
    for zone in time_zones:
        if not WEST <= zone <= EAST:
            raise ValueError(f"time_zones has {zone}: hours from UTC, from {WEST:g} to {EAST:g}, for example 5.75 for Nepal")


def check_daily_window(from_hour: float, hours: float) -> None:
    """
    Raises:
        ValueError: if there is no such time of day, or the window is empty or longer than a day.
    """
    if not 0 <= from_hour < 24:
        raise ValueError(f"from_hour is {from_hour}: a local time from 0 to below 24; midnight is 0")
    if not 1 / 60 <= hours <= 24:
        raise ValueError(f"hours is {hours}: from a minute (1/60) to 24; a window may reach into the next day")


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * SECOND
    return bits ^ (bits >> np.uint64(31))
