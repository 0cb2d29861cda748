"""From an experiment to its parts: data, streams, the two Flower apps."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from client.config import ClientConfig
from client.streams.stream import Streams
from server.fleet.roster import Roster
from server.global_model.model import GlobalModel
from server.global_model.settings import ModelSettings, Start
from server.rounds.federation import Federation
from server.strategy import SparCLStrategy
from simulations.config.errors import ConfigError
from simulations.config.experiment import Experiment
from simulations.config.largest import WEIGHTS
from simulations.data.partition import make_streams
from simulations.data.raw import Dataset
from simulations.data.sources import bound, load_data
from simulations.data.task_order import check_batches, check_tested
from simulations.evaluate import Evaluator
from simulations.fleet.build import make_cohorts
from simulations.fleet.mix import Fleet, make_hardware
from sparcl_core.evaluation import TestData
from sparcl_core.kernels.choice import able_layers, resolve
from sparcl_core.learner import Learner
from sparcl_core.methods.registry import make_method
from sparcl_core.networks.check import check_model
from sparcl_core.networks.models import build_model, has_batch_statistics, smallest_batch
from sparcl_core.networks.sparse_rule import layers_told, sparse_names, why_dense
from sparcl_core.solo import dense_weights, start_model

WELL_KNOWN = ("mlp", "cnn", "resnet18")  # models of which all hidden layers are sparse


@dataclass(frozen=True)
class World:
    """What a run is made of."""

    experiment: Experiment
    data: Dataset
    streams: Streams

    @property
    def client_config(self) -> ClientConfig:
        e = self.experiment
        federation = e.federation
        return ClientConfig(
            method=e.method,
            inputs=self.data.inputs,
            task_epochs=federation.task_epochs,
            seed=e.seed,
            wire=e.wire,
            mask=federation.mask,
            batchnorm=federation.batchnorm,
            chunks=self.streams.chunks,
            change=e.change if e.stream.boundaries == "detected" else None,
        )

    @cached_property
    def fleet(self) -> Fleet:
        """The devices' hardware, and which of its figures are assumptions. Raises ConfigError if a profile or the fleet's file is wrong."""
        e = self.experiment
        return make_hardware(e.fleet, e.profile, len(self.streams), e.seed)

    @property
    def app_args(self) -> tuple:
        """Arguments of `client_app.client_app`; its arrays are the large part, and every worker of a node maps the same copy."""
        common = self.client_config, self.streams
        return common if self.own_models is None else (*common, self.test_data)

    @property
    def own_models(self) -> int | None:
        """So many devices' own models are evaluated, 0: all; None: the server's is."""
        return self.experiment.evaluate_devices if self.experiment.evaluate_on == "devices" else None

    @property
    def test_data(self) -> TestData:
        """What models are evaluated on."""
        raw, streams = self.data.raw, self.streams
        return TestData(raw.test_x, raw.test_y, streams.classes, streams.domains)


def bind_data(experiment: Experiment) -> Experiment:
    """`experiment` with the digest of the data that is there: a run that is repeated or resumed with other data is refused.

    Raises:
        ConfigError: if the data is not there, or not what the settings say.
    """
    return replace(experiment, data=bound(experiment.data, experiment.seed))


def choose_kernels(experiment: Experiment, data: Dataset | None = None, tell: Callable[[str], None] = lambda line: None) -> Experiment:
    """`experiment` with the choice made which layers run on the sparse kernels: a run's settings, so that it can be repeated.

    Layers are timed at the largest batch that a device of this fleet can have.

    Args:
        data: if it is loaded already.
        tell: what is called with a line on which layers are sparse, where that is not known from the model's name.

    Raises:
        ValueError: if a model that is not of ours cannot be trained, or the weights to start from do not fit: nothing has begun yet.
    """
    if not experiment.model.is_ours:
        data = data or load_data(experiment.data, experiment.seed)
        _check_own(experiment, data)
    if experiment.model.weights:
        data = data or load_data(experiment.data, experiment.seed)
        start_model(Learner(experiment.method, data.inputs, 1, experiment.seed), experiment.method, experiment.seed)
    if not experiment.sparsity or experiment.kernels.backend:
        return experiment
    data, method = data or load_data(experiment.data, experiment.seed), experiment.method
    inputs, model = data.inputs, _model(experiment, data)
    is_joint = method.learner.joint_forward and not has_batch_statistics(model)
    batch = min(method.learner.batch_size, _most_samples(experiment, data))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as every device
    try:
        names = sparse_names(model, method.model, inputs.shape)
        per_forward = make_method(method.learner).samples_per_forward(batch, is_joint)
        chosen = resolve(method.kernels, model, names, inputs.shape, per_forward, 1 - method.first_sparsity)
        if experiment.model.name not in WELL_KNOWN:
            tell(f"{layers_told(experiment.model, model, inputs.shape)} (`sparcl layers` names them)")
    finally:
        torch.set_num_threads(threads)
    return replace(experiment, kernels=chosen)


def show_layers(experiment: Experiment) -> list[tuple[str, str, str]]:
    """Name, shape and state of the weight of each layer: sparse on the kernels or masked, or dense and why.

    Raises:
        ConfigError: if data or model are not what the settings say.
    """
    data = load_data(experiment.data, experiment.seed)
    if not experiment.model.is_ours:
        _check_own(experiment, data)
    model = _model(experiment, data)
    shapes = {name: "x".join(map(str, value.shape)) for name, value in model.named_parameters()}
    found = why_dense(experiment.model, model, data.inputs.shape)
    able = able_layers(model, tuple(name for name, reason in found.items() if not reason))
    return [
        (name, shapes.get(name, ""), f"dense: {reason}" if reason else "sparse" if name in able else "sparse, masked")
        for name, reason in found.items()
    ]


def _check_own(experiment: Experiment, data: Dataset) -> None:
    check_model(experiment.method, data.inputs)
    if (weights := sum(p.numel() for p in _model(experiment, data).parameters())) > WEIGHTS:
        raise ConfigError(f"model.name is {experiment.model.name!r}, which has {weights:,} weights: {WEIGHTS:,} is the most")


def _most_samples(experiment: Experiment, data: Dataset) -> int:
    """A number of samples that some device has in a step: all that any has, or `learner.batch_size` if that many are easily seen."""
    stream, wanted = experiment.stream, experiment.learner.batch_size
    tasks = 1 if stream.setting == "domain-il" else stream.tasks
    pieces = experiment.federation.rounds_per_task if stream.online else 1
    mean = stream.samples if stream.partition == "drawn" else len(data.raw.train_y) / (tasks * stream.devices)
    return wanted if mean // pieces >= wanted else int(_streams(experiment, data).sizes.max())


def make_world(experiment: Experiment) -> World:
    """Load the data and cut it into streams.

    Raises:
        ConfigError: if the data or the streams are not what the settings need, or the model cannot be trained on them.
    """
    data = load_data(experiment.data, experiment.seed)
    streams = _streams(experiment, data)
    check_tested(streams.classes, data.raw.test_y)
    if (least := smallest_batch(_model(experiment, data), data.inputs.shape)) > 1:
        check_batches(streams, least)
    return World(experiment, data, streams)


def _streams(experiment: Experiment, data: Dataset) -> Streams:
    so_far = make_method(experiment.learner).keeps_data
    return make_streams(experiment.stream, data, experiment.seed, experiment.federation.rounds_per_task, so_far=so_far)


def _model(experiment: Experiment, data: Dataset) -> nn.Module:
    return build_model(experiment.method.model, data.inputs.shape, data.num_classes)


def make_roster(streams: Streams) -> Roster:
    """The fleet as the server knows it without asking: device d has node id d + 1 on our engines (`EngineGrid`)."""
    devices = np.arange(len(streams), dtype=np.int64)
    return Roster(devices, (devices + 1).astype(np.uint64), streams.sizes)


def make_evaluator(world: World) -> Evaluator:
    """Accuracy of a model on the world's test data."""
    e = world.experiment
    return Evaluator(Learner(e.method, world.data.inputs, 1, e.seed), world.test_data)


def make_strategy(world: World) -> SparCLStrategy:
    """The server's strategy with a fresh model."""
    e = world.experiment
    learner = Learner(e.method, world.data.inputs, e.federation.task_epochs, e.seed)
    weights, masks = start_model(learner, e.method, e.seed)
    settings = ModelSettings(
        method=e.method,
        federation=e.federation,
        wire=e.wire,
        aggregation=e.aggregation,
        optimizer=e.server_optimizer,
        seed=e.seed,
        follows_reports=e.stream.boundaries == "detected",
    )
    dense = dense_weights(learner, e.method, e.seed) if e.method.asks_first else None
    start = Start(layout=learner.layout, classifier=learner.classifier, weights=weights, masks=masks, dense=dense)
    cohorts = make_cohorts(e, world.fleet.hardware, world.streams, learner)
    model = GlobalModel(settings, start, cohorts.tiers.sparsities)
    return SparCLStrategy(Federation(model, cohorts, e.clock))
