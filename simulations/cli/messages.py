"""How the command line speaks: results on stdout, everything else on stderr, and of what goes wrong exactly one message.

Foreign text (an app's error, a peer's, a file's) becomes one printable line, and passwords of a `--store` are never shown.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from simulations.cli.signals import stops
from simulations.engine.address import redacted, secrets_of
from sparcl_core.foreign import printable

LONGEST = 5000  # characters of a message: a file may have many mistakes
console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, emoji=False)
is_process = False  # set by the real command: the process ends with it
_secrets: list[str] = []


def say(line: str, where: Console = console) -> None:
    """A line of our own, as it is; on stdout."""
    where.print(redacted(line.encode(errors="replace").decode(), tuple(_secrets)), soft_wrap=True, markup=False)


def complain(line: str) -> None:
    """A line on stderr that may hold foreign text."""
    say(printable(line, LONGEST), errors)


def hide(url: str) -> None:
    """No message shows the passwords of this URL."""
    _secrets.extend(secrets_of(url))


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging calls it so)
        return redacted(printable(record.message, LONGEST), tuple(_secrets))


@contextmanager
def one_message(debug: bool) -> Iterator[None]:
    """Bad input ends with exit code 2 and one message; anything else too, but then it points to --debug. A signal ends with 128 and its
    number, and with what can be done now.
    """
    warnings.filterwarnings("ignore")
    quiet = {"show_path": False, "show_time": False, "show_level": False, "keywords": [], "highlighter": NullHighlighter()}
    handler = RichHandler(console=errors, **quiet)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    _secrets.clear()
    with stops(to_the_end=is_process) as signals:
        try:
            try:
                yield signals
            finally:
                _stop_ray()
        except KeyboardInterrupt as interrupt:
            for line in what_is_left(interrupt) or ["interrupted; nothing was written"]:
                say(line, errors)
            raise typer.Exit(signals.exit_code) from None
        except (SystemExit, typer.Exit):
            raise
        except Exception as error:
            if debug:
                raise
            complain("error: " + (str(error) if isinstance(error, _known()) else f"{type(error).__name__}: {error} (--debug shows where)"))
            for line in what_is_left(error):
                say(line, errors)
            raise typer.Exit(2) from None


def what_is_left(error: BaseException | None) -> list[str]:
    """What was noted on an error, or on one that it has interrupted."""
    lines: list[str] = []
    while error is not None:
        lines += getattr(error, "__notes__", ())
        error = error.__context__
    return list(dict.fromkeys(lines))


def _known() -> tuple[type[Exception], ...]:
    """Errors that speak for themselves. If a module was not needed until now, the error is none of its own."""
    modules = {"server.errors": "FleetError", "simulations.engine.adapter": "EngineError", "sparcl_core.kernels.build": "KernelError"}
    return (ValueError, *(getattr(sys.modules[module], name) for module, name in modules.items() if module in sys.modules))


def _stop_ray() -> None:
    if cluster := sys.modules.get("simulations.engine.cluster"):
        cluster.stop_ray()
