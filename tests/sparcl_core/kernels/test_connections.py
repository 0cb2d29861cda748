"""Lists of active weights: each weight once, where the kernels look for it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_geometry import VECTORS, shapes

from sparcl_core.kernels.connections import KEPT_SHAPES, Connections
from sparcl_core.kernels.geometry import Shape

SHAPE = Shape(3, 4, 5, (6, 6), (3, 3), pad=(1, 1))


def some(weight_shape: tuple[int, ...], count: int, seed: int = 0) -> np.ndarray:
    size = int(np.prod(weight_shape))
    return np.sort(np.random.default_rng(seed).choice(size, min(count, size), replace=False))


def entries(lists) -> list[tuple[int, int, int, int]]:
    """(output channel, block, offset, position of the weight) of each entry."""
    f, ptr, order = lists.part.field, lists.ptr.numpy(), lists.order.numpy()
    values = np.arange(lists.off.numel()) if lists.values is None else lists.values.numpy()
    found = []
    for block in range(f["blocks"]):
        lengths = ptr[block, :, -1] - ptr[block, :, 0]
        assert (np.diff(ptr[block].ravel()) >= 0).all()
        assert (np.diff(lengths) <= 0).all() and sorted(order[block]) == list(range(f["outs"]))  # longest first
        for i in range(f["outs"]):
            for row in range(part_rows := lists.part.kernel[0]):
                for e in range(ptr[block, i, row], ptr[block, i, row + 1]):
                    assert where(lists.part, int(lists.off[e]))[1] == row < part_rows
                    found.append((order[block, i], block, int(lists.off[e]), int(values[e])))
    return found


def where(part, offset: int) -> tuple[int, int, int]:
    """Source channel, kernel row and kernel column that an offset means."""
    f = part.field
    row, rest = divmod(offset, f["row_floats"])
    phase, at = divmod(rest, f["phase_floats"])
    assert at % f["slice"] == 0
    return row // f["packed_rows"], row % f["packed_rows"], at // f["slice"] * f["stride_w"] + phase


def assert_in_buffer(part, off: torch.Tensor, vector: int) -> None:
    f = part.field
    vectors = -(-f["cols"] * f["slice"] // vector)
    furthest = (f["unit_rows"] - 1) * f["stride_h"] * f["row_floats"] + -(-vectors // f["tile"]) * f["tile"] * vector
    if off.numel():
        assert off.min() >= 0 and int(off.max()) + furthest <= part.packed_floats


@given(shapes(), st.sampled_from(VECTORS), st.sampled_from([0, 1, 60, 10**9]), st.integers(0, 9))
def test_every_active_weight_is_listed_once_where_it_belongs(shape, vector, count, seed):
    shape = Shape(shape.batch, min(shape.channels, 40), min(shape.outs, 10), shape.size, shape.kernel, shape.stride, shape.pad)
    places = some(shape.weight_shape, count, seed)[:600]
    connections = Connections(shape.weight_shape, places, vector)
    outs, channels, rows, columns = np.unravel_index(places, shape.weight_shape)
    wanted = set(zip(outs, channels, rows, columns, range(places.size), strict=True))
    lists = connections.forward(shape)
    assert {(o, *where(lists.part, off), at) for o, _, off, at in entries(lists)} == wanted and lists.off.numel() == places.size
    width = -(-lists.part.field["channels"] // lists.part.field["blocks"])
    assert all(where(lists.part, off)[0] // width == block for _, block, off, _ in entries(lists))
    assert_in_buffer(lists.part, lists.off, vector)
    ptr, off = connections.gradient(shape)
    assert np.array_equal(np.diff(ptr.numpy()), np.bincount(outs, minlength=shape.outs))
    assert [where(lists.part, o) for o in off.tolist()] == list(zip(channels, rows, columns, strict=True))
    assert_in_buffer(lists.part, off, vector)
    found, (step_h, step_w) = set(), shape.stride
    for part_lists in connections.backward(shape)[0]:
        part, (a, b) = part_lists.part, part_lists.part.residue
        assert_in_buffer(part, part_lists.off, vector)
        for channel, _, offset, at in entries(part_lists):
            out, k, l = where(part, offset)  # noqa: E741
            kernel = a + (part.kernel[0] - 1 - k) * step_h, b + (part.kernel[1] - 1 - l) * step_w
            assert (out, channel, *kernel, at) not in found
            found.add((out, channel, *kernel, at))
    reached = {one for one in wanted if is_reached(shape, one[2], one[3])}
    assert reached <= found <= wanted


def is_reached(shape: Shape, row: int, column: int) -> bool:
    """A kernel place of a residue that no input place has counts for nothing."""
    has = [
        any((i + pad) % stride == k % stride for i in range(size))
        for k, size, stride, pad in zip((row, column), shape.size, shape.stride, shape.pad, strict=True)
    ]
    return all(has)


def test_weights_are_picked_in_the_order_of_the_lists():
    weights = torch.arange(5.0)
    connections = Connections((3, 1, 2, 2), np.array([0, 5, 6, 8, 9]), 8)
    lists = connections.forward(Shape(1, 1, 3, (2, 2), (2, 2)))
    assert lists.order.tolist() == [[1, 2, 0]]  # of equals the lower channel
    assert lists.ptr.tolist() == [[[0, 1, 2], [2, 4, 4], [4, 5, 5]]]
    assert lists.pick(weights).tolist() == [1, 2, 3, 4, 0]
    plain = Connections((3, 1, 2, 2), np.array([0, 5]), 8).forward(Shape(1, 1, 3, (2, 2), (2, 2)))
    assert plain.values is None and plain.pick(weights) is weights


@pytest.mark.parametrize("places", [None, np.arange(180), np.arange(180, dtype=np.uint16)])
def test_all_weights_are_active(places):
    connections = Connections(SHAPE.weight_shape, places, 8)
    assert (connections.places, connections.count, connections.density) == (None, 180, 1.0)


def test_no_weight_is_active():
    connections = Connections(SHAPE.weight_shape, np.zeros(0, np.int64), 8)
    assert (connections.count, connections.density) == (0, 0.0) and connections.forward(SHAPE).off.numel() == 0


def test_lists_are_kept_for_some_shapes():
    connections = Connections(SHAPE.weight_shape, some(SHAPE.weight_shape, 30), 8)
    assert connections.forward(SHAPE) is connections.forward(SHAPE) and connections.backward(SHAPE) is connections.backward(SHAPE)
    first = connections.forward(SHAPE)
    for batch in range(10, 10 + KEPT_SHAPES):
        connections.forward(Shape(batch, 4, 5, (6, 6), (3, 3), pad=(1, 1)))
    assert connections.forward(SHAPE) is not first


def test_an_update_asks_for_gradients_of_some_weights_only():
    connections = Connections(SHAPE.weight_shape, some(SHAPE.weight_shape, 30), 8)
    whole = connections.gradient(SHAPE)[1]
    positions = np.array([0, 3, 29])
    connections.update(positions)
    ptr, off = connections.gradient(SHAPE)
    assert torch.equal(off, whole[torch.from_numpy(positions)]) and ptr[-1] == 3
    connections.update(np.zeros(0, np.int64))
    assert connections.gradient(SHAPE)[1].numel() == 0
    connections.update(np.arange(30))
    assert connections.updated is None and torch.equal(connections.gradient(SHAPE)[1], whole)


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_has_lists_of_its_own(again):
    connections = Connections(SHAPE.weight_shape, some(SHAPE.weight_shape, 30), 8)
    connections.update(np.array([3]))
    other = again(connections)
    assert other.updated.tolist() == [3]
    other.update(np.array([1, 2]))
    assert other.gradient(SHAPE)[1].numel() == 2 and connections.gradient(SHAPE)[1].numel() == 1


# -- bad input


@pytest.mark.parametrize(
    ("places", "part"),
    [
        (np.array([0.5, 1.0]), r"places are float64 of shape \(2,\)"),
        (np.ones(180, bool), r"places are bool of shape \(180,\)"),
        (np.zeros((2, 3), np.int64), r"places are int64 of shape \(2, 3\)"),
    ],
)
def test_places_that_are_no_indices_are_refused(places, part):
    with pytest.raises(ValueError, match=part + ": flat indices are integers in one dimension"):
        Connections(SHAPE.weight_shape, places, 8)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint64])
@pytest.mark.parametrize("places", [[0, 180], [3, 3], [5, 4]])
def test_places_that_do_not_increase_or_are_out_of_range_are_refused(places, kind):
    with pytest.raises(ValueError, match=r"increase strictly from 0 to at most 179, the last weight of \(5, 4, 3, 3\)"):
        Connections(SHAPE.weight_shape, np.array(places, kind), 8)


def test_a_negative_place_is_refused():
    with pytest.raises(ValueError, match="increase strictly from 0 to at most 179"):
        Connections(SHAPE.weight_shape, np.array([-1, 3]), 8)


@pytest.mark.parametrize("positions", [[0, 30], [-1], [4, 4], [5, 4]])
def test_positions_that_do_not_increase_or_are_out_of_range_are_refused(positions):
    connections = Connections(SHAPE.weight_shape, some(SHAPE.weight_shape, 30), 8)
    with pytest.raises(ValueError, match="positions must increase strictly from 0 to at most 29, the last active weight"):
        connections.update(np.array(positions))
    assert connections.updated is None


@pytest.mark.parametrize("positions", [np.array([0.0, 1.0]), np.ones(30, bool), np.array([[1, 2]])])
def test_positions_that_are_no_indices_are_refused(positions):
    connections = Connections(SHAPE.weight_shape, some(SHAPE.weight_shape, 30), 8)
    with pytest.raises(ValueError, match="positions are .*: positions in the vector of weights are integers in one dimension"):
        connections.update(positions)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint32, np.uint64])
def test_places_and_positions_may_be_integers_of_any_type(kind):
    places, wanted = some(SHAPE.weight_shape, 30), Connections(SHAPE.weight_shape, some(SHAPE.weight_shape, 30), 8)
    connections = Connections(SHAPE.weight_shape, places.astype(kind), 8)
    for made in (wanted, connections):
        made.update(np.array([1, 4, 29], kind if made is connections else np.int64))
    assert connections.updated.dtype == connections.places.dtype == np.int64
    for found, of_64_bits in zip(connections.gradient(SHAPE), wanted.gradient(SHAPE), strict=True):
        assert torch.equal(found, of_64_bits)


@pytest.mark.parametrize("call", ["forward", "backward", "gradient"])
def test_a_shape_of_another_layer_is_refused(call):
    with pytest.raises(ValueError, match=r"weights of shape \(5, 4, 3, 3\) cannot serve a layer of \(5, 4, 3, 1\)"):
        getattr(Connections(SHAPE.weight_shape, None, 8), call)(Shape(3, 4, 5, (6, 6), (3, 1)))


def test_what_has_no_32_bit_offset_is_refused():
    with pytest.raises(ValueError, match=f"a layer of {2**31} weights is too large"):
        Connections((2**16, 2**15, 1, 1), np.array([0]), 8)
    shape = Shape(32, 1, 1, (1, 2**26))
    with pytest.raises(ValueError, match=r"a unit of 214748\d{4} floats is too large: .*take a smaller batch"):
        Connections((1, 1, 1, 1), None, 8).forward(shape)
