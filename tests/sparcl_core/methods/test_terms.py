"""What each method adds to the loss, as a function of logits: by hand, and beside the slow reference."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparcl_core.config import LearnerConfig
from sparcl_core.methods.given import Samples
from sparcl_core.methods.registry import OURS, find_method, make_method
from sparcl_core.training.step import single_head

CLASSES = 5
numbers = st.floats(-20, 20, width=32)
any_class = st.integers(0, CLASSES - 1)


@st.composite
def batches(draw, labels=any_class):
    """Logits [B, classes], labels [B] and stored logits [B, classes]."""
    size = draw(st.integers(1, 6))
    rows = st.lists(st.lists(numbers, min_size=CLASSES, max_size=CLASSES), min_size=size, max_size=size)
    return draw(rows), draw(st.lists(labels, min_size=size, max_size=size)), draw(rows)


def of(labels, stored=None) -> Samples:
    return Samples(torch.empty(0), labels, np.arange(len(labels)), stored)


def current_term(seen: torch.Tensor, labels: torch.Tensor, method: str = "sgd") -> torch.Tensor:
    return make_method(LearnerConfig(method)).current_term(None, of(labels), seen, seen)


def draw_terms(method: str, draws: list[tuple], alpha: float, beta: float) -> torch.Tensor:
    """The sum of what the draws add, each (logits, labels, stored logits). `alpha`: weight of er's term, too."""
    made = make_method(LearnerConfig(method, alpha=alpha, beta=beta, replay_weight=alpha))
    return sum(made.draw_term(None, number, of(labels, stored), logits) for number, (logits, labels, stored) in enumerate(draws))


def tensors(batch) -> tuple:
    logits, labels, stored = batch
    return torch.tensor(logits, dtype=torch.float64), torch.tensor(labels), torch.tensor(stored, dtype=torch.float64)


def total(method, batch, draws, alpha, beta, classes=None):
    logits, labels, _ = tensors(batch)
    seen = logits if classes is None else single_head(logits, torch.tensor(classes))
    return current_term(seen, labels, method) + draw_terms(method, [tensors(draw) for draw in draws], alpha, beta)


def test_the_current_term_of_equal_logits_is_the_log_of_the_classes():
    assert current_term(torch.zeros(3, 4), torch.tensor([0, 1, 3])).item() == pytest.approx(math.log(4))


def test_a_term_is_a_mean_over_its_own_batch():
    # batch of 1: ln 2. Batch of 3 with the same rows: ln 2 as well, whatever the sizes of the others.
    one = (torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2))
    three = (torch.zeros(3, 2), torch.tensor([0, 1, 0]), torch.zeros(3, 2))
    assert draw_terms("er", [one], 1.0, 0.0).item() == pytest.approx(draw_terms("er", [three], 1.0, 0.0).item())


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_the_weight_and_rate_that_make_er_mammoths(current, replayed, data):
    """mammoth: one mean over the joined batch, (n CE + m CE') / (n + m), which is n / (n + m) of CE + (m / n) CE'."""
    rows = data.draw(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=current + replayed, max_size=current + replayed))
    logits, labels = torch.tensor(rows, dtype=torch.float64), torch.tensor([i % 3 for i in range(current + replayed)])
    joined = torch.nn.functional.cross_entropy(logits, labels)
    held = (logits[current:], labels[current:], logits[current:])
    ours = current_term(logits[:current], labels[:current]) + draw_terms("er", [held], replayed / current, 0.0)
    assert (current / (current + replayed) * ours).item() == pytest.approx(joined.item(), rel=1e-12)
    if current == replayed:
        assert ours.item() == pytest.approx(2 * joined.item(), rel=1e-12)


def test_distillation_is_a_mean_over_batch_and_classes():
    # squares 1, 4, 0, 0, 0, 9 over 2 samples x 3 classes: 14 / 6; alpha = 0.3 -> 0.7
    drawn = (torch.tensor([[1.0, 2, 0], [0, 0, 3]]), torch.tensor([0, 0]), torch.zeros(2, 3))
    assert draw_terms("der", [drawn], 0.3, 99.0).item() == pytest.approx(0.7)


def test_derpp_by_hand():
    # B1: (1 + 4) / 2 = 2.5, times 0.1. B2: two equal logits, ln 2, times 0.5.
    first = (torch.tensor([[1.0, 2.0]]), torch.tensor([0]), torch.zeros(1, 2))
    second = (torch.zeros(1, 2), torch.tensor([1]), torch.full((1, 2), 50.0))
    assert draw_terms("derpp", [first, second], 0.1, 0.5).item() == pytest.approx(0.25 + 0.5 * math.log(2))


def test_single_head_by_hand():
    # classes 0 and 1 are the task's and equal: ln 2, however large the logits of the others
    logits = torch.tensor([[0.0, 0.0, 5.0, 9.0]])
    assert current_term(single_head(logits, torch.tensor([0, 1])), torch.tensor([1])).item() == pytest.approx(math.log(2))


@given(batches(), batches(), st.floats(0, 3))
def test_er_equals_the_slow_reference(current, replay, weight):
    wanted = oracles.er_loss(current[:2], replay[:2], weight)
    assert total("er", current, [replay], weight, 99.0).item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@given(batches(), batches(), batches(), st.floats(0, 3), st.floats(0, 3))
def test_derpp_equals_the_slow_reference(current, first, second, alpha, beta):
    wanted = oracles.derpp_loss(current[:2], (first[0], first[2]), second[:2], alpha, beta)
    assert total("derpp", current, [first, second], alpha, beta).item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@given(batches(labels=st.sampled_from([1, 4])), batches())
def test_single_head_er_equals_the_slow_reference_over_the_tasks_classes(current, replay):
    wanted = oracles.er_loss(current[:2], replay[:2], 1.0, classes=[1, 4])
    assert total("er", current, [replay], 1.0, 0.0, classes=[1, 4]).item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@given(batches(labels=st.sampled_from([0, 3])))
def test_single_head_sends_no_gradient_to_other_classes(batch):
    logits = torch.tensor(batch[0], dtype=torch.float64, requires_grad=True)
    current_term(single_head(logits, torch.tensor([3, 0])), torch.tensor(batch[1])).backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, [1, 2, 4]] == 0).all()
    assert logits.grad.sum(1).abs().max() < 1e-9  # softmax gradients of a row sum up to zero


def test_single_head_leaves_its_argument_alone_and_keeps_the_tasks_logits():
    logits = torch.arange(6.0).reshape(2, 3)
    masked = single_head(logits, torch.tensor([2]))
    assert torch.equal(logits, torch.arange(6.0).reshape(2, 3))
    assert masked.tolist() == [[-math.inf, -math.inf, 2.0], [-math.inf, -math.inf, 5.0]]


def test_stored_logits_get_no_gradient_and_the_models_do():
    now = torch.zeros(2, 3, requires_grad=True)
    draw_terms("der", [(now, torch.tensor([0, 1]), torch.ones(2, 3))], 0.6, 0.0).backward()
    assert np.allclose(now.grad, -0.2)  # 0.6 * d/dz (z - 1)^2 / 6 at z = 0


def test_number_of_buffer_draws_by_method():
    draws = {"sgd": 0, "joint": 0, "ewc_on": 0, "lwf": 0, "agem": 1, "icarl": 1, "fdr": 1, "er": 1, "der": 1, "derpp": 2}
    assert {name: find_method(name).draws for name in OURS if name in draws} == draws
