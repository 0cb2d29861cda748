"""Streams, methods and learners small enough that a test trains in milliseconds."""

import copy
import random
from dataclasses import replace

import numpy as np
import torch

from sparcl_core.config import LearnerConfig, MethodConfig
from sparcl_core.inputs import InputSpec
from sparcl_core.learner import Learner
from sparcl_core.methods.registry import OURS, find_method
from sparcl_core.networks.models import ModelConfig
from sparcl_core.replay.memory import Memory, empty
from sparcl_core.solo import start_model
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.tdm import TDMConfig
from sparcl_core.task_data import TaskData
from sparcl_core.training.session import Session

SEED = 7
EPOCHS = 10  # K: DDR then has four stages, before epochs 1, 2, 3 and 4
INPUTS = InputSpec((1, 4, 4), 4, mean=(128.0,), std=(64.0,))
MODELS = {
    "mlp": ModelConfig("mlp", width=16),
    "cnn": ModelConfig("cnn", width=8, hidden=12),
    "resnet18": ModelConfig("resnet18", width=8),
    "mobilenetv2": ModelConfig("mobilenetv2", width=8),
    "mobilenetv3-small": ModelConfig("mobilenetv3-small", width=8),
    "efficientnet-b0": ModelConfig("efficientnet-b0", width=8),
    "vit-tiny": ModelConfig("vit-tiny", width=16),
}


def tiny_method(model: str = "cnn", sparsity: float = 0.75, dtype: str = "float32", **learner) -> MethodConfig:
    """SparCL on a tiny backbone; keywords go to the learner, mechanisms are swapped in with `dataclasses.replace`."""
    settings = {"batch_size": 8, "buffer_size": 12, "lr": 0.05} | learner
    return MethodConfig(replace(MODELS[model], dtype=dtype), LearnerConfig(**settings), TDMConfig(), DDRConfig(), DGMConfig(), sparsity)


def with_learner(method: MethodConfig, name: str, **own) -> MethodConfig:
    """`method` with another learning method and its settings, which are those of before where they are not given."""
    return replace(method, learner=find_method(name).Config(**vars(method.learner) | {"method": name} | own))


def without(method: MethodConfig, *mechanisms: str) -> MethodConfig:
    """`method` with the named mechanisms (tdm, ddr, dgm) switched off."""
    return replace(method, **{name: replace(getattr(method, name), enabled=False) for name in mechanisms})


def tiny_tasks(tasks: int = 2, samples: int = 40) -> list[TaskData]:
    """Two classes a task; class c is noise around a bright row c, so that it can be learned."""
    rng = np.random.default_rng(1)
    stream = []
    for task in range(tasks):
        y = np.arange(samples, dtype=np.int64) % 2 + 2 * task
        x = rng.integers(0, 120, size=(samples, 1, 4, 4)).astype(np.uint8)
        x[np.arange(samples), 0, y] += 100
        stream.append(TaskData(x, y, (2 * task, 2 * task + 1), task))
    return stream


def new_memory(learner: Learner, capacity: int = 12) -> Memory:
    return empty(capacity, learner.inputs.shape, learner.inputs.num_classes, str(learner.dtype).removeprefix("torch."))


def start(method: MethodConfig, capacity: int = 12, epochs: int = EPOCHS, seed: int = SEED):
    """A learner, fresh weights, masks and an empty memory."""
    learner = Learner(method, INPUTS, epochs, seed)
    state, masks = start_model(learner, method, seed)
    return learner, state, masks, new_memory(learner, capacity)


def train_tasks(method: MethodConfig, tasks: list[TaskData], epochs: int, capacity: int = 12) -> list[Session]:
    """One session of `epochs` epochs per task, one after another, masks fixed."""
    learner, state, masks, memory = start(method, capacity)
    sessions = []
    for task in tasks:
        session = learner.train(state, masks, task, memory.in_task(len(task.y)), epochs=epochs, device=0)
        state, memory = session.state, session.memory
        sessions.append(session)
    return sessions


def global_generators() -> tuple:
    """The states that nothing of ours may move: Python's, NumPy's and torch's process-wide generators."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


# methods that run in any setting, given what they need; FedWeIT wants a dense network and a server
ANYWHERE = tuple(name for name in OURS if not find_method(name).moves_weights)
NEEDS = dict.fromkeys(("packnet", "lps"), {"masks.scheme": "packnet", "stream.setting": "task-il", "sparsity": "0.5"})


def needs(name: str) -> tuple[str, ...]:
    """Overrides that a method needs to run at all."""
    return tuple(f"{key}={value}" for key, value in NEEDS.get(name, {}).items())


def frozen(value):
    """A deep copy, to see later whether `value` was touched."""
    return copy.deepcopy(value)


def assert_same(left, right) -> None:
    """Bit-equality of two values made of dataclasses, dicts, arrays and numbers."""
    assert type(left) is type(right)
    if hasattr(left, "__dataclass_fields__"):
        left, right = vars(left), vars(right)
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype and left.shape == right.shape
        assert left.tobytes() == right.tobytes()
    else:
        assert left == right
