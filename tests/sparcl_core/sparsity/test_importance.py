import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.importance import combine
from sparcl_core.sparsity.tdm import TDMConfig

configs = st.sampled_from([TDMConfig, DGMConfig])
gradients = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=20)


def pair(values):
    return (torch.tensor(column, dtype=torch.float64) for column in zip(*values, strict=True))


@pytest.mark.parametrize("kind", [TDMConfig, DGMConfig])
def test_by_hand(kind):
    # gradients 3 and -1 (current), -3 and -2 (replay); merged: 0.5 |sum|; two-term: 0.5 |current| + 2 |replay|
    current, replay = torch.tensor([3.0, -1.0]), torch.tensor([-3.0, -2.0])
    assert combine(kind(alpha=0.5), current, replay).tolist() == [0.0, 1.5]
    assert combine(kind(importance="two-term", alpha=0.5, beta=2.0), current, replay).tolist() == [7.5, 4.5]


@given(configs, gradients)
def test_merged_never_exceeds_two_terms_of_equal_weight(kind, values):
    current, replay = pair(values)
    merged = combine(kind(alpha=0.5), current, replay)
    two_term = combine(kind(importance="two-term", alpha=0.5, beta=0.5), current, replay)
    assert (merged <= two_term).all() and (merged >= 0).all()
    agree = current * replay >= 0  # where both parts pull the same way the two forms are one
    assert torch.equal(merged[agree], two_term[agree])


@given(configs, gradients)
def test_without_replay_both_forms_are_one(kind, values):
    current, _ = pair(values)
    merged = combine(kind(alpha=0.3), current, None)
    assert torch.equal(merged, combine(kind(importance="two-term", alpha=0.3, beta=9.0), current, None))
    assert torch.equal(merged, 0.3 * current.abs())
