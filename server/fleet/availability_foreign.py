"""An availability model of another package: any object with `until` and `next_on`, looked at once before a run relies on it."""

from typing import Any, Protocol

import numpy as np

from server.fleet.availability_rules import Availability, each
from sparcl_core.foreign import printable


class Model(Protocol):
    """What such an object needs: the two methods of `Availability`, with the same meaning. It may have `gone`, too."""

    def until(self, devices: np.ndarray, time: np.ndarray) -> np.ndarray: ...

    def next_on(self, devices: np.ndarray, time: np.ndarray) -> np.ndarray: ...


class Foreign(Availability):
    """Such an object as the server uses it: `time` is [n] always, and what it answers is [n] float64."""

    def __init__(self, model: Model):
        self.model = model

    def until(self, devices, time):
        return np.asarray(self.model.until(devices, each(time, devices)), np.float64)

    def next_on(self, devices, time):
        return np.asarray(self.model.next_on(devices, each(time, devices)), np.float64)

    def gone(self, devices, time):
        own = getattr(self.model, "gone", None)
        return super().gone(devices, time) if own is None else np.asarray(own(devices, each(time, devices)), bool)


def foreign(model: Any, devices: int, kind: str) -> Availability:
    """`model` as the server uses it.

    Raises:
        ValueError: if it lacks one of the methods, or what it says of time 0 and of the times that it names then cannot be.
    """
    shown = f"availability.kind {printable(kind, 120)} has made {printable(repr(model), 80)}"
    if lacking := [name for name in ("until", "next_on") if not callable(getattr(model, name, None))]:
        raise ValueError(f"{shown}, which has no method {' and no '.join(lacking)}: see server.fleet.availability_rules.Availability")
    made, numbers = model if isinstance(model, Availability) else Foreign(model), np.arange(devices)
    time = np.zeros(devices)
    for _ in range(2):  # at the start, and when each device comes first
        until, begins = made.until(numbers, time), made.next_on(numbers, time)
        for name, answer in (("until", until), ("next_on", begins)):
            if answer.shape != (devices,) or not (answer >= time).all():  # also refuses NaN
                raise ValueError(f"{shown}, whose {name} is no array of {devices} times, none before the time that is asked for")
        if (wrong := (until > time) != (begins == time)).any():
            device = int(np.argmax(wrong))
            raise ValueError(
                f"{shown}, which contradicts itself: of device {device} at {time[device]:g} s until is {until[device]:g} and next_on "
                f"{begins[device]:g}; it is there if until lies behind the time, and then next_on is that time"
            )
        time = np.where(np.isfinite(begins), begins, time)
    return made
