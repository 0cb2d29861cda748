"""The one boundary around a ClientApp: whatever it raises, returns or leaves behind becomes the reply of one device.

A reply's identity is the engine's, whoever the app says that it is. Only what is not the app's own goes through: what a signal's handler
raises while the app runs, above all the user's Ctrl-C.
"""

import errno
import reprlib
import signal
import sys
import threading
import traceback
from _signal import getsignal  # as in signal, but without an enum made of every answer, which takes longer than all else here
from _signal import signal as set_signal
from dataclasses import dataclass

from simulations.engine.adapter import (
    APP_RAISED,
    RUN_ID,
    ClientApp,
    Context,
    Error,
    ErrorCode,
    Message,
    Metadata,
    RecordDict,
    copy_metadata,
    reply_to,
)
from simulations.engine.parcel import Parcel, attach_message, attach_records, detach_message, detach_records
from sparcl_core.foreign import printable

SIGNALS = [int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM") if hasattr(signal, name)]


@dataclass(frozen=True)
class Handled:
    """What became of one message.

    Attributes:
        reply: the ClientApp's, or an error.
        state: the device's new state; None: it keeps the old one.
        out_of_memory: the app failed for want of memory, so it may succeed in another process.
    """

    reply: Parcel
    state: Parcel | None = None
    out_of_memory: bool = False


class Refused(Exception):
    """What the app returned or left behind cannot be taken; the text says why."""

    def __init__(self, reason: str, code: int = APP_RAISED):
        super().__init__(reason)
        self.code = code


def handle(
    app: ClientApp, message: Parcel, state: Parcel | None, *, node_config: dict, run_config: dict, limit_bytes: int | None = None
) -> Handled:
    """Run `app` on one message with the Context of one device.

    Args:
        state: what the device keeps; None if that is nothing.
        limit_bytes: a reply of more bytes is refused.
    """
    received = attach_message(message)
    request, where = copy_metadata(received.metadata), f"device {node_config['partition-id']}"  # the app may write into what it receives
    with _Signals(), _Streams():
        try:
            kept = attach_records(state) if state else RecordDict()
            context = Context(RUN_ID, request.dst_node_id, dict(node_config), kept, dict(run_config))
            reply = _stamped(app(received, context), request, where)
            if context.run_config != run_config:
                raise Refused(f"{where}, stage app: the `run_config` field of the `Context` object cannot be modified", ErrorCode.UNKNOWN)
            answer = _packed(detach_message, reply, f"{where}, stage reply")
            _expect_size(answer.num_bytes, limit_bytes, where)
            left = _packed(_detach_state, context.state, f"{where}, stage state")
            return Handled(answer, None if left == state else left)  # of what it kept as it was, blobs are the same objects
        except BaseException as error:
            code = error.code if type(error) is Refused else APP_RAISED
            failure = reply_to(request, error=Error(code, reason_of(error, where)))
            return Handled(detach_message(failure), None, lacked_memory(error))


def opened(answer: Parcel, device: int, limit_bytes: int | None) -> Message:
    """The reply that comes in a parcel of another process.

    Raises:
        Refused: if it is too large, or cannot be read.
    """
    where = f"device {device}"
    _expect_size(answer.num_bytes, limit_bytes, where)
    try:
        return attach_message(answer)
    except Exception as error:
        raise Refused(f"{where}, stage reply: it cannot be read: {type(error).__name__}: {_said(error)}") from error


def sendable(error: BaseException) -> Exception:
    """The error itself if it can leave its process with all that led to it, else one that says the same: Ray ends a worker whose error has
    a lone surrogate in its text, and one that wants to exit."""
    try:
        "".join(traceback.format_exception(error)).encode()
        if isinstance(error, Exception):
            return error
    except BaseException:  # its text, or that of a cause, cannot be had
        pass
    return RuntimeError(f"{type(error).__name__}: {_said(error)}")


def _expect_size(num_bytes: int, limit_bytes: int | None, where: str) -> None:
    if limit_bytes is not None and num_bytes > limit_bytes:
        raise Refused(
            f"{where}, stage reply: the reply has {num_bytes} bytes, more than the {limit_bytes} that one to this message can need"
        )


def lacked_memory(error: BaseException | None) -> bool:
    """Is want of memory behind this error? By the types of what was raised; PyTorch's allocator raises a plain RuntimeError."""
    seen = set()
    try:
        while error is not None and id(error) not in seen:
            if _is_of_memory(error):
                return True
            seen.add(id(error))
            error = error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__
    except BaseException:  # an error whose attributes raise
        pass
    return False


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    torch = sys.modules.get("torch")  # an app may do without
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if type(error) is not RuntimeError:
        return False
    text = str(error)
    return text.startswith("[enforce fail at ") and "DefaultCPUAllocator: can't allocate memory" in text


def _stamped(reply: object, request: Metadata, where: str) -> Message:
    """The app's reply as the one to this message from this device."""
    if not isinstance(reply, Message):
        raise Refused(f"{where}, stage app: returned {_shown(reply)}, where a ClientApp returns a Message")
    if reply.has_error():
        own = reply.error
        return reply_to(request, error=Error(own.code, own.reason and _said(own.reason)))
    if not reply.has_content() or not isinstance(reply.content, RecordDict):
        held = _shown(reply.content) if reply.has_content() else "neither content nor error"
        raise Refused(f"{where}, stage app: returned a Message with {held}, where it holds a RecordDict")
    ttl = getattr(reply.metadata, "ttl", None)
    return reply_to(request, content=reply.content, ttl=float(ttl) if isinstance(ttl, int | float) and ttl > 0 else None)


def _packed(pack, value: object, where: str) -> Parcel:
    """`value` as a parcel, with the limits of protobuf: integers of 64 bits, text that is Unicode."""
    try:
        return pack(value)
    except Refused:
        raise
    except Exception as error:
        if lacked_memory(error):
            raise
        raise Refused(f"{where}: it cannot be serialised: {type(error).__name__}: {_said(error)}") from error


def _detach_state(state: object) -> Parcel:
    if not isinstance(state, RecordDict):
        raise TypeError(f"{_shown(state)}, where a Context holds a RecordDict")
    return detach_records(state)


def reason_of(error: BaseException, where: str) -> str:
    """Of an ordinary exception its own text, which says where if the app has taken care of that."""
    try:
        if isinstance(error, Exception):
            return _said(error) or type(error).__name__
        return printable(f"{where}, stage app: raised {type(error).__name__}: {_said(error)}")
    except BaseException:  # a class that does not even say its name
        return f"{where}, stage app: raised something that cannot be shown"


def _said(value: object) -> str:
    """As one printable line, whatever it does about it."""
    try:
        return printable("".join([str(value)]))  # an own class of str would be cut and searched by its own methods
    except BaseException as error:
        return printable(f"({type(value).__name__}, whose text cannot be had: {type(error).__name__})")


def _shown(value: object) -> str:
    try:
        text = reprlib.repr(value)
    except BaseException as error:
        text = f"(it cannot be shown: {type(error).__name__})"
    return printable(f"{text} ({type(value).__name__})", 200)


class _Streams:
    """Around an app: what is printed behind it goes where it went before, whatever the app has put in the place of these two."""

    def __enter__(self) -> None:
        self._before = sys.stdout, sys.stderr

    def __exit__(self, *_) -> None:
        sys.stdout, sys.stderr = self._before


class _Signals:
    """Around an app in the main thread, where Python runs the handlers of signals: what a handler raises is not the app's, and is raised
    again behind the app, even if that has caught it. Handlers are those of before when the app is done, and an alarm that it has set is
    off: it would end the process, since nobody but the app listens to it."""

    def __enter__(self) -> None:
        self._raised: BaseException | None = None
        self._before = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._before[number] = before = getsignal(number)
            if callable(before):
                set_signal(number, self._heard)
        self._alarm = signal.getitimer(signal.ITIMER_REAL)

    def __exit__(self, *_) -> None:
        if self._before and not any(self._alarm):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, before in self._before.items():
            if before is not None and getsignal(number) is not before:  # None: it was not set by Python, which cannot set it again
                set_signal(number, before)
        if self._raised is not None:
            raise self._raised

    def _heard(self, number: int, frame) -> None:
        try:
            self._before[number](number, frame)
        except BaseException as error:
            self._raised = error
            raise
