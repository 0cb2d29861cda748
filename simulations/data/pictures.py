"""Encoded images (PNG, JPEG, TIFF and whatever else Pillow reads) to arrays of 8 bits a value.

- Turned as their EXIF orientation says, and brought to the size that the settings say.
- Grey stays grey, palettes and other colours become RGB. Transparent parts are laid on white: what is stored below them nobody sees.
- 16 bits a pixel become 8 by their depth; 32 bits are refused.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from sparcl_core.foreign import printable

GREY = ("1", "L")
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")  # grey, 16 bits a pixel
SHOWN = 5
SIZES, WAY_OUT = "all must have one size", "data.size=32 data.resize=crop would bring all to one"


@dataclass(frozen=True)
class Form:
    """The size that images are brought to, as `DataConfig.size` and `resize`."""

    size: int = 0
    resize: Literal["none", "stretch", "crop"] = "none"

    def apply(self, image: Image.Image) -> Image.Image:
        """`image` in that size, by Pillow's bilinear filter, which takes all pixels into account where it makes smaller."""
        sides = (self.size, self.size)
        if self.resize == "none" or image.size == sides:
            return image
        if self.resize == "stretch":
            return image.resize(sides, Image.Resampling.BILINEAR)
        return ImageOps.fit(image, sides, Image.Resampling.BILINEAR)


AS_IT_IS = Form()


class Pictures:
    """Images of one size, one after the other in one array: what is decoded is held once.

    Attributes:
        brightest: the largest pixel value of those that had 16 bits; None if none had.
        transparent: how many had parts that are laid on white.
        has_grey, has_colour: of what kind those are that were added.
    """

    def __init__(self, count: int):
        """`count`: at most so many will be added."""
        self._room, self._count, self._x = count, 0, None
        self.brightest: int | None = None
        self.transparent = 0
        self.has_grey = self.has_colour = False

    @property
    def x(self) -> np.ndarray:
        """[n, C, H, W] uint8 with three channels, or one if all are grey. Grey ones among others say the same in every channel."""
        return self._x[: self._count]

    @property
    def size(self) -> str:
        """Height x width; empty if there are none."""
        return "" if self._x is None else f"{self._x.shape[2]}x{self._x.shape[3]}"

    def add(self, pixels: np.ndarray) -> None:
        """[H, W] or [H, W, 3] uint8. Raises ValueError if its height or width is another than before."""
        is_colour = pixels.ndim == 3
        if self._x is None:
            self._x = np.empty((self._room, 3 if is_colour else 1, *pixels.shape[:2]), np.uint8)
        elif pixels.shape[:2] != self._x.shape[2:]:
            raise ValueError(f"image is {pixels.shape[0]}x{pixels.shape[1]}, the first {self.size}: {SIZES}")
        elif is_colour and self._x.shape[1] == 1:
            grey, self._x = self._x, np.empty((self._room, 3, *pixels.shape[:2]), np.uint8)
            self._x[: self._count] = grey[: self._count]
        self._x[self._count] = pixels.transpose(2, 0, 1) if is_colour else pixels
        self._count += 1
        self.has_grey |= not is_colour
        self.has_colour |= is_colour


def decode(
    column: Iterable[bytes | None],
    count: int | None = None,
    form: Form = AS_IT_IS,
    *,
    named: Callable[[int], str] = "row {}".format,
    noun: str = "rows",
) -> Pictures:
    """Decode encoded images (bytes, or None).

    Args:
        count: their number; None if `column` is a list.
        named: what one is called in messages, by its place from 0; `noun`: what they all are.

    Raises:
        ValueError: naming the first that are no image or of another size, and how many there are.
    """
    pictures, problems = Pictures(len(column) if count is None else count), []
    for place, data in enumerate(column):
        try:
            pixels, peak, is_transparent = _decode(data, form)
            pictures.add(pixels)
        except ValueError as error:
            problems.append(f"{named(place)}: {error}")
            continue
        pictures.transparent += is_transparent
        pictures.brightest = pictures.brightest if peak is None else max(peak, pictures.brightest or 0)
    if problems:
        way = [WAY_OUT] if any(SIZES in problem for problem in problems) else []
        more = [f"and {len(problems) - SHOWN:,} {noun} more"] if len(problems) > SHOWN else []
        raise ValueError("; ".join([*problems[:SHOWN], *way, *more]))
    return pictures


def join(parts: list[Pictures]) -> np.ndarray:
    """[N, C, H, W] uint8 of all, in order, in colour if one is; `parts` are emptied, so that no more is held than before."""
    if len(parts) == 1:
        return parts.pop().x
    channels = max(part.x.shape[1] for part in parts)
    x, end = np.empty((sum(len(part.x) for part in parts), channels, *parts[0].x.shape[2:]), np.uint8), 0
    while parts:
        own = parts.pop(0).x
        x[end : end + len(own)] = own
        end += len(own)
    return x


def notes(parts: list[Pictures]) -> list[str]:
    """What was converted, a line each."""
    told = []
    if any(part.has_grey for part in parts) and any(part.has_colour for part in parts):
        told.append("some images are grey and some in colour; the grey ones become colour")
    if peaks := [part.brightest for part in parts if part.brightest is not None]:
        most = max(peaks)
        told.append(f"images with 16 bits a pixel become 8: 65535 is 255, and the brightest pixel, {most}, is {to_8_bits(np.array(most))}")
    if transparent := sum(part.transparent for part in parts):
        told.append(f"{transparent:,} images have transparent parts, which are laid on white")
    return told


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """0 to 65535 as uint8 0 to 255, rounded: 65535 / 255 is 257."""
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _decode(data: bytes | None, form: Form) -> tuple[np.ndarray, int | None, bool]:
    """The image, its largest value if it has 16 bits, and whether it has transparent parts. Raises ValueError if there is no image."""
    if not data:
        raise ValueError("no readable image (there is nothing in it)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind, mode, peak = image.format, image.mode, None
            if form.size:
                image.draft(None, (form.size, form.size))  # of a large JPEG no more is decoded than is needed
            if mode in DEEP:
                pixels = np.asarray(image)
                peak = int(pixels.max())
                opened = Image.fromarray(to_8_bits(pixels))
            elif mode not in ("I", "F"):
                opened = image
            else:
                opened = None
            if opened:
                flat, is_transparent = _flat(_upright(opened, image.info), "L" if mode in (*GREY, *DEEP) else "RGB")
                return np.asarray(form.apply(flat)), peak, is_transparent
    except UnidentifiedImageError:
        raise ValueError("no readable image (in no format that Pillow knows)") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError and more
        raise ValueError(f"no readable image ({printable(error)})") from error
    raise ValueError(f"a {kind} image with 32 bits a pixel, of which nobody says what is black and what white; save it with 8 or 16 bits")


def _upright(image: Image.Image, info: dict) -> Image.Image:
    """As its EXIF orientation says, if it has one that can be read."""
    if "exif" not in info:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except (ValueError, TypeError, KeyError, SyntaxError, OverflowError):
        return image


def _flat(image: Image.Image, mode: str) -> tuple[Image.Image, bool]:
    """In this mode, on white; and whether any of it was transparent."""
    if not image.has_transparency_data:
        return image.convert(mode), False
    image = image.convert("RGBA")
    if image.getextrema()[3][0] == 255:
        return image.convert(mode), False
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode), True
