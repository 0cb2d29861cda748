"""pfl-research's federated averaging, as small as its documentation has it; started by torchrun with one process per core.

`python -m torch.distributed.run --standalone --nproc-per-node CORES -m benchmarks.engine.with_pfl ROUNDS`. The first process prints JSON.
"""

import json
import sys
import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy

from benchmarks.engine import work


class Net(work.Net):
    """The model with the two methods that pfl asks for."""

    def loss(self, x, y):
        return cross_entropy(self(x), y)

    def metrics(self, x, y):
        return {"loss": Weighted(float(cross_entropy(self(x), y, reduction="sum").detach()), len(y))}


class Clock(TrainingProcessCallback):
    """Notes when a central iteration is over: the model has its update."""

    def __init__(self):
        self.times: list[float] = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.times.append(time.perf_counter())
        return False, Metrics()


def main(rounds: int) -> None:
    initial = work.build().state_dict()
    module = Net()
    module.load_state_dict(initial)
    np.random.seed(work.SEED)  # noqa: NPY002  pfl draws its seeds from here, and they must be the same in all processes
    x, y = work.data()
    sampler = get_user_sampler("minimize_reuse", list(range(work.DEVICES)))
    dataset = FederatedDataset(lambda user: PyTorchTensorDataset([x[user], y[user]], user_id=str(user)), sampler)
    model = PyTorchModel(module, torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0))
    clock = Clock()
    # An iteration whose number is a multiple of `evaluation_frequency` evaluates on the users: the first, which is not counted.
    params = NNAlgorithmParams(
        central_num_iterations=rounds + 1, evaluation_frequency=1_000_000, train_cohort_size=work.DEVICES, val_cohort_size=0
    )
    FederatedAveraging().run(
        params,
        SimulatedBackend(training_data=dataset, val_data=dataset),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=work.LR, local_batch_size=work.BATCH),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        print(json.dumps(work.measured(np.diff(clock.times).tolist())), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
