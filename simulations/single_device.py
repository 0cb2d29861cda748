"""`sparcl train-one`: one device with all the data. No federation, no Flower, no Ray: the paper's own setting."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from client.streams.stream import Streams
from simulations.checkpoints.lone_device import LonePoint, SoFar, one_more
from simulations.config.errors import ConfigError
from simulations.config.experiment import Experiment
from simulations.data.partition import make_streams
from simulations.data.raw import Dataset
from simulations.data.sources import load_data
from simulations.data.task_order import check_tested
from simulations.evaluate import Evaluator
from simulations.fleet.profiles import load_profile
from sparcl_core.costs.device import Cost, compute_cost
from sparcl_core.costs.memory import activation_bytes
from sparcl_core.evaluation import TestData
from sparcl_core.learner import Learner
from sparcl_core.methods.registry import make_method
from sparcl_core.metrics import continual
from sparcl_core.solo import Progress, start_model, train_stream


@dataclass(frozen=True, kw_only=True)
class SoloResult:
    """What a single device's run leaves behind.

    Attributes:
        progress: final weights, masks and buffer.
        accuracy: [2, T, T], Class-IL and Task-IL matrices, rows after each task.
        untrained: [2, T], accuracy of the fresh model.
        cost, dense_cost: what it paid, and what the dense twin would have paid for the same schedule.
        peak_memory: the most bytes that a session took, by formula (`sparcl_core.costs.memory`).
    """

    experiment: Experiment
    progress: Progress
    accuracy: np.ndarray
    untrained: np.ndarray
    cost: Cost
    dense_cost: Cost
    peak_memory: int

    def scores(self, row: int) -> continual.Scores:
        """Figures of Class-IL (row 0) or Task-IL (row 1)."""
        return continual.scores(self.accuracy[row], self.untrained[row])


def train_one(experiment: Experiment, observe: Callable[[Progress, np.ndarray | None], None], point: LonePoint | None = None) -> SoloResult:
    """Train one device on all data of every task in order.

    Args:
        observe: told of every session, with the accuracy [2, T] at the end of a task (else None).
        point: where the run is kept behind every session, and gone on with if it was interrupted; the result is the same to the bit.

    Raises:
        ConfigError: if the data is not what the settings need, or training diverges.
    """
    data = load_data(experiment.data, experiment.seed)
    method, epochs, seed = experiment.method, experiment.federation.task_epochs, experiment.seed
    streams = _whole(experiment, data)
    check_tested(streams.classes, data.raw.test_y)
    tasks = [streams[0].task(number) for number in range(experiment.stream.tasks)]
    learner = Learner(method, data.inputs, epochs, seed)
    _check_buffer(learner, streams)
    evaluate = Evaluator(learner, TestData(data.raw.test_x, data.raw.test_y, streams.classes, streams.domains))
    so_far = point.load() if point else None

    def session_done(progress: Progress) -> None:
        nonlocal so_far
        so_far = one_more(so_far, progress, fresh)
        accuracy = None
        if progress.epoch == epochs:
            accuracy = evaluate(progress.state, learner.method.owners(progress.memory), memory=progress.memory).accuracy
            so_far = replace(so_far, accuracy=np.concatenate([so_far.accuracy, accuracy[None]]))
        if point:
            point.save(so_far)
        observe(progress, accuracy)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fresh = so_far.untrained if so_far else evaluate(start_model(learner, method, seed)[0]).accuracy
        done = so_far.progress if so_far else None
        train_stream(method, data.inputs, tasks, task_epochs=epochs, seed=seed, observe=session_done, done=done)
    except FloatingPointError as error:
        raise ConfigError(str(error)) from error
    finally:
        torch.set_num_threads(threads)
    return _result(experiment, learner, so_far)


def _check_buffer(learner: Learner, streams: Streams) -> None:
    """Raises ConfigError if the device's buffer has too few places for what its method keeps of each class."""
    places, classes = learner.method.buffer_capacity(sum(streams[0].sizes)), len(set().union(*streams.classes))
    if places < (least := learner.method.least_buffer(classes)):
        raise ConfigError(
            f"the device's buffer has {places} places, and learner.method {learner.config.method!r} needs {least} for its {classes} "
            f"classes; set learner.buffer_size to {least} or more"
        )


def _result(experiment: Experiment, learner: Learner, so_far: SoFar) -> SoloResult:
    profile, _ = load_profile(experiment.profile)
    paid = {"moved_per_sample": activation_bytes(learner.model, learner.inputs.shape), "layer_passes": learner.layer_passes}
    return SoloResult(
        experiment=experiment,
        progress=so_far.progress,
        accuracy=so_far.accuracy.swapaxes(0, 1),
        untrained=so_far.untrained,
        cost=compute_cost(profile, so_far.counted.flops, is_sparse=experiment.method.is_sparse, **paid),
        dense_cost=compute_cost(profile, so_far.counted.dense_flops, is_sparse=False, **paid),
        peak_memory=so_far.peak_memory,
    )


def _whole(experiment: Experiment, data: Dataset) -> Streams:
    """The stream of a single device that has all data of every task, once."""
    alone = {"devices": 1, "partition": "iid", "samples": 0, "online": False, "order": "same", "cycles": 1, "new_classes_share": 1.0}
    so_far = make_method(experiment.learner).keeps_data
    return make_streams(replace(experiment.stream, **alone), data, experiment.seed, so_far=so_far)
