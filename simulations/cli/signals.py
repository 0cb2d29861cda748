"""Signals that end a command. The first one is a KeyboardInterrupt; those that follow it at once do not disturb the clean-up.

Ctrl-C is often pressed more than once. What a second one interrupts would be the clean-up: Ray's processes would stay, and nobody would be
told how to resume. So for `PATIENCE_S` further signals are ignored. From then on a clean-up that hangs can be ended: the next signal is a
KeyboardInterrupt again, and SIGTERM, or the third signal, ends the process as it would have without us.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE_S = 10.0
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stops:
    """What this process was told to do by signals.

    Attributes:
        first: number of the first signal; None: there was none.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self._since = self._count = 0
        self._before: dict[int, object] = {}

    def arm(self) -> None:
        """Take the signals over, but for those that this process was started to ignore (nohup). Again after others did: Ray does."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if (now := signal.getsignal(number)) not in (signal.SIG_IGN, self._handle):
                self._before.setdefault(number, now)
                signal.signal(number, self._handle)

    def disarm(self) -> None:
        """As it was before `arm`."""
        while self._before:
            signal.signal(*self._before.popitem())

    @property
    def exit_code(self) -> int:
        """What shells expect of a process that a signal has ended."""
        return 128 + (self.first or signal.SIGINT)

    def _handle(self, number: int, frame) -> None:
        self._count += 1
        if self.first is None:
            self.first, self._since = number, time.monotonic()
        elif time.monotonic() < self._since + PATIENCE_S:
            return
        elif number == signal.SIGTERM or self._count > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise KeyboardInterrupt


@contextmanager
def stops(to_the_end: bool = False) -> Iterator[Stops]:
    """Signals are taken over within the block; with `to_the_end`, where one came, for the rest of the process too."""
    found = Stops()
    found.arm()
    try:
        yield found
    finally:
        if found.first is None or not to_the_end:
            found.disarm()
