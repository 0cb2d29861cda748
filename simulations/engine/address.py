"""Addresses that people give: of a Ray cluster, whether it can be one, and URLs with passwords, what of them may be shown."""

import re
import socket
from collections.abc import Iterator
from urllib.parse import unquote

from sparcl_core.foreign import printable

_USER = re.compile(r"(?<=://)([^/@:\s]*):([^/\s]*)@")  # user:password, up to the last @ before the path
_QUERY = re.compile(r"(?<=[?&;])([^=&;#\s]+)=([^&;#\s:]+)")
HIDDEN = "***"
ANSWER_S = 5.0


def masked(url: str) -> str:
    """The URL with *** in the place of passwords and of all values behind a question mark."""
    return url if "://" not in url else _QUERY.sub(rf"\1={HIDDEN}", _USER.sub(rf"\1:{HIDDEN}@", url))


def secrets_of(url: str) -> tuple[str, ...]:
    """What `masked` hides, as it is written and decoded, the longest first; empty if the URL has no secrets."""
    found = [match[2] for pattern in (_USER, _QUERY) for match in pattern.finditer(url) if "://" in url]
    return tuple(sorted({text for own in found for text in (own, unquote(own)) if text}, key=len, reverse=True))


def redacted(text: str, secrets: tuple[str, ...]) -> str:
    """`text` without these, wherever they stand."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def cluster_address(address: str) -> Iterator[str]:
    """What is wrong with the address of a Ray cluster's head, `auto` or empty, in words. Ray itself would try for a minute to reach it,
    and then end this process."""
    if not address or address == "auto":
        return
    if address.startswith("ray://"):
        yield (
            f"--ray-address {address}: Ray's client protocol is not supported; run on a node of the cluster, "
            f"or send the run there with `ray job submit` (docs/clusters.md)"
        )
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        yield f"--ray-address {printable(repr(address))} is neither 'auto' nor HOST:PORT"
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S):
            pass
    except (OSError, UnicodeError) as error:
        yield f"--ray-address {printable(address)}: nothing answers there ({printable(error)}); is a Ray head running at that address?"
