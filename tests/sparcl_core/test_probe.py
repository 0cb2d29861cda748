"""What is noted of a model, and that nobody notices."""

import pytest
import torch
from torch import nn

from sparcl_core.probe import look_through


def noted(model: nn.Module, *kinds: type) -> list[tuple]:
    """Of each module: its name, and the shapes of what it got and gave."""
    found, names = [], {module: name for name, module in model.named_modules()}
    look_through(model, (3, 4, 4), kinds, lambda module, got, gave: found.append((names[module], tuple(got.shape), tuple(gave.shape))))
    return found


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 2))


def test_modules_of_these_kinds_are_noted_as_they_run(model):
    assert noted(model, nn.Conv2d, nn.Linear) == [("0", (1, 3, 4, 4), (1, 5, 2, 2)), ("3", (1, 20), (1, 2))]


def test_the_input_is_one_sample_of_zeros_of_the_models_type(model):
    seen = []
    look_through(model.double(), (3, 4, 4), (nn.Conv2d,), lambda module, got, gave: seen.append(got))
    (zeros,) = seen
    assert zeros.dtype == torch.float64 and not zeros.any() and not zeros.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(model, training):
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    noted(model, nn.Conv2d)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # running statistics too
    assert model.training == training and not any(module._forward_hooks for module in model.modules())


def test_hooks_go_even_if_the_model_fails(model):
    model[3] = nn.Linear(21, 2)
    with pytest.raises(RuntimeError):
        noted(model, nn.Conv2d)
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_without_such_a_module_nothing_is_run():
    def fail(*_):
        pytest.fail("it was run")

    model = nn.Identity()
    model.forward = fail
    assert noted(model, nn.Conv2d) == []
