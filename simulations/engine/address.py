"""URLs that may hold passwords: what of them may be shown."""

import re
from urllib.parse import unquote

_USER = re.compile(r"(?<=://)([^/@:\s]*):([^/\s]*)@")  # user:password, up to the last @ before the path
_QUERY = re.compile(r"(?<=[?&;])([^=&;#\s]+)=([^&;#\s:]+)")
HIDDEN = "***"


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
