"""What the engines share: a `flwr.serverapp.Grid` over devices of this simulation, and what becomes of their states.

Device d has node id d + 1 and `partition-id` d. Messages that are pushed together are one exchange. A device's new state is put into
the store before its reply is handed out; a device that failed has the state that it had. What an exchange changed is final with
`commit`; a grid that is not told to wait for it commits whenever nothing is on its way any more.

As on Flower's own Grid, a message lives for its `ttl`: what is not answered by then never happened, and a pull says so with an error. Only
`stream`, which is ours, waits as long as it takes, so that a run's result does not depend on how fast the machine is.
"""

import logging
import math
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from simulations.engine.adapter import (
    RUN_ID,
    Error,
    ErrorCode,
    Metadata,
    Run,
    copy_metadata,
    identify_process,
    number_message,
    reply_to,
    unavailable,
)
from simulations.engine.boundary import Refused, opened
from simulations.engine.manifest import Manifest
from simulations.engine.parcel import Parcel, detach_message
from simulations.engine.states import StateChanges
from simulations.engine.store import StateStore

log = logging.getLogger(__name__)
GONE = "there is no reply to this message: it has expired (ttl), was answered before, or never existed"


@dataclass
class Job:
    """One message on its way.

    Attributes:
        request: the message's metadata as it was pushed; payload: all of it.
        expires: UNIX time from which on nobody waits for it.
        tries: how often its worker was lost.
        alone: it is not handed out together with others any more.
    """

    request: Metadata
    device: int
    exchange: int
    payload: Parcel | None = field(default=None, repr=False)
    expires: float = math.inf
    tries: int = 0
    alone: bool = False

    @property
    def id(self) -> str:
        return self.request.message_id

    @property
    def has_expired(self) -> bool:
        return self.expires <= time.time()


class EngineGrid(Grid):
    """Flower's Grid in terms of two things that an engine does: `_submit` takes jobs on, `_step` waits for replies."""

    def __init__(
        self,
        num_devices: int,
        *,
        run_config: dict | None,
        on_reply: Callable[[int], None] | None,
        store: StateStore,
        waits_for_commit: bool,
        reply_limit_bytes: int | None = None,
    ):
        """`on_reply`: told the device's number whenever a reply has come in. `waits_for_commit`: the caller calls `commit`.
        `reply_limit_bytes`: a reply with more is an error, and is neither sent nor read.
        """
        identify_process()
        self.num_devices, self.run_config = num_devices, run_config or {}
        self.on_reply = on_reply or (lambda device: None)
        self.store, self.manifest, self.waits_for_commit = store, Manifest(keeps_older=waits_for_commit), waits_for_commit
        self.reply_limit_bytes = reply_limit_bytes
        self._open: dict[str, Job] = {}
        self._replies: dict[str, tuple[Job, Message]] = {}
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

    def _receive(self, job: Job, answer: Parcel, state: tuple[str, ...] | None) -> None:
        """`_finish` with what an app has answered; one that is too large or cannot be read is an error."""
        try:
            reply = opened(answer, job.device, self.reply_limit_bytes)
        except Refused as refused:
            reply, state = reply_to(job.request, error=Error(refused.code, str(refused))), None
        self._finish(job, reply, state)

    def _finish(self, job: Job, reply: Message, state: tuple[str, ...] | None) -> None:
        """The reply of `job` is there; `state`: the shared blobs of the device's new state, None if it keeps the old one."""
        if self._open.pop(job.id, None) is None:
            return  # given up meanwhile
        if not job.has_expired:
            if state is not None:
                self.manifest.moved(job.device, job.exchange, state)
            self._replies[job.id] = (job, reply)
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
        """Send messages out as one exchange; a device that has several handles them in turn.

        Returns:
            Ids in the messages' order, as on Flower's own Grid without those for nodes that there are not.

        Raises:
            ValueError: if a message is a reply, or lives for no time; then nothing is sent.
        """
        return list(self._push(messages, is_patient=False))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, each handed out once, and an error for every id without one, as it is unknown, expired or was
        pulled before. Waits for nothing; but where nobody else does the work, as on the inline engine, one message is handled first.
        """
        wanted = dict.fromkeys(message_ids)
        self._expire([self._open[number] for number in wanted if number in self._open])
        if self._open:
            self._step(0.0)
        return [reply for number in wanted if (reply := self._take(number))]

    def stream(self, messages: Iterable[Message], timeout: float | None = None) -> Iterator[Message]:
        """Send messages and hand out each reply as it comes in, while others are still being trained. In any order.

        Args:
            timeout: wall-clock seconds after which no more replies are waited for. What is still missing is given up.
        """
        return self._exchange(messages, timeout, is_patient=True)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """All replies, in completion order; those that are not there after `timeout` seconds of wall-clock time are left out."""
        return list(self._exchange(messages, timeout, is_patient=False))

    def _push(self, messages: Iterable[Message], is_patient: bool) -> dict[str, Job]:
        """`is_patient`: whatever the messages' ttl."""
        prepared = list(messages)
        for message in prepared:
            if message.metadata.reply_to_message_id or not message.metadata.ttl > 0:
                raise ValueError(f"a message with {message.metadata} cannot be pushed: it must be no reply, and have a ttl above 0")
        exchanges, turns, jobs, strangers = [self.manifest.begin()], Counter(), {}, []
        for index, message in enumerate(prepared):
            number = f"{exchanges[0]}-{index}"  # the ledger counts its bytes: it must be the same when a run is resumed
            number_message(message, number)
            node, request = message.metadata.dst_node_id, copy_metadata(message.metadata)
            if not 1 <= node <= self.num_devices:
                strangers.append(node)
                continue
            if turns[node] == len(exchanges):  # a state is never overwritten: a device's second message belongs to a further exchange
                exchanges.append(self.manifest.begin())
            expires = math.inf if is_patient else request.created_at + request.ttl
            jobs[number] = Job(request, node - 1, exchanges[turns[node]], detach_message(message), expires)
            turns[node] += 1
        if strangers:
            named = ", ".join(map(str, strangers[:5])) + (", ..." if len(strangers) > 5 else "")
            log.warning("nothing is sent to node %s: there are nodes 1 to %d", named, self.num_devices)
        self._open |= jobs
        self._submit(list(jobs.values()))
        return jobs

    def _exchange(self, messages: Iterable[Message], timeout: float | None, is_patient: bool) -> Iterator[Message]:
        left = self._push(messages, is_patient)
        give_up = math.inf if timeout is None else time.monotonic() + timeout
        soonest = min((job.expires for job in left.values()), default=math.inf)
        try:
            while left:
                if soonest <= time.time():
                    self._expire(list(left.values()))
                    soonest = min((job.expires for job in left.values() if not job.has_expired), default=math.inf)
                    there = list(left)
                else:
                    there = [number for number in self._replies if number in left]
                for number in there:
                    if reply := self._take(number):
                        del left[number]
                        yield reply
                patience = min(give_up - time.monotonic(), soonest - time.time())
                if not left or give_up <= time.monotonic():
                    return
                self._step(max(0.0, patience) if patience < math.inf else None)
        finally:
            if left:  # the caller went away, or the time is over
                self._give_up(left)

    def _take(self, number: str) -> Message | None:
        """The reply to this message, an error if it will never have one, None if it is on its way."""
        if number in self._open:
            return None
        if number not in self._replies:
            return unavailable(number, ErrorCode.MESSAGE_UNAVAILABLE, GONE)
        job, reply = self._replies.pop(number)
        if job.has_expired:
            return unavailable(number, ErrorCode.MESSAGE_UNAVAILABLE, GONE)
        if job.expires < math.inf and reply.metadata.created_at + reply.metadata.ttl <= time.time():
            return unavailable(number, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "the reply has expired: its ttl is over")
        return reply

    def _expire(self, jobs: list[Job]) -> None:
        self._give_up([job.id for job in jobs if job.has_expired and job.id in self._open])

    def _give_up(self, ids: Iterable[str]) -> None:
        """Nobody waits for these any more."""
        if ids := set(ids):
            for number in ids:
                self._open.pop(number, None)
                self._replies.pop(number, None)
            self._forget(ids)
            self._commit_alone()
