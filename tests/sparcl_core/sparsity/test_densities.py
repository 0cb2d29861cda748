import math

import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.sparsity.densities import active_counts, erk_densities, layer_sparsity
from sparcl_core.sparsity.masks import num_active

SIDE = st.integers(1, 12)
SHAPE = st.one_of(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE, st.just(3), st.just(3)))
LAYERS = st.lists(SHAPE, min_size=1, max_size=5)


def named(shapes):
    return {f"layer{number}": tuple(shape) for number, shape in enumerate(shapes)}


@given(LAYERS, st.integers(1, 19))
def test_erk_densities_equal_the_slow_reference(shapes, twentieths):
    found = erk_densities(named(shapes), twentieths / 20)
    for density, wanted in zip(found.values(), oracles.erk_densities(shapes, twentieths / 20), strict=True):
        assert density == pytest.approx(float(wanted), rel=1e-9)


def test_erk_by_hand():
    """[10, 5, 2, 2]: 19 / 200; [20, 10]: 30 / 200. 100 of 400 weights at 0.75: eps = 100 / 49, so 38.8 and 61.2 of 200 each."""
    shapes = {"conv": (10, 5, 2, 2), "fc": (20, 10)}
    found = erk_densities(shapes, 0.75)
    assert found == pytest.approx({"conv": 19 / 49 / 2, "fc": 30 / 49 / 2})
    assert active_counts("erk", shapes, 0.75) == {"conv": 39, "fc": 61}  # the larger rest, 0.8, goes up


@given(LAYERS, st.integers(1, 19))
def test_erk_counts_are_exact_in_total_and_near_their_layers(shapes, twentieths):
    sparsity, layers = twentieths / 20, named(shapes)
    counts, densities = active_counts("erk", layers, sparsity), erk_densities(layers, sparsity)
    total = num_active(sum(math.prod(shape) for shape in shapes), sparsity)
    assert sum(counts.values()) == max(total, len(shapes)) or min(counts.values()) == 1  # nobody loses its last weight
    assert sum(counts.values()) >= total
    for name, count in counts.items():
        size = math.prod(layers[name])
        assert 1 <= count <= size
        assert count == 1 or abs(count - densities[name] * size) <= 1 + 1e-6


@given(LAYERS, st.integers(1, 19))
def test_the_sparsity_of_a_layer_gives_its_count(shapes, twentieths):
    layers = named(shapes)
    of = layer_sparsity("erk", layers, twentieths / 20)
    counts = active_counts("erk", layers, twentieths / 20)
    assert {name: num_active(math.prod(shape), of[name]) for name, shape in layers.items()} == counts


def test_uniform_layers_are_as_sparse_as_the_network():
    assert layer_sparsity("uniform", {"a": (3, 4)}, 0.9) == 0.9
    assert active_counts("uniform", {"a": (30, 10), "b": (20, 5)}, 0.9) == {"a": 30, "b": 10}
