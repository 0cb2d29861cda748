"""What the command line says: foreign text as one printable line, our own as it is, and no password."""

import logging
import subprocess
import sys

import pytest
import typer
from rich.logging import RichHandler

from simulations.cli import messages
from simulations.cli.messages import LONGEST, complain, hide, one_message, say, what_is_left
from simulations.config.errors import ConfigError

FOREIGN = "[bold]not ours[/bold] :smile: 192.168.0.1 \x1b[31mred\x1b[0m\n" + "'quoted' 1234 0xff GET /x " * 50_000


@pytest.fixture(autouse=True)
def no_secrets():
    yield
    messages._secrets.clear()


def test_a_log_line_of_foreign_text_is_short_and_shown_as_it_is():
    """A megabyte of quotes and numbers, which a highlighter would search for minutes. In a process of its own: logging is set up once."""
    code = "import logging, sys; from simulations.cli.messages import one_message as m\nwith m(False): logging.warning(sys.stdin.read())"
    done = subprocess.run([sys.executable, "-c", code], input=FOREIGN, capture_output=True, text=True)
    told = " ".join(done.stderr.split())
    assert done.returncode == 0 and told.startswith("[bold]not ours[/bold] :smile: 192.168.0.1 red 'quoted' 1234") and "\x1b" not in told
    assert len(told) < LONGEST + 200 and told.endswith("...")


def test_a_handler_of_ours_searches_no_text():
    before = logging.getLogger().handlers[:]
    logging.getLogger().handlers[:] = []
    try:
        with one_message(False):
            (handler,) = logging.getLogger().handlers
    finally:
        logging.getLogger().handlers[:] = before
    assert isinstance(handler, RichHandler) and not handler.keywords and not handler.markup
    assert handler.render_message(logging.makeLogRecord({}), FOREIGN[:60]).spans == []


def test_an_error_is_one_line_whatever_its_text(capsys):
    with pytest.raises(typer.Exit) as ended, one_message(False):
        raise ConfigError(FOREIGN)
    told = capsys.readouterr().err
    assert ended.value.exit_code == 2 and told.count("\n") == 1 and len(told) < LONGEST + 20 and "\x1b" not in told
    assert told.startswith("error: [bold]not ours[/bold] :smile: ")


def test_our_own_lines_stay_as_they_are_and_passwords_do_not(capsys):
    say("two  blanks [x] :smile: \udcff")
    hide("s3://key:hush@bucket/x?token=mum")
    complain("cannot reach s3://key:hush@bucket/x?token=mum: hush is wrong")
    told = capsys.readouterr()
    assert told.out == "two  blanks [x] :smile: ?\n"
    assert "hush" not in told.err and "mum" not in told.err and "s3://key:***@bucket" in told.err


def test_what_was_noted_before_a_second_error_is_told_too():
    first, second = KeyboardInterrupt(), KeyboardInterrupt()
    first.add_note("go on so")
    second.__context__ = first
    assert what_is_left(second) == ["go on so"] and what_is_left(ValueError()) == []
