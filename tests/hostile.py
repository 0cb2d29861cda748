"""Everything that a ClientApp can do wrong in one message, and what is to be said of it. Each is one device's failure, on any engine."""

import errno
import os
import sys

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from simulations.engine.grid import EngineGrid

LIMIT = 100_000  # of a reply's bytes


class Unspeakable(Exception):
    def __str__(self):
        raise SystemExit("not even this")


class Stuck(Exception):
    def __str__(self):
        return self  # no text at all


def throw(error: BaseException):
    def act(message: Message, context: Context) -> Message:
        raise error

    return act


def unnamed(message: Message, context: Context) -> Message:
    """Made here, since nobody could send such a class anywhere."""

    class Nameless(type):
        @property
        def __name__(cls):
            raise GeneratorExit

    class Unnamed(Exception, metaclass=Nameless):
        def __str__(self):
            raise ValueError

    raise Unnamed


def shifty(message: Message, context: Context) -> Message:
    class Shifty:
        """Is a Message when asked, and is not."""

        __class__ = Message

        def __repr__(self):
            raise KeyboardInterrupt

    return Shifty()


def circular(message: Message, context: Context) -> Message:
    """Each is the other's cause."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def give(value: object):
    return lambda message, context: value


def reply_with(**records):
    return lambda message, context: Message(RecordDict(records), reply_to=message)


def damaged_array(message: Message, context: Context) -> Message:
    record = ArrayRecord([np.zeros(3)])
    record["0"].data = "no bytes"
    return Message(RecordDict({"arrays": record}), reply_to=message)


def mixed_list(message: Message, context: Context) -> Message:
    record = ConfigRecord({"values": [b"x" * 20_000]})
    record["values"].append(3)
    return Message(RecordDict({"it": record}), reply_to=message)


def no_content(message: Message, context: Context) -> Message:
    reply = Message(RecordDict(), reply_to=message)
    reply.content = None
    return reply


def wrong_content(message: Message, context: Context) -> Message:
    reply = Message(RecordDict(), reply_to=message)
    reply.content = "text"
    return reply


def wrong_code(message: Message, context: Context) -> Message:
    return Message(Error("seven", "odd"), reply_to=message)


def write_run_config(message: Message, context: Context) -> Message:
    context.run_config["lr"] = 7.0
    return Message(RecordDict(), reply_to=message)


def keep(value: object):
    def act(message: Message, context: Context) -> Message:
        context.state = value
        return Message(RecordDict(), reply_to=message)

    return act


def keep_inside(record: ConfigRecord):
    def act(message: Message, context: Context) -> Message:
        context.state["kept"] = record
        return Message(RecordDict(), reply_to=message)

    return act


def leave(message: Message, context: Context) -> Message:
    sys.exit(0)


FAILURES = {
    "text with a lone surrogate": (throw(ValueError("so\ud800rry")), "so\ufffdrry"),
    "text with escapes": (throw(ValueError("\x1b[31mred\x1b[0m\r\nline")), "red line"),
    "text of a megabyte": (throw(ValueError("word " * 200_000)), "word word word "),
    "no text": (throw(ValueError()), "ValueError"),
    "text that raises": (throw(Unspeakable()), "(Unspeakable, whose text cannot be had: SystemExit)"),
    "text that is none": (throw(Stuck()), "(Stuck, whose text cannot be had: TypeError)"),
    "neither text nor name": (unnamed, "stage app: raised something that cannot be shown"),
    "KeyboardInterrupt": (throw(KeyboardInterrupt()), "stage app: raised KeyboardInterrupt"),
    "GeneratorExit": (throw(GeneratorExit("over")), "stage app: raised GeneratorExit: over"),
    "sys.exit": (leave, "stage app: raised SystemExit: 0"),
    "causes in a circle": (circular, "first"),
    "None": (give(None), "stage app: returned None (NoneType), where a ClientApp returns a Message"),
    "a text": (give("do\ud800ne"), "(str), where a ClientApp returns a Message"),
    "a list": (give([1, 2]), "stage app: returned [1, 2] (list), where"),
    "what says that it is a Message": (shifty, "has no attribute 'has_error'"),
    "nothing in it": (no_content, "stage app: returned a Message with neither content nor error"),
    "content that is text": (wrong_content, "stage app: returned a Message with 'text' (str), where it holds a RecordDict"),
    "an error with a word for a code": (wrong_code, "stage reply: it cannot be serialised"),
    "config with a lone surrogate": (reply_with(it=ConfigRecord({"text": "\ud800"})), "stage reply: it cannot be serialised"),
    "a key with a lone surrogate": (reply_with(it=ConfigRecord({"\ud800": b"x" * 20_000})), "stage reply: it cannot be serialised"),
    "an integer of 65 bits": (reply_with(it=ConfigRecord({"n": 2**64})), "stage reply: it cannot be serialised"),
    "a measure of 65 bits": (reply_with(it=MetricRecord({"n": -(2**63) - 1})), "stage reply: it cannot be serialised"),
    "an array without bytes": (damaged_array, "stage reply: it cannot be serialised"),
    "a list of two types": (mixed_list, "stage reply: it cannot be serialised"),
    "a large value": (reply_with(it=ConfigRecord({"x": bytes(LIMIT)})), f"bytes, more than the {LIMIT} that one to this message can need"),
    "many small values": (reply_with(it=ConfigRecord({"x": [1.5] * LIMIT})), f"bytes, more than the {LIMIT}"),
    "an array": (reply_with(it=ArrayRecord({"x": Array(np.zeros(LIMIT))})), f"bytes, more than the {LIMIT}"),
    "another run config": (write_run_config, "the `run_config` field of the `Context` object cannot be modified"),
    "no state": (keep(None), "stage state: it cannot be serialised: TypeError: None (NoneType), where a Context holds a RecordDict"),
    "a dict as state": (keep({"kept": 1}), "stage state: it cannot be serialised"),
    "state with a lone surrogate": (keep_inside(ConfigRecord({"text": "\ud800"})), "stage state: it cannot be serialised"),
    "state with an integer of 65 bits": (keep_inside(ConfigRecord({"n": [2**64]})), "stage state: it cannot be serialised"),
    "words of memory": (throw(RuntimeError("out of memory: can't allocate memory")), "out of memory: can't allocate memory"),
    "words of CUDA": (throw(ValueError("CUDA out of memory. Tried to allocate")), "CUDA out of memory."),
}  # fmt: skip


def exhaust_allocator() -> None:
    torch.empty(10**15)


def wrap_memory_error() -> None:
    try:
        raise MemoryError
    except MemoryError as error:
        raise RuntimeError("device 0, round 1, stage train") from error


def fail_to_map() -> None:
    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def exhaust_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


MEMORY = [exhaust_allocator, wrap_memory_error, fail_to_map, exhaust_gpu, lambda: np.empty(2**50)]


def as_another(message: Message, context: Context) -> Message:
    """A good answer in the name of another device."""
    reply = Message(RecordDict({"answer": ConfigRecord({"is": "good"})}), reply_to=message)
    told = reply.metadata.__dict__
    told.update(_src_node_id=77, _dst_node_id=-3, _reply_to_message_id="99-9", _run_id=8, _message_id="1-0-reply", _ttl=float("nan"))
    told.update(_message_type="odd\ud800", _group_id=None, _created_at="now", _src_task_id=2**70)
    return reply


def request_itself(message: Message, context: Context) -> Message:
    message.content["answer"] = ConfigRecord({"is": "good"})
    message.metadata.__dict__.update(_message_id="99-9", _dst_node_id=77, _src_node_id=77)
    return message


def question(message: Message, context: Context) -> Message:
    return Message(RecordDict({"answer": ConfigRecord({"is": "good"})}), 77, "evaluate", ttl=9e9)


IMPOSTORS = [as_another, request_itself, question]
DEVICES = len(FAILURES) + len(IMPOSTORS)


def hostile_app() -> ClientApp:
    """Device d does the d-th of all this, and counts its messages in its state."""
    acts = [act for act, _ in FAILURES.values()] + IMPOSTORS
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        context.state["count"] = ConfigRecord({"n": 1 + (context.state["count"]["n"] if "count" in context.state else 0)})
        return acts[context.node_config["partition-id"]](message, context)

    return app


def expect_rows(grid: EngineGrid) -> list[Message]:
    """One message to every device: one reply of each, with the engine's identity, and whoever failed kept no state. Returns the errors."""
    names, good = list(FAILURES), range(len(FAILURES), DEVICES)
    sent = [Message(RecordDict({"order": ConfigRecord({"n": 1})}), node, "train", group_id="4") for node in range(1, DEVICES + 1)]
    replies = sorted(grid.stream(sent), key=lambda reply: reply.metadata.src_node_id)
    assert [reply.metadata.src_node_id for reply in replies] == list(range(1, DEVICES + 1))
    for device, (message, reply) in enumerate(zip(sent, replies, strict=True)):
        told, number = reply.metadata, message.metadata.message_id
        assert (told.reply_to_message_id, told.message_id, told.dst_node_id, told.run_id) == (number, f"{number}-reply", 1, 1)
        assert (told.group_id, told.message_type) == ("4", "train") and 0 < told.ttl <= 43_200
        if device in good:
            assert reply.content["answer"]["is"] == "good"
            continue
        expected = FAILURES[names[device]][1]
        assert expected in reply.error.reason, (names[device], reply.error.reason)
        assert reply.error.reason.isprintable() and len(reply.error.reason) <= 500
        assert not expected.startswith("stage") or reply.error.reason.startswith(f"device {device}, stage")
        assert reply.error.code == (0 if names[device] == "another run config" else 2)  # as Flower's
    assert grid.changes().devices.tolist() == list(good)
    return replies[: len(names)]
