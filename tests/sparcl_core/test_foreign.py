"""Foreign text becomes one short line, whatever it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.foreign import LIMIT, printable


@given(st.text(st.characters(), max_size=3000), st.integers(10, 600))
def test_any_text_becomes_one_printable_line_of_at_most_the_limit(text, limit):
    shown = printable(text, limit)
    assert len(shown) <= limit and shown.isprintable()
    shown.encode()  # no lone surrogate is left


@given(st.text(st.characters(categories=("L", "N", "P")), max_size=LIMIT))
def test_plain_text_stays_as_it_is(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x1b[0m b", "ared b"),
        ("\x1b]0;a title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x1bcreset", "reset"),
        ("\x9b2Jcleared", "cleared"),
        ("two\n lines\t\r here", "two lines here"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("bell \x07 and nul \x00", "bell \ufffd and nul \ufffd"),
        ("\u202egnirts", "\ufffdgnirts"),
        ("", ""),
    ],
)
def test_escapes_control_characters_and_surrogates(text, shown):
    assert printable(text) == shown


def test_a_long_text_is_cut_and_says_so():
    shown = printable("x" * 10_000_000)
    assert len(shown) == LIMIT and shown.endswith("...")


def test_an_object_whose_text_raises():
    class Odd(Exception):
        def __str__(self):
            raise RuntimeError("no")

    assert printable(Odd()) == "(Odd, whose text cannot be had: RuntimeError)"
