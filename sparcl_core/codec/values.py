"""Values as codes of a given form, and codes as bytes.

| form | what is kept |
|---|---|
| f64, f32 | everything |
| f16 | IEEE half of value / 2^e, one exponent e per tensor, so that small updates are not lost to subnormals |
| bf16 | the upper half of float32, to nearest even |
| int8, int6, int4 | round(value / scale), at most 127, 31 or 7; one scale per tensor or per block of places; a 0 is not sent at all |
| u8 | non-negative, round(value / scale), at most 255 |
| u4 | non-negative, scale * (code / 15)^2: importance has a long tail |

A scale is the upper half of a float32, rounded up, so that no code exceeds its limit. Rounding to integers is stochastic (unbiased:
the upper neighbour with a probability equal to the distance from the lower one) or to nearest.
"""

import math
import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sparcl_core.codec.layout import CodecError, Reference, SparseTensor
from sparcl_core.codec.parts import Coded, Expected, Part, Plain, cheapest
from sparcl_core.codec.tokens import Frequencies, token

Values = Literal["f64", "f32", "f16", "bf16", "int8", "int4", "u8", "u4", "int6"]
VALUES: tuple[Values, ...] = ("f64", "f32", "f16", "bf16", "int8", "int4", "u8", "u4", "int6")
WIDTH = {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "int8": 8, "int4": 4, "u8": 8, "u4": 4, "int6": 6}  # bits, before entropy coding
LIMIT = {"int8": 127, "int4": 7, "u8": 255, "u4": 15, "int6": 31}
SIGNED = ("int8", "int6", "int4")
LOSSLESS = ("f64", "f32")
_ONE = 0x3F80  # the upper half of 1.0


@dataclass(frozen=True)
class Quantised:
    """A tensor as it will be sent.

    Attributes:
        places: int64 [k], sorted; ranks: the same within the reference set, of `total` places.
        codes: [k]; unsigned integers of the form's width, of signed forms int64 without 0.
        scales: uint16 [blocks], upper halves of float32; of f16 one exponent + 128; of the other floats none.
        block: places of the reference set that share a scale; 0: all.
    """

    places: np.ndarray
    ranks: np.ndarray
    total: int
    form: Values
    codes: np.ndarray
    scales: np.ndarray
    block: int

    @property
    def values(self) -> np.ndarray:
        """What the receiver will get: float32 [k], float64 of f64."""
        return dequantise(self.form, self.codes, self.scales, ranks=self.ranks, block=self.block)


def quantise(
    tensor: SparseTensor, reference: Reference, form: Values, name: str, *, rng: np.random.Generator | None = None, block: int = 0
) -> Quantised:
    """Codes of `tensor`. Of signed forms the places whose code is 0 drop out.

    Args:
        reference: the places that positions will be counted over.
        name: of the tensor, for errors.
        rng: rounds to integers stochastically; None rounds to nearest. Floats are rounded to nearest either way.
        block: places of the reference set per scale; 0: one scale.

    Raises:
        ValueError: if a value is not finite, too large for the form, or negative in an unsigned one, or a place is not in the reference set
            or without a value.
    """
    places, values = tensor.places, tensor.values
    if places.size != values.size:
        raise ValueError(f"{name} has {places.size} places, but {values.size} values")
    ranks = reference.ranks(places, name) if tensor.ranks is None else tensor.ranks
    if values.size and not np.isfinite(values).all():
        raise ValueError(f"{name} holds a value that is NaN or infinite: it is not sent")
    if form == "f64":
        codes = values.astype(np.float64).view(np.uint64)
        return Quantised(places, ranks, reference.total, form, codes, _NO_SCALE, 0)
    with np.errstate(over="ignore"):  # looked at in the next line
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds a value that {form} cannot express: send f64")
    if form in ("f32", "bf16"):
        codes = values.view(np.uint32)
        if form == "bf16":
            codes = ((codes.astype(np.uint64) + 0x7FFF + (codes >> 16 & 1)) >> 16).astype(np.uint16)
            if ((codes & 0x7F80) == 0x7F80).any():
                raise ValueError(f"{name} holds a value that bf16 cannot express: send f32")
        return Quantised(places, ranks, reference.total, form, codes, _NO_SCALE, 0)
    if form == "f16":
        largest = float(np.abs(values).max(initial=0.0))
        exponent = int(np.clip(math.frexp(largest)[1] - 15, -126, 127)) if largest > 0 else 0
        if largest >= _F16_END:
            raise ValueError(f"{name} holds a value that f16 cannot express: send f32")
        codes = np.ldexp(values, -exponent).astype(np.float16).view(np.uint16)
        return Quantised(places, ranks, reference.total, form, codes, np.array([exponent + 128], np.uint16), 0)
    if form not in SIGNED and values.size and values.min() < 0:
        raise ValueError(f"{name} holds a negative value: {form} is for importance, which has none")
    return _to_integers(places=places, ranks=ranks, total=reference.total, values=values, form=form, name=name, rng=rng, block=block)


def labelled(tensor: SparseTensor, reference: Reference, name: str) -> Quantised:
    """Whole numbers from 0 to 255 as they are: codes of u8 at scale 1.

    Raises:
        ValueError: if a value is another, or a place is not in the reference set.
    """
    codes = tensor.values.astype(np.int64)
    if (codes != tensor.values).any() or codes.size and not 0 <= codes.min() <= codes.max() <= LIMIT["u8"]:
        raise ValueError(f"{name} holds a value that is no whole number from 0 to {LIMIT['u8']}: send f32")
    ranks, ones = reference.ranks(tensor.places, name), np.full(num_scales("u8", reference.total, 0), _ONE, np.uint16)
    return Quantised(tensor.places, ranks, reference.total, "u8", codes, ones, 0)


def _to_integers(*, places, ranks, total, values, form, name, rng, block) -> Quantised:
    limit = np.float32(LIMIT[form])
    sizes = np.abs(values)
    largest = np.zeros(num_scales(form, total, block), dtype=np.float32)
    if block:
        np.maximum.at(largest, ranks // block, sizes)
    elif largest.size:
        largest[0] = sizes.max(initial=0)
    upper = (((largest / (1 if form == "u4" else limit)).view(np.uint32).astype(np.uint64) + 0xFFFF) >> 16).astype(np.uint16)
    if (upper > highest_scale(form)).any():
        raise ValueError(f"{name} holds a value that {form} cannot express: send f32")
    scale = _floats(upper)[ranks // block] if block else _floats(upper)[:1]
    scaled = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
    if form == "u4":
        scaled = np.sqrt(scaled) * limit
    if rng is None:
        codes = np.rint(scaled)
    else:
        codes = np.floor(scaled)
        codes += rng.random(scaled.size, dtype=np.float32) < scaled - codes
    codes = codes.clip(-limit if form in SIGNED else 0, limit).astype(np.int64)
    if form in SIGNED:
        some = codes != 0
        places, ranks, codes = places[some], ranks[some], codes[some]
    return Quantised(places, ranks, total, form, codes, upper, block)


def dequantise(form: Values, codes: np.ndarray, scales: np.ndarray, *, ranks: np.ndarray, block: int) -> np.ndarray:
    """Values of `codes`; float32 [k], float64 of f64. Of a damaged payload they may be NaN or infinite."""
    if not codes.size:
        return np.empty(0, np.float64 if form == "f64" else np.float32)
    if form == "f64":
        return codes.view(np.float64)
    if form == "f32":
        return codes.view(np.float32)
    if form == "bf16":
        return _floats(codes)
    if form == "f16":
        with np.errstate(over="ignore", invalid="ignore"):
            return np.ldexp(codes.view(np.float16).astype(np.float32), int(scales[0]) - 128)
    scale = _floats(scales)[ranks // block] if block else _floats(scales)[:1]
    if form == "u4":
        return np.square(codes.astype(np.float32) / np.float32(LIMIT[form])) * scale
    return codes.astype(np.float32) * scale


def num_scales(form: Values, total: int, block: int) -> int:
    """Scales of a tensor whose reference set has `total` places."""
    if form == "f16":
        return 1
    if form not in LIMIT:
        return 0
    return (-(-total // block) if block else 1) if total else 0


def highest_scale(form: Values) -> int:
    """The largest scale that keeps the highest code within float32; what is above it is too large, negative or no number."""
    steps = 1 if form == "u4" else LIMIT[form]
    return int(np.float32(float(np.finfo(np.float32).max) / steps).view(np.uint32)) >> 16


def parts(tensor: Quantised) -> tuple[bool, list[Part]]:
    """The codes as parts of a payload, entropy-coded or as they are, whichever is smaller."""
    form, codes = tensor.form, tensor.codes
    if not codes.size:
        return False, []
    if form in LIMIT:
        sign, size = ([Plain(codes < 0, 1)], np.abs(codes) - 1) if form in SIGNED else ([], codes)
        name, part = cheapest({"raw": Plain(size, _size_width(form)), "coded": Coded.of(size)})
        return name == "coded", [*sign, part]
    octets = codes.astype(codes.dtype.newbyteorder(">")).view(np.uint8).reshape(codes.size, -1)
    raw, coded = Plain(octets.reshape(-1), 8), Coded.of(octets[:, 0], smooth=False)
    if coded is None or coded.bits + 8 * (octets.size - codes.size) >= raw.bits:
        return False, [raw]
    return True, [coded, Plain(octets[:, 1:].reshape(-1), 8)]


def expected(form: Values, is_coded: bool, count: int, table: Frequencies | None) -> list[Expected]:
    """The parts of `count` codes; `table`: of the coded part, if there is one."""
    if not count:
        return []
    if form in LIMIT:
        size = Expected(count, table=table) if is_coded else Expected(count, _size_width(form))
        return [Expected(count, 1), size] if form in SIGNED else [size]
    octets = WIDTH[form] // 8
    if not is_coded:
        return [Expected(count * octets, 8)]
    return [Expected(count, table=table, smooth=False), Expected(count * (octets - 1), 8)]


def joined(form: Values, is_coded: bool, count: int, *, numbers: list[np.ndarray], name: str) -> np.ndarray:
    """Codes from the numbers of their parts, in the form's own unsigned type; int16 of signed forms."""
    if not count:
        return np.empty(0, dtype=np.uint8)
    if form in LIMIT:
        size = numbers[-1]
        if size.max() > LIMIT[form] - (form in SIGNED):
            raise CodecError(f"{name} holds a code above {LIMIT[form]}: damaged")
        if form not in SIGNED:
            return size
        codes = size.astype(np.int16) + 1
        return np.negative(codes, out=codes, where=numbers[0] > 0)
    octets = np.empty((count, WIDTH[form] // 8), dtype=np.uint8)
    if is_coded:
        octets[:, 0], octets[:, 1:] = numbers[0], numbers[1].reshape(count, -1)
    else:
        octets[:] = numbers[0].reshape(count, -1)
    codes = octets.view(f"u{octets.shape[1]}").reshape(-1)
    return codes.byteswap(inplace=True) if sys.byteorder == "little" else codes


def highest_token(form: Values) -> int:
    """The highest token that a table of this form may speak of."""
    return token(LIMIT[form] - (form in SIGNED)) if form in LIMIT else 255


def _size_width(form: Values) -> int:
    return WIDTH[form] - (form in SIGNED)


def _floats(upper: np.ndarray) -> np.ndarray:
    return (upper.astype(np.uint32) << 16).view(np.float32)


_NO_SCALE = np.empty(0, dtype=np.uint16)
_F16_END = 32760.0 * 2.0**113  # from here on 11 bits round up to 2^128, which is no float32
