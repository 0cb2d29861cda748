"""Names that a setting can have are known wherever something is done about them, so that a new one is not forgotten in silence."""

import importlib
from typing import get_args, get_type_hints

import pytest
import tiny_learning

from server.fleet.availability import KINDS, AvailabilityConfig, make_availability
from simulations.config.data import DATA, STREAMS
from simulations.config.largest import least_weights
from simulations.data.published import PUBLISHED
from simulations.data.reading import READERS
from sparcl_core.config import MODELS, ModelConfig
from sparcl_core.networks.models import build_model


def choices(config: type, key: str) -> set[str]:
    return set(get_args(get_type_hints(config)[key]))


@pytest.mark.parametrize("name", DATA.ours)
def test_every_data_set_has_a_source(name):
    assert callable(DATA.find(name))


@pytest.mark.parametrize("path", READERS.values())
def test_every_kind_of_files_has_a_reader(path):
    module, _, name = path.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_every_benchmark_says_what_it_is_and_what_stream_it_is():
    assert set(PUBLISHED) == set(STREAMS) <= set(DATA.ours)


def test_every_model_stands_in_the_docstring_and_in_the_tests():
    assert set(MODELS.ours) == set(tiny_learning.MODELS)
    assert all(f"`{name}`" in ModelConfig.__doc__ for name in MODELS.ours)


@pytest.mark.parametrize("name", sorted(MODELS.ours))
def test_every_model_is_built_and_bounded(name):
    config = tiny_learning.MODELS[name]
    model = build_model(config, (3, 8, 8), 10)
    assert 0 < least_weights(config) <= sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", [kind for kind in KINDS.ours if kind != "trace"])
def test_every_kind_has_a_rule_of_its_own(kind):
    made = make_availability(AvailabilityConfig(kind=kind), 3, seed=0)
    assert type(made).__name__.lower() == kind
