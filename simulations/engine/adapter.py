"""The one place that touches what Flower keeps private: process identity, ids and metadata of messages, protobuf of messages and state.

Checked against Flower 1.41; another version that moves these ends in an error that says so.
"""

import os
import time
from collections.abc import Callable

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")

# ruff: noqa: F401  (the engine's other modules take Flower's private parts from here)
try:
    from flwr.app import Context, Error, Message, Metadata, RecordDict
    from flwr.app.message import make_message
    from flwr.clientapp import ClientApp
    from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
    from flwr.common.serde import message_from_proto, message_to_proto, recorddict_from_proto, recorddict_to_proto
    from flwr.proto.message_pb2 import Message as MessageProto
    from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
    from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
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
APP_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
WORKER_LOST = ErrorCode.CLIENT_APP_CRASHED


class EngineError(RuntimeError):
    """The engine cannot start or go on; the message says why and what to do."""


def identify_process() -> None:
    """Flower 1.41 builds no Message without this process-wide identity."""
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN_ID, RUN_ID, SUPERLINK_NODE_ID


def to_bytes(message: Message) -> bytes:
    return message_to_proto(message).SerializeToString(deterministic=True)


def from_bytes(data: bytes) -> Message:
    return message_from_proto(MessageProto.FromString(data))


def number_message(message: Message, message_id: str) -> None:
    message.metadata.__dict__["_message_id"] = message_id


def copy_metadata(metadata: Metadata, **changes: object) -> Metadata:
    """The same with these changes, by the names of Metadata's own arguments; `copy.copy` and Metadata's checks take ten times as long."""
    copied = Metadata.__new__(Metadata)
    vars(copied).update(vars(metadata))
    vars(copied).update({f"_{name}": value for name, value in changes.items()})
    return copied


def reply_to(request: Metadata, *, content: RecordDict | None = None, error: Error | None = None, ttl: float | None = None) -> Message:
    """The reply to the message with this metadata, from the node that it went to. Its id follows from the message's, so that a run that
    is resumed has the same ones. `ttl`: as long as it is valid, if the message allows that."""
    now = time.time()
    left = request.created_at + request.ttl - now
    metadata = copy_metadata(
        request,
        message_id=_reply_id(request.message_id),
        src_node_id=request.dst_node_id,
        dst_node_id=request.src_node_id,
        reply_to_message_id=request.message_id,
        created_at=now,
        ttl=left if ttl is None else min(ttl, left),
        src_task_id=request.dst_task_id,
        dst_task_id=request.src_task_id,
    )
    return make_message(metadata, content, error)


def error_reply(message: Message, code: int, reason: str) -> Message:
    return reply_to(message.metadata, error=Error(code, reason))


def unavailable(message_id: str, code: int, reason: str) -> Message:
    """What a pull answers where it has no reply and never will: as Flower's, it comes from the SuperLink and not from a node."""
    metadata = Metadata(
        run_id=RUN_ID,
        message_id=_reply_id(message_id),
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=message_id,
        group_id="",
        created_at=time.time(),
        ttl=0,
        message_type=SYSTEM_MESSAGE_TYPE,
    )
    return make_message(metadata, error=Error(code, reason))


def _reply_id(message_id: str) -> str:
    return f"{message_id}-reply"
