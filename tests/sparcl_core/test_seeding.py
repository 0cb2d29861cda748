import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.seeding import generator

parts = st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=6))
addresses = st.lists(parts, max_size=4)


def first_draws(seed, address):
    return generator(seed, *address).integers(0, 2**63, size=2).tolist()


@given(st.integers(), addresses)
def test_the_same_address_gives_the_same_draws_whatever_was_drawn_before(seed, address):
    before = first_draws(seed, address)
    generator(seed, "other").random(100)
    np.random.default_rng(0).random(3)
    assert first_draws(seed, address) == before


@given(st.integers(0, 5), addresses, st.integers(0, 5), addresses)
def test_different_addresses_give_different_draws(seed, address, other_seed, other_address):
    same = (seed, address) == (other_seed, other_address)
    assert (first_draws(seed, address) == first_draws(other_seed, other_address)) == same


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (("a", 1), ("a1",)),
        ((1,), ("1",)),
        (("a", "b"), ("ab",)),
        (("", "a"), ("a", "")),
        ((1, 2), (12,)),
        (("int:1",), (1,)),
        (("a", "b"), ("astr:b",)),
        ((), ("",)),
    ],
)
def test_addresses_that_read_alike_are_different(left, right):
    assert first_draws(0, left) != first_draws(0, right)


def test_a_numpy_integer_is_the_same_address_as_a_python_one():
    assert first_draws(3, ("step", np.int64(5))) == first_draws(3, ("step", 5))


def test_draws_of_neighbouring_addresses_are_uncorrelated():
    draws = np.stack([generator(0, "device", k).random(2000) for k in range(20)])
    correlation = np.corrcoef(draws)[~np.eye(20, dtype=bool)]
    assert np.abs(correlation).max() < 0.11  # 5 standard errors of 1 / sqrt(2000)


def test_draws_do_not_depend_on_pythons_salted_hash():
    code = "from sparcl_core.seeding import generator; print(generator(1, 'mask', 'fc', 2).integers(0, 2**63))"
    salted = [dict(os.environ, PYTHONHASHSEED=salt) for salt in ("1", "2")]
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout for env in salted}
    assert runs == {f"{generator(1, 'mask', 'fc', 2).integers(0, 2**63)}\n"}


@pytest.mark.parametrize("seed", [True, 1.0, "1", None])
def test_a_seed_that_is_no_int_is_refused(seed):
    with pytest.raises(TypeError, match=f"seed is {seed!r}.*a seed is an int"):
        generator(seed)


@pytest.mark.parametrize("part", [1.5, None, ("a",), False])
def test_an_address_part_that_is_neither_int_nor_str_is_refused(part):
    with pytest.raises(TypeError, match="address part .*made of int and str"):
        generator(0, "a", part)
