"""Encoded images (PNG, JPEG, TIFF and whatever else Pillow reads) to arrays of 8 bits a value."""

import io
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from sparcl_core.foreign import printable

GREY = ("1", "L")
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")  # grey, 16 bits a pixel
SHOWN = 5


@dataclass(frozen=True)
class Pictures:
    """Images of one file.

    Attributes:
        arrays: uint8, [H, W] if grey, [H, W, 3] if in colour, all of one height and width.
        brightest: the largest pixel value of those that had 16 bits; None if none had.
    """

    arrays: list[np.ndarray]
    brightest: int | None

    @property
    def size(self) -> str:
        return _size(self.arrays[0])

    def stack(self, colour: bool) -> np.ndarray:
        """[N, C, H, W] uint8 with three channels or one; grey images become colour by saying the same in every channel."""
        if not colour:
            return np.stack(self.arrays)[:, None]
        x = np.stack([array if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2) for array in self.arrays])
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def decode(column: Iterable) -> Pictures:
    """Decode the encoded images (bytes, or None) of a column.

    Raises:
        ValueError: naming the first rows that hold no image or one of another size, counted from 0, and how many there are.
    """
    arrays, brightest, problems = [], None, []
    for row, data in enumerate(column):
        try:
            array, peak = _decode(data)
            if arrays and array.shape[:2] != arrays[0].shape[:2]:
                raise ValueError(f"image is {_size(array)}, the first {_size(arrays[0])}: all must have one size")
        except ValueError as error:
            problems.append(f"row {row}: {error}")
            continue
        arrays.append(array)
        brightest = brightest if peak is None else max(peak, brightest or 0)
    if problems:
        more = f"; and {len(problems) - SHOWN:,} rows more" if len(problems) > SHOWN else ""
        raise ValueError("; ".join(problems[:SHOWN]) + more)
    return Pictures(arrays, brightest)


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """0 to 65535 as uint8 0 to 255, rounded: 65535 / 255 is 257."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _decode(data: bytes | None) -> tuple[np.ndarray, int | None]:
    """The image, and its largest value if it has 16 bits. Raises ValueError with the reason if there is none."""
    if not data:
        raise ValueError("no readable image (there is nothing in it)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, mode = image.format, image.mode
            if mode in DEEP:
                pixels = np.asarray(image)
                return to_8_bits(pixels), int(pixels.max())
            if mode not in ("I", "F"):
                return np.asarray(image.convert("L" if mode in GREY else "RGB")), None
    except UnidentifiedImageError:
        raise ValueError("no readable image (in no format that Pillow knows)") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError and more
        raise ValueError(f"no readable image ({printable(error)})") from error
    raise ValueError(f"a {kind} image with 32 bits a pixel, of which nobody says what is black and what white; save it with 8 or 16 bits")


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
