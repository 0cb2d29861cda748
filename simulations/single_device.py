"""`sparcl train-one`: one device with all the data. No federation, no Flower, no Ray: the paper's own setting."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from client.streams.stream import Streams
from simulations.config.errors import ConfigError
from simulations.config.experiment import Experiment
from simulations.data.partition import make_streams
from simulations.data.raw import Dataset
from simulations.data.sources import load_data
from simulations.data.task_order import check_tested
from simulations.evaluate import Evaluator
from simulations.fleet.profiles import load_profile
from sparcl_core.costs.device import Cost, compute_cost
from sparcl_core.costs.flops import Counted
from sparcl_core.costs.memory import activation_bytes
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
    """

    experiment: Experiment
    progress: Progress
    accuracy: np.ndarray
    untrained: np.ndarray
    cost: Cost
    dense_cost: Cost

    def scores(self, row: int) -> continual.Scores:
        """Figures of Class-IL (row 0) or Task-IL (row 1)."""
        return continual.scores(self.accuracy[row], self.untrained[row])


def train_one(experiment: Experiment, observe: Callable[[Progress, np.ndarray | None], None]) -> SoloResult:
    """Train one device on all data of every task in order.

    Args:
        observe: told of every session, with the accuracy [2, T] at the end of a task (else None).

    Raises:
        ConfigError: if the data is not what the settings need, or training diverges.
    """
    data = load_data(experiment.data, experiment.seed)
    method, epochs, seed = experiment.method, experiment.federation.task_epochs, experiment.seed
    streams = _whole(experiment, data)
    check_tested(streams.classes, data.raw.test_y)
    tasks = [streams[0].task(number) for number in range(experiment.stream.tasks)]
    profile, _ = load_profile(experiment.profile)
    learner = Learner(method, data.inputs, epochs, seed)
    evaluate = Evaluator(learner, data.raw, streams.classes, streams.domains)
    matrix, counted = [], [Counted()]

    def session_done(progress: Progress) -> None:
        counted.append(Counted(progress.flops, progress.dense_flops))
        accuracy = evaluate(progress.state, progress.memory).accuracy if progress.epoch == epochs else None
        if accuracy is not None:
            matrix.append(accuracy)
        observe(progress, accuracy)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fresh = evaluate(start_model(learner, method, seed)[0]).accuracy
        progress = train_stream(method, data.inputs, tasks, task_epochs=epochs, seed=seed, observe=session_done)
    except FloatingPointError as error:
        raise ConfigError(str(error)) from error
    finally:
        torch.set_num_threads(threads)
    total, moved = sum(counted, Counted()), activation_bytes(learner.model, data.inputs.shape)
    cost = compute_cost(profile, total.flops, is_sparse=method.is_sparse, moved_per_sample=moved, layer_passes=learner.layer_passes)
    dense = compute_cost(profile, total.dense_flops, is_sparse=False, moved_per_sample=moved, layer_passes=learner.layer_passes)
    return SoloResult(
        experiment=experiment, progress=progress, accuracy=np.stack(matrix, axis=1), untrained=fresh, cost=cost, dense_cost=dense
    )


def _whole(experiment: Experiment, data: Dataset) -> Streams:
    """The stream of a single device that has all data of every task, once."""
    alone = {"devices": 1, "partition": "iid", "samples": 0, "online": False, "order": "same", "cycles": 1, "new_classes_share": 1.0}
    so_far = make_method(experiment.learner).keeps_data
    return make_streams(replace(experiment.stream, **alone), data, experiment.seed, so_far=so_far)
