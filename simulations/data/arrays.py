"""Arrays of other people's shapes to ours: images of [N, H, W] or [N, H, W, C] or [N, C, H, W], labels of [N] or [N, 1]."""

import numpy as np

from simulations.config.errors import several
from simulations.data.raw import Raw

PARTS = ("train_x", "train_y", "test_x", "test_y", "train_ids")
CHANNELS = (1, 3)


def as_raw(given, where: str, called: tuple[str, ...] = PARTS) -> Raw:
    """A data set from a `Raw`, or from a tuple (train_x, train_y, test_x, test_y) or (..., train_ids); what is a `Raw` is checked as well.

    Args:
        where: begins every message.
        called: what the arrays are called in messages, in the order of `PARTS`.

    Raises:
        ConfigError: with all that is wrong.
    """
    raw = given if isinstance(given, Raw) else None
    if raw:
        given = tuple(getattr(raw, part) for part in PARTS)
    if not isinstance(given, tuple | list) or len(given) not in (4, 5):
        what = f"{len(given)} values" if isinstance(given, tuple | list) else type(given).__name__
        several(where, [f"it gave {what}: (train_x, train_y, test_x, test_y) is needed, or (..., train_ids), or a Raw"])
    arrays = [None if value is None else np.asarray(value) for value in given]
    several(where, filter(None, (_wrong(array, place, called[place], bool(raw)) for place, array in enumerate(arrays))))
    parts = [_images(array, bool(raw)) if place in (0, 2) else _column(array) for place, array in enumerate(arrays)]
    several(where, _mismatches(parts, called))
    if raw:
        return Raw(*parts, names=tuple(map(str, raw.names)), notes=tuple(map(str, raw.notes)), sha256=str(raw.sha256))
    return Raw(*parts)


def _wrong(array: np.ndarray | None, place: int, name: str, is_ours: bool) -> str:
    """What is wrong with one array by itself, the one at `place` of `PARTS`; empty if nothing is."""
    if array is None:
        return "" if place == 4 else f"{name} is missing"
    return _wrong_images(array, name, is_ours) if place in (0, 2) else _wrong_column(array, name)


def _wrong_images(array: np.ndarray, name: str, is_ours: bool) -> str:
    found = f"{name} is {array.dtype} of shape {list(array.shape)}"
    if array.dtype.kind == "f":
        least, most = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        scale = f"np.round(255 * {name}).astype(np.uint8)" if least >= 0 and most <= 1 else f"np.round({name}).astype(np.uint8)"
        if least < 0 or most > 255:
            scale = f"np.round(255 * ({name} - low) / (high - low)).astype(np.uint8) with the same low and high for both parts"
        return f"{found}, values {least:.4g} to {most:.4g}: images are uint8, 0 black and 255 white; scale them, {scale}"
    if array.dtype != np.uint8:
        return f"{found}: images are uint8, 0 black and 255 white; {name}.astype(np.uint8) if its values are 0 to 255"
    if array.ndim not in (3, 4) or (is_ours and array.ndim != 4) or 0 in array.shape[1:]:
        return f"{found}: images are [N, H, W], [N, H, W, C] or [N, C, H, W]; reshape it"
    if array.ndim == 4 and not is_ours:
        first, last = array.shape[1] in CHANNELS, array.shape[3] in CHANNELS
        if first == last:
            why = "either its second or its last axis could be the channels" if first else "neither its second nor its last axis is 1 or 3"
            return f"{found}: {why}; give a Raw with [N, C, H, W], or other images"
    return ""


def _wrong_column(array: np.ndarray, name: str) -> str:
    found = f"{name} is {array.dtype} of shape {list(array.shape)}"
    if array.ndim == 2 and array.shape[1] > 1:
        return f"{found}: one label per image is needed; if a row has a one per class, take {name}.argmax(1)"
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        return f"{found}: whole numbers are needed, one for each image"
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        return f"{found}, from {array.min()} to {array.max()}: none may be negative or beyond 64 bits"
    return ""


def _images(array: np.ndarray, is_ours: bool) -> np.ndarray:
    """[N, C, H, W] of images that were checked."""
    if array.ndim == 3:
        return array[:, None]
    if is_ours or array.shape[1] in CHANNELS:
        return array
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2))


def _column(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array.reshape(len(array)).astype(np.int64)


def _mismatches(parts: list[np.ndarray | None], called: tuple[str, ...]) -> list[str]:
    problems = []
    for images, column in ((0, 1), (2, 3), (0, 4)):
        if column < len(parts) and parts[column] is not None and len(parts[images]) != len(parts[column]):
            problems.append(f"{called[images]} has {len(parts[images])} samples, {called[column]} {len(parts[column])}")
    if not len(parts[0]):
        problems.append(f"{called[0]} has no samples")
    if len(parts[2]) and parts[0].shape[1:] != parts[2].shape[1:]:
        train, test = ("x".join(map(str, parts[place].shape[1:])) for place in (0, 2))
        problems.append(f"images of {called[0]} are {train}, those of {called[2]} {test} (channels, height, width): all must be alike")
    return problems
