"""The one place that touches what Flower keeps private: process identity, message ids, protobuf of messages and state.

Checked against Flower 1.41; another version that moves these ends in an error that says so.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

# ruff: noqa: F401  (the engine's other modules take Flower's private parts from here)
try:
    from flwr.app import Context, Error, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
    from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
    from flwr.proto.message_pb2 import Message as MessageProto
    from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
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
    """What became of one message.

    Attributes:
        reply: the ClientApp's, or an error.
        state: the device's new state; None: it keeps the old one.
        out_of_memory: the app failed for want of memory, so it may succeed in another process.
    """

    reply: Message
    state: RecordDict | None
    out_of_memory: bool = False


def identify_process() -> None:
    """Flower 1.41 builds no Message without this process-wide identity."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, RUN_ID, SUPERLINK_NODE_ID


def to_bytes(message: Message) -> bytes:
    return message_to_proto(message).SerializeToString(deterministic=True)


def from_bytes(data: bytes) -> Message:
    return message_from_proto(MessageProto.FromString(data))


def number_message(message: Message, message_id: str) -> None:
    message.metadata.__dict__["_message_id"] = message_id


def error_reply(message: Message, code: int, reason: str) -> Message:
    return Message(Error(code, reason), reply_to=message)


def handle(app: ClientApp, message: Message, state: RecordDict, node_config: dict, run_config: dict) -> Handled:
    """Run `app` on one message with the Context of one device. What the app raises becomes an error reply."""
    context = Context(RUN_ID, message.metadata.dst_node_id, dict(node_config), state, dict(run_config))
    try:
        reply = app(message, context)
    except Exception as error:
        failure = error_reply(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error) or type(error).__name__)
        return Handled(failure, None, _lacked_memory(error))
    return Handled(reply, context.state)


def _lacked_memory(error: BaseException | None) -> bool:
    """Is want of memory behind this error? PyTorch says so in a RuntimeError, and apps wrap what they catch."""
    while error is not None:
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower() or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
