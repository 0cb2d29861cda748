"""Named arrays in one safetensors file that is known again by its size and CRC-32.

Written by hand and straight from the arrays: the library copies a model twice to give its bytes, and what it writes to a file it
writes to another one first, which stays behind when the process is killed.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from simulations import disk
from simulations.disk import put

_CODES = {"b": "BOOL", "f": "F{}", "i": "I{}", "u": "U{}"}


@dataclass(frozen=True)
class ArrayFile:
    """A file as it must be: its name within a folder, bytes, CRC-32 of all of them."""

    name: str
    size: int
    crc32: int


def write_arrays(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> ArrayFile:
    """Write `arrays`: bools, integers and floats of any shape and memory order. Not flushed. Raises OSError."""
    header, bodies, end = {}, [], 0
    for key, array in arrays.items():
        little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        code = _CODES[array.dtype.kind].format(8 * array.itemsize)
        header[key] = {"dtype": code, "shape": array.shape, "data_offsets": (end, end + array.nbytes)}
        bodies.append(little.reshape(-1).view(np.uint8))
        end += array.nbytes
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # so that the arrays lie at multiples of 8
    parts, crc32 = [struct.pack("<Q", len(head)), head, *bodies], 0
    put(folder / name, parts)
    for part in parts:
        crc32 = zlib.crc32(part, crc32)
    return ArrayFile(name, sum(map(len, parts)), crc32)


def read_arrays(folder: Path, file: ArrayFile) -> dict[str, np.ndarray]:
    """The inverse of `write_arrays`.

    Raises:
        OSError: if the file cannot be read.
        ValueError: what is wrong, if it is not the one that was written.
    """
    data = disk.read(folder / file.name)
    if len(data) != file.size:
        raise ValueError(f"it has {len(data)} bytes, not {file.size}: truncated, or of another run")
    if zlib.crc32(data) != file.crc32:
        raise ValueError("its checksum does not match: damaged, or of another run")
    try:
        return load(data)
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"it is no safetensors file ({error})") from error
