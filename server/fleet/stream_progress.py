"""At which step of its stream a device is: together with all others, by its own clock, or by the rounds it has taken part in.

A step k of device d begins when the clock reaches (D_d + k / v_d) * U:

| advance | clock | U |
|---|---|---|
| `rounds` | server rounds done, round - 1 | rounds per task |
| `time` | virtual time in seconds | seconds per task |
| `participation` | rounds that the device has finished | rounds per task; D_d is waited for in server rounds |

v_d = exp(pace_spread * z), z standard normal: the device's speed, median 1. D_d, uniform in [0, start_spread): its late start, in steps.
Both are functions of (seed, device). Before its first step a device is at step -1; in its last one it stays.

A spread by a logarithm is our choice: a speed is above 0, and twice as fast is as likely as half as fast.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparcl_core.seeding import generator

Advance = Literal["rounds", "time", "participation"]
ADVANCES = ("rounds", "time", "participation")


@dataclass(frozen=True, eq=False)
class Pace:
    """The pace of a fleet; make it with `of`.

    Attributes:
        steps: of every device's stream.
        rounds_per_task: rounds that a step lasts at speed 1.
        advance: what the clock is.
        task_s: seconds that a step lasts at speed 1; read by `time` only.
        speed: [devices] float64, v.
        delay: [devices] float64, D, in steps.
    """

    steps: int
    rounds_per_task: int
    advance: Advance
    task_s: float
    speed: np.ndarray
    delay: np.ndarray

    @classmethod
    def of(
        cls, seed: int, devices: int, steps: int, rounds_per_task: int, *, advance: Advance = "rounds", task_s: float = 0.0,
        pace_spread: float = 0.0, start_spread: float = 0.0,
    ) -> "Pace":  # fmt: skip
        """The pace of devices 0 to `devices` - 1.

        Args:
            task_s: above 0 for `time`, else not read.
            pace_spread: standard deviation of the logarithm of the speed; 0: all at speed 1.
            start_spread: the latest start, in steps; 0: all begin at once.

        Raises:
            ValueError: if a number is out of its range.
        """
        if devices < 1 or steps < 1 or rounds_per_task < 1:
            raise ValueError(f"devices is {devices}, steps {steps}, rounds_per_task {rounds_per_task}: at least 1 of each")
        if advance not in ADVANCES:
            raise ValueError(f"advance is {advance!r}: choose one of {', '.join(ADVANCES)}")
        if advance == "time" and not 0 < task_s < math.inf:
            raise ValueError(f"task_s is {task_s}: by time a step lasts a finite number of seconds, above 0")
        for name, value in (("pace_spread", pace_spread), ("start_spread", start_spread)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}: finite and not negative; 0 spreads nothing")
        speed, delay = np.broadcast_to(1.0, devices), np.broadcast_to(0.0, devices)  # no memory for a fleet in step
        if pace_spread:
            speed = np.exp(pace_spread * generator(seed, "pace").standard_normal(devices))
        if start_spread:
            delay = start_spread * generator(seed, "start").random(devices)
        return cls(steps, rounds_per_task, advance, task_s, speed, delay)

    def step(self, devices: np.ndarray, server_round: int, time: float, finished: np.ndarray) -> np.ndarray:
        """The step of each of `devices`, [n] int64: -1 before its first, at most `steps` - 1.

        Args:
            devices: [n] int64, numbers of devices.
            server_round: the round that is to be trained, from 1.
            time: virtual seconds since the start; read by `time` only.
            finished: [n] int64, rounds that each has finished; read by `participation` only.
        """
        clock = self._clock(server_round, time, finished)
        step = np.full(len(devices), -1, dtype=np.int64)
        for number in range(self.steps):
            step += clock >= self._begin(devices, number)
        if self.advance == "participation":  # a device that has not begun has finished nothing: its start is the server's clock
            step[server_round - 1 < self.delay[devices] * self.rounds_per_task] = -1
        return step

    @property
    def _unit(self) -> float:
        return self.task_s if self.advance == "time" else float(self.rounds_per_task)

    def _clock(self, server_round: int, time: float, finished: np.ndarray) -> float | np.ndarray:
        if server_round < 1:
            raise ValueError(f"server_round is {server_round}: rounds are numbered from 1")
        return {"rounds": server_round - 1, "time": time, "participation": finished}[self.advance]

    def _begin(self, devices: np.ndarray, number: int) -> np.ndarray:
        """When step `number` of each device begins, on its clock."""
        delay = 0.0 if self.advance == "participation" else self.delay[devices]
        return (delay + number / self.speed[devices]) * self._unit
