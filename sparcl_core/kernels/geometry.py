"""How a convolution is cut into units and tiles for the kernels: numbers only, the same fields as in `sparse.c`.

A layer's `Shape` gives one `Gather` for its forward pass (and for its weight gradients, which read the same packed source) and, for
the gradient of its input, one per residue of rows and columns modulo the stride: input row h meets kernel row k only where
h + pad - k is a multiple of the stride, so each residue is a convolution of stride 1 with every stride-th kernel row.
"""

import ctypes
from dataclasses import dataclass, replace

LONGEST_TILE = 12  # vectors; as in sparse.c
L1_BYTES = 24 * 1024  # of the source that a tile reads: three quarters of a usual first-level cache
SHORTEST_LIST = 20  # entries per output channel and block: below, starting a list costs more than cache misses do
UNIT_ROWS = 4
SLICE = 32  # samples
FAR = 4  # a stride of so many kernel heights: bands of several rows would pack mostly what no row reads
LIMIT = 2**31  # numbers for C are signed and have 32 bits

FIELDS = [
    "batch",
    "slice",
    "channels",
    "height",
    "width",
    "outs",
    "rows",
    "cols",
    "stride_h",
    "stride_w",
    "pad_h",
    "pad_w",
    "out_h",
    "out_w",
    "row0",
    "row_step",
    "col0",
    "col_step",
    "unit_rows",
    "packed_rows",
    "row_floats",
    "phase_floats",
    "tile",
    "blocks",
    "kernel_rows",
]


class Gather(ctypes.Structure):
    """The C struct of the same name."""

    _fields_ = [(name, ctypes.c_int32) for name in FIELDS]


@dataclass(frozen=True)
class Shape:
    """A convolution of one batch. Pairs are (rows, columns). A linear layer is one of 1x1 on a plane of one place.

    Attributes:
        stride: no longer than it takes to leave one output place: a longer one is the same convolution, and all that is cut by it longer.

    Raises:
        ValueError: if the kernel does not fit into the padded input, or a size cannot be told to C.
    """

    batch: int
    channels: int
    outs: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)

    def __post_init__(self):
        if min(self.batch, self.channels, self.outs, *self.size, *self.kernel, *self.stride) < 1 or min(self.pad) < 0:
            raise ValueError(f"{self}: sizes must be at least 1 and padding at least 0")
        if min(self.out_size) < 1:
            raise ValueError(f"a kernel of {self.kernel} does not fit into an input of {self.size} with padding {self.pad}")
        padded = [size + 2 * pad for size, pad in zip(self.size, self.pad, strict=True)]
        if max(self.batch, self.channels, self.outs, *padded) >= LIMIT:
            raise ValueError(f"{self}: the kernels count samples, channels and padded rows and columns with 32 bits, so up to {LIMIT - 1}")
        longest = [whole - kernel + 1 for whole, kernel in zip(padded, self.kernel, strict=True)]
        object.__setattr__(self, "stride", tuple(map(min, self.stride, longest)))

    @property
    def out_size(self) -> tuple[int, int]:
        pairs = zip(self.size, self.kernel, self.stride, self.pad, strict=True)
        rows, columns = ((size + 2 * pad - kernel) // stride + 1 for size, kernel, stride, pad in pairs)
        return rows, columns

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.outs, self.channels, *self.kernel


@dataclass(frozen=True)
class Part:
    """One gather of a layer and the kernel places that it uses.

    Attributes:
        kernel: rows and columns of its own kernel.
        residue: (a, b): it uses kernel places (k, l) with k % stride == a and l % stride == b; None: all, as they are.
        field: the numbers for C.
    """

    kernel: tuple[int, int]
    residue: tuple[int, int] | None
    field: dict[str, int]

    def struct(self) -> Gather:
        """Raises ValueError if a number has no 32 bits."""
        if max(self.units, self.packed_floats, *self.field.values()) >= LIMIT:
            raise ValueError(f"a unit of {self.packed_floats} floats is too large: offsets have 32 bits; take a smaller batch")
        return Gather(**self.field)

    @property
    def units(self) -> int:
        f = self.field
        return -(-f["batch"] // f["slice"]) * -(-f["rows"] // f["unit_rows"])

    @property
    def packed_floats(self) -> int:
        return self.field["channels"] * self.field["packed_rows"] * self.field["row_floats"]

    def tile_floats(self, vector: int) -> int:
        return self.field["outs"] * self.field["tile"] * vector

    def band_floats(self, vector: int) -> int:
        return self.field["unit_rows"] * -(-self.field["cols"] * self.field["slice"] // vector) * vector


def forward_part(shape: Shape, vector: int, density: float) -> Part:
    """The gather of the forward pass. vector: floats per register. density: share of weights that are active, to choose blocks."""
    (rows, columns), (height, width) = shape.out_size, shape.size
    part = Part(
        shape.kernel,
        None,
        {
            "batch": shape.batch, "channels": shape.channels, "height": height, "width": width, "outs": shape.outs,
            "rows": rows, "cols": columns, "out_h": rows, "out_w": columns, "row0": 0, "row_step": 1, "col0": 0, "col_step": 1,
            "stride_h": shape.stride[0], "stride_w": shape.stride[1], "pad_h": shape.pad[0], "pad_w": shape.pad[1],
        },
    )  # fmt: skip
    return _cut(part, vector, density)


def backward_parts(shape: Shape, vector: int, density: float) -> tuple[list[Part], bool]:
    """The gathers of the gradient of the input, and whether together they write every place of it."""
    (rows, columns), parts = shape.out_size, []
    # residues that meet a kernel row: with a stride beyond the kernel, input rows of the others have no gradient
    places = [[_residue(shape, axis, a) for a in range(min(shape.stride[axis], shape.kernel[axis]))] for axis in (0, 1)]
    is_whole = all(sum(count for _, count, _, _ in of_axis) == size for of_axis, size in zip(places, shape.size, strict=True))
    for a, (row0, count_h, taps_h, pad_h) in enumerate(places[0]):
        for b, (col0, count_w, taps_w, pad_w) in enumerate(places[1]):
            if not count_h or not count_w:
                continue
            field = {
                "batch": shape.batch, "channels": shape.outs, "height": rows, "width": columns, "outs": shape.channels,
                "rows": count_h, "cols": count_w, "out_h": shape.size[0], "out_w": shape.size[1],
                "row0": row0, "row_step": shape.stride[0], "col0": col0, "col_step": shape.stride[1],
                "stride_h": 1, "stride_w": 1, "pad_h": pad_h, "pad_w": pad_w,
            }  # fmt: skip
            parts.append(_cut(Part((taps_h, taps_w), (a, b), field), vector, density))
    return parts, is_whole


def _residue(shape: Shape, axis: int, residue: int) -> tuple[int, int, int, int]:
    """First input row with (row + pad) % stride == residue, how many there are, kernel rows they meet, and the padding in front.

    Row h = row0 + i * stride meets output row (h + pad - residue) / stride - m for m = 0 .. taps - 1, kernel row residue + m * stride.
    With m counted from the far end, that is a convolution with padding taps - 1 - (row0 + pad - residue) / stride.
    """
    stride, pad = shape.stride[axis], shape.pad[axis]
    row0 = (residue - pad) % stride
    count = max(0, -(-(shape.size[axis] - row0) // stride))
    taps = max(0, -(-(shape.kernel[axis] - residue) // stride))
    return row0, count, taps, taps - 1 - (row0 + pad - residue) // stride


def _cut(part: Part, vector: int, density: float) -> Part:
    """`part` with slices, bands, tiles and blocks."""
    f, (kernel_h, kernel_w) = dict(part.field), part.kernel
    batch, columns = f["batch"], f["cols"]
    if batch <= SLICE * 3 // 2 or batch * columns <= LONGEST_TILE * vector:
        size = batch  # rows lie as they are, and no lane idles
    else:
        share = -(-batch // -(-batch // SLICE))
        size = -(-share // vector) * vector
    unit_rows = min(UNIT_ROWS, f["rows"]) if f["stride_h"] < FAR * kernel_h else 1
    vectors = -(-columns * size // vector)
    tiles = -(-vectors // LONGEST_TILE)
    tile = -(-vectors // tiles)
    span = (columns - 1) * f["stride_w"] + kernel_w  # packed columns, of which a phase holds every stride_w-th
    reach = (kernel_w - 1) // f["stride_w"] * size + tiles * tile * vector  # the last tile may read behind the last column
    phase = -(-max(-(-span // f["stride_w"]) * size, reach) // vector) * vector
    per_channel = kernel_h * (tile * vector + (kernel_w - 1) * size) * 4
    entries = max(kernel_h * kernel_w * density, 1e-9)
    channels = max(L1_BYTES // per_channel, int(SHORTEST_LIST / entries), 1)
    f.update(
        slice=size, unit_rows=unit_rows, packed_rows=(unit_rows - 1) * f["stride_h"] + kernel_h, phase_floats=phase,
        row_floats=phase * min(f["stride_w"], kernel_w),  # no list reads the other phases
        tile=tile, blocks=-(-f["channels"] // min(channels, f["channels"])), kernel_rows=kernel_h,
    )  # fmt: skip
    return replace(part, field=f)
