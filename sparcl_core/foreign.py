"""Text of foreign origin, from a ClientApp, a peer or a file, on its way to a log, a ledger or a screen."""

import re

LIMIT = 500
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])|\x9b[0-?]*[ -/]*[@-~]")
_SPACES = re.compile(r"\s+")


def printable(value: object, limit: int = LIMIT) -> str:
    """`value` as one line of at most `limit` printable characters.

    Terminal escapes are removed and white space, line ends included, becomes a single blank; what cannot be printed (control characters,
    lone surrogates, marks that turn the direction of writing) becomes U+FFFD. Text that is cut ends in "...". Takes the same time for a
    text of 100 MB as for one of 10 kB. Never raises an Exception, whatever `str(value)` does.
    """
    try:
        text = str(value)
    except Exception as error:
        return f"({type(value).__name__}, whose text cannot be had: {type(error).__name__})"[:limit]
    head = text[: 8 * limit]  # escapes and white space may shrink to nothing, but nobody needs to see what lies behind so many of them
    shown = "".join(char if char.isprintable() else "\ufffd" for char in _SPACES.sub(" ", _ESCAPES.sub("", head)).strip())
    if len(shown) > limit or len(text) > len(head):
        shown = shown[: limit - 3].rstrip() + "..."
    return shown
