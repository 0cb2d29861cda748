"""Sparse tensors <-> bytes: what really crosses the wire, versioned, checksummed, no pickle.

    tensor -> quantise -> encode -> bytes -> decode -> tensor

`layout`: what both sides know. `values`: what is kept of a value. `positions`: which places are meant. `tokens`, `rans`: the entropy coder.
`parts`, `payload`: how it all becomes one byte string. See docs/wire.md.
"""

from sparcl_core.codec.layout import CodecError, Layout, Reference, SparseTensor, reference_set
from sparcl_core.codec.payload import (
    AUXILIARY,
    KINDS,
    MASK_KINDS,
    PLACES_ONLY,
    Encoded,
    Payload,
    Sizes,
    decode,
    encode,
    encode_places,
    reference,
)
from sparcl_core.codec.values import LIMIT, LOSSLESS, SIGNED, VALUES, WIDTH, Quantised, Values, labelled, quantise

__all__ = [
    "AUXILIARY", "KINDS", "LIMIT", "LOSSLESS", "MASK_KINDS", "PLACES_ONLY", "SIGNED", "VALUES", "WIDTH",
    "CodecError", "Encoded", "Layout", "Payload", "Quantised", "Reference", "Sizes", "SparseTensor", "Values",
    "decode", "encode", "encode_places", "labelled", "quantise", "reference", "reference_set",
]  # fmt: skip
