"""What is handed to which worker next. Knows nothing of Ray; the order of work changes no result.

A device goes back to the worker that had it last, where its state is still in memory, unless that one is busy while another
is idle. Devices that take less than a worker's round trip are handed out several at a time.
"""

from collections import deque

from simulations.engine.grid import Job

TARGET_S = 0.05  # a batch should take about this long: a round trip takes 1 to 2 ms
LARGEST_BATCH = 64


class Queue:
    """Jobs that wait for a worker. Workers are numbers."""

    def __init__(self):
        self._again: deque[Job] = deque()  # those that lost their worker come first
        self._own: dict[int, deque[Job]] = {}
        self._any: deque[Job] = deque()
        self._home: dict[int, int] = {}
        self._seconds: dict[str, float] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def has_suspects(self) -> bool:
        """Does one wait that must be tried alone?"""
        return any(job.alone for job in self._again)

    def add(self, jobs: list[Job], workers: set[int]) -> None:
        """`workers`: those there are; devices of others go to any."""
        for job in jobs:
            home = self._home.get(job.device)
            (self._own.setdefault(home, deque()) if home in workers else self._any).append(job)
        self._length += len(jobs)

    def add_again(self, jobs: list[Job]) -> None:
        """Jobs that were handed out before."""
        self._again.extendleft(reversed(jobs))
        self._length += len(jobs)

    def take(self, worker: int, workers: int) -> list[Job]:
        """The next batch for `worker`, one of `workers`; empty if nothing waits."""
        first = self._next(worker)
        if first is None:
            return []
        batch = [first]
        kind = first.request.message_type
        size = self._batch_size(kind, workers)
        while len(batch) < size and not first.alone and (job := self._next(worker, like=kind)):
            batch.append(job)
        for job in batch:
            self._home[job.device] = worker
        return batch

    def took(self, message_type: str, seconds: float, devices: int) -> None:
        """A batch was worked off: how long a device takes decides how large the next ones are."""
        mean, old = seconds / devices, self._seconds.get(message_type)
        self._seconds[message_type] = mean if old is None else 0.5 * (old + mean)

    def forget(self, ids: set[str]) -> None:
        """Take these jobs out, where they still wait."""
        for waiting in (self._again, self._any, *self._own.values()):
            kept = [job for job in waiting if job.id not in ids]
            waiting.clear()
            waiting.extend(kept)
        self._length = sum(map(len, (self._again, self._any, *self._own.values())))

    def gone(self, worker: int) -> None:
        """What waited for this worker may go to any."""
        self._any.extend(self._own.pop(worker, ()))

    def _batch_size(self, message_type: str, workers: int) -> int:
        seconds = self._seconds.get(message_type)
        wanted = 1 if seconds is None else int(min(TARGET_S / max(seconds, 1e-6), LARGEST_BATCH))
        share = -(-(self._length + 1) // (2 * workers))  # nobody should be left with a large batch while the others are done
        return max(1, min(wanted, share))

    def _next(self, worker: int, like: str | None = None) -> Job | None:
        """`like`: only if it may be in a batch of this message type; else it stays where it is."""
        waiting, end = self._again or self._own.get(worker) or self._any, 0
        if not waiting:
            waiting, end = max(self._own.values(), key=len, default=None), -1
        if not waiting:
            return None
        job = waiting[end]
        if like is not None and (job.alone or job.request.message_type != like):
            return None
        del waiting[end]
        self._length -= 1
        return job
