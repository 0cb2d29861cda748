"""Whatever an app does is one device's row; the user's own signals are no app's."""

import contextlib
import signal
import sys
import threading

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from hostile import DEVICES, FAILURES, LIMIT, MEMORY, expect_rows, hostile_app

from simulations.engine.adapter import identify_process, number_message, unavailable
from simulations.engine.boundary import Handled, Refused, handle, lacked_memory, opened
from simulations.engine.inline import InlineGrid
from simulations.engine.parcel import Parcel, attach_message, detach_message, detach_records


def messages(devices: int) -> list[Message]:
    return [Message(RecordDict(), node, "train") for node in range(1, devices + 1)]


def test_whatever_an_app_does_is_the_row_of_its_device_alone():
    expect_rows(InlineGrid(hostile_app, (), DEVICES, run_config={"lr": 0.1}, waits_for_commit=True, reply_limit_bytes=LIMIT))


# -- memory


@pytest.mark.parametrize("exhaust", MEMORY)
def test_want_of_memory_is_known_by_its_type(exhaust):
    with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
        exhaust()
    assert lacked_memory(caught.value)


def test_words_of_memory_are_none():
    for name in ("words of memory", "words of CUDA", "causes in a circle"):
        with pytest.raises((RuntimeError, ValueError)) as caught:
            FAILURES[name][0](None, None)
        assert not lacked_memory(caught.value)
    hidden = ValueError("a message that has nothing to do with it")
    hidden.__context__, hidden.__suppress_context__ = MemoryError(), True  # raise ... from None
    assert not lacked_memory(hidden)


# -- the other side


def answer_of(message: Message, records: RecordDict) -> Parcel:
    return detach_message(Message(records, reply_to=message))


@pytest.fixture
def message() -> Message:
    identify_process()
    made = Message(RecordDict(), 3, "train")
    number_message(made, "5-0")
    return made


def test_a_reply_that_cannot_be_read_is_refused(message):
    good = answer_of(message, RecordDict({"it": ConfigRecord({"x": b"x" * 20_000})}))
    for bad in (Parcel(b"", ()), Parcel(good.shell, ()), Parcel(good.shell[:-9], good.blobs), Parcel(b"\xff" * 40, good.blobs)):
        with pytest.raises(Refused, match="^device 2, stage reply: it cannot be read: "):
            opened(bad, 2, None)
    assert opened(good, 2, good.num_bytes).content["it"]["x"] == b"x" * 20_000


def test_a_reply_that_is_too_large_is_not_even_opened(message, monkeypatch):
    parcel = answer_of(message, RecordDict({"it": ConfigRecord({"x": b"x" * 20_000})}))
    limit = parcel.num_bytes - 1
    monkeypatch.delattr("simulations.engine.boundary.attach_message")
    with pytest.raises(Refused) as refused:
        opened(parcel, 2, limit)
    expected = f"device 2, stage reply: the reply has {limit + 1} bytes, more than the {limit} that one to this message can need"
    assert str(refused.value) == expected


def test_what_the_driver_refuses_is_the_devices_failure_and_leaves_its_state(monkeypatch):
    """A worker refuses it itself, unless its app has meddled with that."""
    grid = grid_of(lambda: None)
    monkeypatch.setattr("simulations.engine.inline.handle", lambda *_, **__: Handled(Parcel(b"", ()), detach_records(RecordDict())))
    first, second = sorted(grid.send_and_receive(messages(2)), key=lambda reply: reply.metadata.src_node_id)
    assert first.error.reason.startswith("device 0, stage reply: it cannot be read: ") and second.has_error()
    assert grid.manifest.current(0) == grid.manifest.current(1) == 0


def test_an_error_of_the_apps_own_keeps_its_code_and_loses_what_cannot_be_printed(message):
    app = lambda message, context: Message(Error(41, "\x1b[2Jde\ud800vice"), reply_to=message)  # noqa: E731
    reply = attach_message(handle(app, detach_message(message), None, node_config={"partition-id": 2}, run_config={}).reply)
    assert (reply.error.code, reply.error.reason) == (41, "de\ufffdvice")
    assert unavailable("x", 3, "gone").metadata.message_id


# -- the user's own signals


class Ended(BaseException):
    """What a handler of the user's raises."""


def end(number: int, frame) -> None:
    raise Ended


def swallow() -> None:
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def translate() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException as error:
        raise ValueError("it was me") from error


class Speaking(Exception):
    def __str__(self):
        signal.raise_signal(signal.SIGINT)


def speak() -> None:
    raise Speaking


def grid_of(act) -> InlineGrid:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        act()
        return Message(RecordDict(), reply_to=message)

    return InlineGrid(lambda: app, (), 2)


@pytest.mark.parametrize("act", [lambda: signal.raise_signal(signal.SIGINT), swallow, translate, speak])
def test_the_users_interrupt_ends_the_run_whatever_the_app_makes_of_it(act):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        grid_of(act).send_and_receive(messages(2))
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM])
def test_so_does_what_another_handler_raises(number):
    before = signal.signal(number, end)
    try:
        with pytest.raises(Ended):
            grid_of(lambda: signal.raise_signal(number)).send_and_receive(messages(2))
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, before)


def test_a_handler_that_raises_nothing_ends_nothing():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        replies = grid_of(lambda: signal.raise_signal(signal.SIGINT)).send_and_receive(messages(2))
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT] * 2 and not any(reply.has_error() for reply in replies)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_app_cannot_take_the_users_signals_away(number):
    handler = signal.getsignal(number)
    grid_of(lambda: signal.signal(number, lambda *_: None)).send_and_receive(messages(2))
    assert signal.getsignal(number) is handler


def test_an_alarm_of_the_apps_own_ends_nothing():
    """Behind the app nobody has a handler for it, and the process would end without a word; one that was set before stays."""
    grid_of(lambda: signal.setitimer(signal.ITIMER_REAL, 1000.0)).send_and_receive(messages(2))
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    signal.setitimer(signal.ITIMER_REAL, 1000.0)
    try:
        grid_of(lambda: None).send_and_receive(messages(2))
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def test_an_app_cannot_take_what_is_printed_behind_it():
    def take() -> None:
        sys.stdout = sys.stderr = None

    before = sys.stdout, sys.stderr
    grid_of(take).send_and_receive(messages(2))
    assert (sys.stdout, sys.stderr) == before


def test_a_thread_that_has_no_signals_works_too():
    replies = []
    thread = threading.Thread(target=lambda: replies.extend(grid_of(lambda: sys.exit(0)).send_and_receive(messages(2))))
    thread.start()
    thread.join()
    assert [reply.error.reason for reply in replies] == [f"device {device}, stage app: raised SystemExit: 0" for device in (0, 1)]
