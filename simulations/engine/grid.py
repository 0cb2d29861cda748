"""What the engines share: a `flwr.serverapp.Grid` over devices of this simulation, and what becomes of their states.

Device d has node id d + 1 and `partition-id` d. Messages that are pushed together are one exchange. A device's new state is put into
the store before its reply is handed out; a reply that is an error leaves the state as it was. What an exchange changed is final with
`commit`; a grid that is not told to wait for it commits whenever nothing is on its way any more.
"""

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from simulations.engine.adapter import RUN_ID, Run, identify_process, number_message
from simulations.engine.manifest import Manifest
from simulations.engine.states import StateChanges
from simulations.engine.store import StateStore


@dataclass
class Job:
    """One message on its way. tries: how often its worker was lost; alone: it is not handed out together with others any more."""

    message: Message
    device: int
    exchange: int
    tries: int = 0
    alone: bool = False
    payload: object = field(default=None, repr=False)

    @property
    def id(self) -> str:
        return self.message.metadata.message_id


class EngineGrid(Grid):
    """Flower's Grid in terms of two things that an engine does: `_submit` takes jobs on, `_step` waits for replies."""

    def __init__(
        self,
        num_devices: int,
        run_config: dict | None,
        on_reply: Callable[[int], None] | None,
        store: StateStore,
        waits_for_commit: bool,
    ):
        """`on_reply`: told the device's number whenever a reply has come in. `waits_for_commit`: the caller calls `commit`."""
        identify_process()
        self.num_devices, self.run_config = num_devices, run_config or {}
        self.on_reply = on_reply or (lambda device: None)
        self.store, self.manifest, self.waits_for_commit = store, Manifest(keeps_older=waits_for_commit), waits_for_commit
        self._open: dict[str, Job] = {}
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(RUN_ID)

    # -- what an engine does

    @abstractmethod
    def _submit(self, jobs: list[Job]) -> None:
        """Take on the jobs of one exchange."""

    @abstractmethod
    def _step(self, timeout: float | None) -> None:
        """Wait until at least one open job is done, or `timeout` seconds are over, and `_finish` all that are."""

    @abstractmethod
    def _forget(self, ids: set[str]) -> None:
        """Nobody waits for these jobs any more: those that have not begun need not."""

    def close(self) -> None:
        """Give back what the engine holds."""

    def _finish(self, job: Job, reply: Message, state: tuple[str, ...] | None) -> None:
        """The reply of `job` is there; `state`: the shared blobs of the device's new state, None if it keeps the old one."""
        if self._open.pop(job.id, None) is None:
            return  # given up meanwhile
        if state is not None:
            self.manifest.moved(job.device, job.exchange, state)
        self._replies[job.id] = reply
        self.on_reply(job.device)
        self._commit_alone()

    # -- states

    def changes(self) -> StateChanges:
        """Which device states changed since the last commit."""
        return self.manifest.changes()

    def commit(self) -> None:
        """Make these changes final: what they replace is removed from the store, or with the next commit where a checkpoint may need it."""
        self.store.drop(*self.manifest.commit())

    def undo(self, device: int) -> None:
        """Give the device the state back that it had at the last commit: what it did since was cut short.

        Raises:
            RuntimeError: if the grid commits by itself, as then it has no older state.
        """
        if not self.waits_for_commit:
            raise RuntimeError(f"device {device} cannot have its old state back, as this grid commits by itself: make it wait for commit")
        self.manifest.undo(device)

    def _commit_alone(self) -> None:
        if not self._open and not self.waits_for_commit:
            self.commit()

    def restore(self, exchange: int, history: Iterable[StateChanges]) -> None:
        """Go on where a checkpoint was made, see `Manifest.restore`; states of a round that did not finish are removed."""
        self.store.keep_only(*self.manifest.restore(exchange, history))

    # -- Flower's Grid

    def node_config(self, node_id: int) -> dict:
        return {"partition-id": node_id - 1, "num-partitions": self.num_devices}

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(range(1, self.num_devices + 1))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages out as one exchange; a device that has several handles them in turn. Returns their ids, in the messages' order."""
        prepared = list(messages)
        nodes = [message.metadata.dst_node_id for message in prepared]
        for node in nodes:
            if not 1 <= node <= self.num_devices:
                raise ValueError(f"message for node {node}: there are nodes 1 to {self.num_devices}")
        exchanges, turns, jobs = [self.manifest.begin()], Counter(), []
        for index, (message, node) in enumerate(zip(prepared, nodes, strict=True)):
            if turns[node] == len(exchanges):  # a state is never overwritten: a device's second message belongs to a further exchange
                exchanges.append(self.manifest.begin())
            number_message(message, f"{exchanges[0]}-{index}")  # the ledger counts its bytes: it must be the same when a run is resumed
            jobs.append(Job(message, node - 1, exchanges[turns[node]]))
            turns[node] += 1
        self._open |= {job.id: job for job in jobs}
        self._submit(jobs)
        return [job.id for job in jobs]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there; waits for the first one if there is none. Each is handed out once."""
        wanted = list(message_ids)
        while not any(number in self._replies for number in wanted) and any(number in self._open for number in wanted):
            self._step(None)
        return [self._replies.pop(number) for number in wanted if number in self._replies]

    def stream(self, messages: Iterable[Message], timeout: float | None = None) -> Iterator[Message]:
        """Send messages and hand out each reply as it comes in, while others are still being trained. In any order.

        Args:
            timeout: wall-clock seconds after which no more replies are waited for. What is still missing is given up.
        """
        open_ids = dict.fromkeys(self.push_messages(messages))
        give_up = None if timeout is None else time.monotonic() + timeout
        try:
            while open_ids:
                for number in [number for number in self._replies if number in open_ids]:
                    del open_ids[number]
                    yield self._replies.pop(number)
                if not open_ids:
                    return
                left = None if give_up is None else give_up - time.monotonic()
                if left is not None and left <= 0:
                    return
                self._step(left)
        finally:
            if open_ids:  # the caller went away, or the time is over
                for number in open_ids:
                    self._open.pop(number, None)
                    self._replies.pop(number, None)
                self._forget(set(open_ids))
                self._commit_alone()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All replies, in completion order; those that are not there after `timeout` seconds of wall-clock time are left out."""
        return list(self.stream(messages, timeout))
