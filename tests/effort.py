"""What a piece of code takes, counted in calls: seconds depend on the machine, and on who else is at work there."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(calls: int) -> Iterator[None]:
    """Fails if the block calls more functions than that, those in C included: work per device in Python does."""
    made = 0

    def count(frame, event, argument) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert made <= calls, f"{made} calls, {calls} at most"
