"""How a convolution is cut: every output place is computed once, and nothing is read behind the packed buffer."""

import ctypes
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.kernels.geometry import FIELDS, LONGEST_TILE, SLICE, Gather, Shape, backward_parts, forward_part

VECTORS = (4, 8, 16)


def pairs(low: int, high: int):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def shapes(draw) -> Shape:
    size, pad = draw(pairs(1, 14)), draw(pairs(0, 4))
    kernel = tuple(draw(st.integers(1, min(5, n + 2 * p))) for n, p in zip(size, pad, strict=True))
    batch = draw(st.integers(1, 70) | st.sampled_from([32, 48, 49, 64, 65, 128, 500]))
    return Shape(batch, draw(st.integers(1, 300)), draw(st.integers(1, 300)), size, kernel, draw(pairs(1, 3)), pad)


def assert_cut_well(part, vector: int) -> None:
    f = part.field
    assert f.keys() == set(FIELDS)
    assert 1 <= f["slice"] <= f["batch"] + vector and (f["slice"] == f["batch"] or f["slice"] % vector == 0)
    assert 1 <= f["unit_rows"] <= f["rows"] and 1 <= f["tile"] <= LONGEST_TILE and 1 <= f["blocks"] <= f["channels"]
    vectors = -(-f["cols"] * f["slice"] // vector)
    tiles = -(-vectors // f["tile"])
    assert f["tile"] <= vectors
    # the last kernel column's last tile ends in the packed row, the last band's last row is packed
    assert (part.kernel[1] - 1) // f["stride_w"] * f["slice"] + tiles * f["tile"] * vector <= f["phase_floats"]
    assert f["row_floats"] == f["phase_floats"] * min(f["stride_w"], part.kernel[1]) and f["phase_floats"] % vector == 0
    assert f["packed_rows"] == (f["unit_rows"] - 1) * f["stride_h"] + part.kernel[0]
    columns = f["phase_floats"] // f["slice"]  # whole columns of a phase hold all that the kernel can reach
    assert columns * f["stride_w"] >= (f["cols"] - 1) * f["stride_w"] + part.kernel[1]
    assert part.packed_floats == f["channels"] * f["packed_rows"] * f["row_floats"]
    assert part.tile_floats(vector) == f["outs"] * f["tile"] * vector
    assert part.band_floats(vector) == f["unit_rows"] * vectors * vector
    covered = [(s, r) for s in range(0, f["batch"], f["slice"]) for r in range(0, f["rows"], f["unit_rows"])]
    assert part.units == len(covered)


@given(shapes(), st.sampled_from(VECTORS), st.sampled_from([0.0, 0.001, 0.1, 1.0]))
def test_the_forward_part_computes_the_whole_output(shape, vector, density):
    part = forward_part(shape, vector, density)
    assert_cut_well(part, vector)
    assert part.residue is None and part.kernel == shape.kernel
    assert (part.field["rows"], part.field["cols"]) == (part.field["out_h"], part.field["out_w"]) == shape.out_size


@given(shapes(), st.sampled_from(VECTORS), st.sampled_from([0.0, 0.1, 1.0]))
def test_the_backward_parts_share_out_the_input_and_the_kernel(shape, vector, density):
    parts, is_whole = backward_parts(shape, vector, density)
    written, taps = [], []
    for part in parts:
        assert_cut_well(part, vector)
        f, (a, b) = part.field, part.residue
        rows = [f["row0"] + i * f["row_step"] for i in range(f["rows"])]
        columns = [f["col0"] + i * f["col_step"] for i in range(f["cols"])]
        assert rows[-1] < shape.size[0] and columns[-1] < shape.size[1]
        assert all((r + shape.pad[0]) % shape.stride[0] == a for r in rows)
        assert all((c + shape.pad[1]) % shape.stride[1] == b for c in columns)
        written += [(r, c) for r in rows for c in columns]
        kernel_rows, kernel_columns = range(a, shape.kernel[0], shape.stride[0]), range(b, shape.kernel[1], shape.stride[1])
        assert part.kernel == (len(kernel_rows), len(kernel_columns))
        taps += itertools.product(kernel_rows, kernel_columns)
    assert len(set(written)) == len(written) and len(set(taps)) == len(taps)
    assert is_whole == (len(written) == shape.size[0] * shape.size[1])


def test_a_large_batch_is_cut_into_slices_and_a_small_one_is_not():
    assert forward_part(Shape(SLICE * 3 // 2, 8, 8, (14, 14), (3, 3)), 8, 0.1).field["slice"] == SLICE * 3 // 2
    part = forward_part(Shape(70, 8, 8, (14, 14), (3, 3)), 8, 0.1)
    assert part.field["slice"] == 24 and part.units == 3 * 3  # 24 + 24 + 22 samples, 4 + 4 + 4 rows
    assert forward_part(Shape(70, 8, 8, (1, 1)), 8, 0.1).field["slice"] == 70  # few columns: a tile holds them all


def test_sources_that_do_not_fit_into_the_cache_are_cut_into_blocks():
    wide = Shape(32, 256, 256, (8, 8), (3, 3), pad=(1, 1))
    assert forward_part(wide, 8, 1.0).field["blocks"] > forward_part(wide, 8, 0.05).field["blocks"] >= 1
    assert forward_part(wide, 8, 0.0).field["blocks"] == 1


def test_what_a_shape_knows():
    shape = Shape(2, 3, 5, (7, 9), (3, 2), (2, 3), (1, 0))
    assert shape.out_size == (4, 3) and shape.weight_shape == (5, 3, 3, 2)
    assert Shape(1, 6, 4, (1, 1)).out_size == (1, 1)


def test_the_struct_has_the_fields_of_the_c_source(request):
    text = (request.config.rootpath / "sparcl_core/kernels/sparse.c").read_text()
    body = text[text.index("typedef struct {\n  int32_t batch") : text.index("} Gather;")]
    lines = [line.split(";")[0].replace("int32_t", "").split("{")[-1] for line in body.splitlines()]
    assert [name.strip() for line in lines for name in line.split(",") if name.strip()] == FIELDS
    assert ctypes.sizeof(Gather) == 4 * len(FIELDS)
    part = forward_part(Shape(2, 3, 5, (7, 9), (3, 2), (2, 3), (1, 0)), 8, 1.0)
    assert {name: getattr(part.struct(), name) for name in FIELDS} == part.field


@pytest.mark.parametrize("field", ["batch", "channels", "outs"])
def test_a_size_of_nothing_is_refused(field):
    sizes = {"batch": 1, "channels": 1, "outs": 1, field: 0}
    with pytest.raises(ValueError, match=rf"{field}=0.*sizes must be at least 1 and padding at least 0"):
        Shape(**sizes, size=(3, 3))


@pytest.mark.parametrize(("field", "value"), [("size", (3, 0)), ("kernel", (0, 1)), ("stride", (1, 0)), ("pad", (0, -1))])
def test_a_pair_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field}=\({value[0]}, {value[1]}\).*sizes must be at least 1 and padding at least 0"):
        Shape(1, 1, 1, **({"size": (3, 3)} | {field: value}))


def test_a_kernel_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"a kernel of \(3, 6\) does not fit into an input of \(3, 3\) with padding \(0, 1\)"):
        Shape(1, 1, 1, (3, 3), (3, 6), pad=(0, 1))
