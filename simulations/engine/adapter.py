"""The one place that touches what Flower keeps private: process identity, message ids, protobuf of messages and state.

Checked against Flower 1.41; another version that moves these ends in an error that says so.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

try:
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
    from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
    from flwr.proto.message_pb2 import Message as MessageProto
    from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
    from flwr.serverapp import Grid
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity
except ImportError as error:
    import importlib.metadata

    raise ImportError(
        f"Flower {importlib.metadata.version('flwr')} moved something that the engine needs ({error}); "
        f"install the version that pyproject.toml names"
    ) from error

RUN_ID = 1
AppFactory = Callable[..., ClientApp]
WORKER_LOST = ErrorCode.CLIENT_APP_CRASHED


class EngineError(RuntimeError):
    """The engine cannot start or go on; the message says why and what to do."""


@dataclass(frozen=True)
class Handled:
    """What became of one message: the reply's bytes, and the device's new state (None: keep the old one)."""

    reply: bytes
    state: bytes | None


def identify_process() -> None:
    """Flower 1.41 builds no Message without this process-wide identity."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, RUN_ID, SUPERLINK_NODE_ID


def to_bytes(message: Message) -> bytes:
    return message_to_proto(message).SerializeToString(deterministic=True)


def from_bytes(data: bytes) -> Message:
    return message_from_proto(MessageProto.FromString(data))


def number_message(message: Message, message_id: str) -> None:
    message.metadata.__dict__["_message_id"] = message_id


def error_reply(message: Message, code: int, reason: str) -> bytes:
    return to_bytes(Message(Error(code, reason), reply_to=message))


def handle(app: ClientApp, data: bytes, state: bytes, node_config: dict, run_config: dict) -> Handled:
    """Run `app` on one message with the Context of one device. What the app raises becomes an error reply."""
    message = from_bytes(data)
    records = recorddict_from_proto(RecordDictProto.FromString(state))
    context = Context(RUN_ID, message.metadata.dst_node_id, dict(node_config), records, dict(run_config))
    try:
        reply = app(message, context)
    except Exception as error:
        return Handled(error_reply(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error) or type(error).__name__), None)
    return Handled(to_bytes(reply), recorddict_to_proto(context.state).SerializeToString(deterministic=True))


class EngineGrid(Grid):
    """What the engines share: node ids, messages, and the Grid methods of Flower in terms of `send_and_receive`.

    Device d has node id d + 1 and `partition-id` d. Replies come in completion order, as from any Grid.
    """

    def __init__(self, num_devices: int, run_config: dict | None = None, on_reply: Callable[[int], None] | None = None):
        """`on_reply`: told the device's number whenever a reply has come in."""
        identify_process()
        self.num_devices, self.run_config = num_devices, run_config or {}
        self.on_reply = on_reply or (lambda device: None)
        self._count = 0
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(RUN_ID)

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
        """Carry the messages out; the replies wait for `pull_messages`. Returns their ids, in the order of the messages."""
        messages = list(messages)
        self._replies |= {reply.metadata.reply_to_message_id: reply for reply in self.send_and_receive(messages)}
        return [message.metadata.message_id for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def close(self) -> None:
        """Give back what the engine holds."""

    def _prepare(self, messages: Iterable[Message]) -> list[Message]:
        prepared = list(messages)
        for message in prepared:
            if not 1 <= message.metadata.dst_node_id <= self.num_devices:
                raise ValueError(f"message for node {message.metadata.dst_node_id}: there are nodes 1 to {self.num_devices}")
            self._count += 1
            number_message(message, str(self._count))
        return prepared
