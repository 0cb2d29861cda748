"""Times of sides that are measured in turn."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable

Times = dict[str, list[float]]


def in_turn(sides: dict[str, Callable[[], object]], repeats: int, warm: int = 1) -> Times:
    """Seconds of every side, in order of the turns; `warm` turns before are not counted."""
    found: Times = {name: [] for name in sides}
    was_enabled = gc.isenabled()
    gc.disable()  # a collection would hit one side by chance
    try:
        for turn in range(warm + repeats):
            for name, side in sides.items():
                start = time.perf_counter()
                side()
                seconds = time.perf_counter() - start
                if turn >= warm:
                    found[name].append(seconds)
    finally:
        if was_enabled:
            gc.enable()
    return found


def speed_up(base: Iterable[float], side: Iterable[float]) -> float:
    """How often `side` is as fast as `base`: median over the turns."""
    return statistics.median(a / b for a, b in zip(base, side, strict=True))


def fastest(times: Times) -> str:
    """The side with the shortest time."""
    return min(times, key=lambda name: min(times[name]))


def geometric_mean(values: Iterable[float], counts: Iterable[int]) -> float:
    """Of `values`, each counted so often."""
    pairs = list(zip(values, counts, strict=True))
    return math.exp(sum(count * math.log(value) for value, count in pairs) / sum(count for _, count in pairs))
