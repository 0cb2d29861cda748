"""The inline engine: every device in this process, one after another. For a debugger, and as the slow twin of the Ray engine."""

from collections import deque
from collections.abc import Callable

from flwr.app import RecordDict

from simulations.engine.adapter import AppFactory
from simulations.engine.boundary import handle
from simulations.engine.cache import StateCache
from simulations.engine.files import MemoryFiles
from simulations.engine.grid import EngineGrid, Job
from simulations.engine.parcel import Parcel, attach_records
from simulations.engine.store import StateStore


class InlineGrid(EngineGrid):
    """Runs `make_app(*args)` in this process. Messages and states go through the same bytes as on the Ray engine.

    An app that never returns, ends the process or closes its files does that to this process; the Ray engine replaces a worker.
    """

    def __init__(
        self,
        make_app: AppFactory,
        args: tuple,
        num_devices: int,
        *,
        run_config: dict | None = None,
        on_reply: Callable[[int], None] | None = None,
        store: StateStore | None = None,
        waits_for_commit: bool = False,
        cache_bytes: int = 0,
        reply_limit_bytes: int | None = None,
    ):
        """`store`: where device states are kept; default: this process's memory. `cache_bytes`: as much of it is kept in memory, too.
        `reply_limit_bytes`: a larger reply is an error.
        """
        super().__init__(
            num_devices,
            run_config=run_config,
            on_reply=on_reply,
            store=store or StateStore(MemoryFiles()),
            waits_for_commit=waits_for_commit,
            reply_limit_bytes=reply_limit_bytes,
        )
        self._app = make_app(*args)
        self._states = StateCache(self.store, cache_bytes)
        self._waiting: deque[Job] = deque()

    @property
    def num_workers(self) -> int:
        """Processes at work."""
        return 1

    def _submit(self, jobs: list[Job]) -> None:
        self._waiting.extend(jobs)

    def _step(self, timeout: float | None) -> None:
        job = self._waiting[0]
        config = self.node_config(job.device + 1)
        handled = handle(
            self._app,
            job.payload,
            self._kept(job.device),
            node_config=config,
            run_config=self.run_config,
            limit_bytes=self.reply_limit_bytes,
        )
        state = None
        if handled.state is not None and not job.has_expired:
            state = self._states.put(job.device, job.exchange, handled.state)
        self._waiting.popleft()  # only now: a job that was interrupted still waits
        self._receive(job, handled.reply, state)

    def _forget(self, ids: set[str]) -> None:
        self._waiting = deque(job for job in self._waiting if job.id not in ids)

    def _kept(self, device: int) -> Parcel | None:
        made = self.manifest.current(device)
        return self._states.get(device, made) if made else None

    def state(self, device: int) -> RecordDict:
        """What the device keeps in its Context, an empty RecordDict before its first message."""
        kept = self._kept(device)
        return attach_records(kept) if kept else RecordDict()
