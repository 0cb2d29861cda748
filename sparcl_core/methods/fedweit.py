"""FedWeIT, weighted inter-client transfer (Yoon et al. 2021, "Federated Continual Learning with Weighted Inter-client Transfer", ICML,
arXiv:2003.03196).

    theta_t = B * m_t + A_t + sum_j alpha_j A_j
    CE(f(x; theta_t), y) + l1 (||m_t||_1 + sum_{i<=t} ||A_i||_1) + l2 sum_{i<t} ||dB * m_i + dA_i||^2

B: the base, which the server has sent; m_t: a mask of the task, one number for each output channel; A_t: what the task adds; A_j: what
tasks of other devices have added, each with its weight alpha_j; dB, dA_i: how far they have moved since the round began: earlier tasks give
way to the base, so that their theta stays. B, m, A and alpha are learned; a device sends B * m_t as its model, and A_t beside it. The
server averages the former, keeps the A of `knowledge` devices, and sends these to each device with the first round of a task.

Of each weight of two and more dimensions; biases and normalisations are learned and averaged as they are. Every task has a network of its
own, so that a test must say which task an image is of (task-il), and devices' own models are evaluated.

Differences: the L1 terms are taken by soft thresholds behind each step (proximal gradient), which leave exact zeros where the released
code cuts off small values. m is plain and begins at 1, without a sigmoid. Whose A are kept goes by the number of the device, evenly spread,
and a device's own may be among them; where a task ends, sum_j alpha_j A_j is folded into one array of that task.
"""

from dataclasses import dataclass, replace

import numpy as np

from sparcl_core.config import LearnerConfig, weight_of_a_loss
from sparcl_core.costs.flops import Passes
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.decomposed import Decomposed
from sparcl_core.methods.given import Running
from sparcl_core.sparsity.packed import pack, unpack

TASKS = "tasks"  # among the arrays of a device: [t, classes] bool, the classes of each task that has begun
ALPHA = "alpha"  # [knowledge, weights that are decomposed]


@dataclass(frozen=True)
class FedWeITConfig(LearnerConfig):
    """l1, l2: weights of sparsity and of what earlier tasks keep. knowledge: devices whose A is sent to all."""

    l1: float = 0.001
    l2: float = 1.0
    knowledge: int = 3

    def __post_init__(self):
        super().__post_init__()
        weight_of_a_loss("l1", self.l1)
        weight_of_a_loss("l2", self.l2)
        if self.lr * self.l2 > 0.25:
            raise ValueError(
                f"l2 is {self.l2:g}: with lr {self.lr:g} steps would swing about what earlier tasks keep, and diverge; take at most "
                f"{0.25 / self.lr:g}"
            )
        if not 0 <= self.knowledge <= 1000:
            raise ValueError(f"knowledge is {self.knowledge}: a number of devices up to 1000; 0 leaves transfer between devices out")


class FedWeIT(LearningMethod):
    name = "fedweit"
    Config = FedWeITConfig
    needs_server = personal = needs_task_ids = moves_weights = once_a_task = True

    # -- on the wire

    def shapes_up(self, model, classifier):
        return {f"adaptive/{name}": shape for name, shape in _decomposed(model.shapes).items()}

    def shapes_down(self, model, classifier):
        if not self.config.knowledge:
            return {}
        return {f"others/{name}": (self.config.knowledge, *shape) for name, shape in _decomposed(model.shapes).items()}

    def upload(self, running: Running):
        return {f"adaptive/{name}": part.own.numpy() for name, part in running.prepared.items()}

    def combine(self, kept, uploads, fleet):
        count = min(self.config.knowledge, len(uploads))
        chosen = [uploads[place] for place in np.linspace(0, len(uploads) - 1, count).round().astype(int).tolist()]
        found = {}
        for name, value in kept.items():
            new = [one.arrays[name.replace("others/", "adaptive/", 1)] for one in chosen]
            found[name] = np.concatenate([np.stack(new), value[count:]]) if new else value
        return found

    # -- where a task begins and ends

    def begin_task(self, border):
        shapes, classes = _decomposed(border.network.layout.shapes), border.network.inputs.num_classes
        arrays = {name: value for name, value in border.memory.arrays.items() if name != ALPHA and not name.startswith("others/")}
        before = arrays.get(TASKS, np.zeros((0, classes), bool))
        task = len(before)
        of_task = np.zeros((1, classes), bool)
        of_task[0, list(border.data.classes)] = True
        arrays[TASKS] = np.concatenate([before, of_task])
        arrays |= {f"mask/{task}/{name}": np.ones(shape[0], border.state[name].dtype) for name, shape in shapes.items()}
        arrays |= _packed({name: np.zeros_like(border.state[name]) for name in shapes}, f"own/{task}/")
        return replace(border.memory, arrays=arrays), Passes()

    def end_task(self, border):
        """What the task has taken of others is folded into an array of its own."""
        arrays, shapes = border.memory.arrays, _decomposed(border.network.layout.shapes)
        if ALPHA not in arrays:
            return border.memory, Passes()
        task = len(arrays[TASKS]) - 1
        others, alpha = self._others(arrays, shapes), arrays[ALPHA]
        folded = {name: np.tensordot(alpha[:, place], others[name], 1) for place, name in enumerate(shapes)}
        return replace(border.memory, arrays=arrays | _packed(folded, f"attended/{task}/")), Passes()

    # -- a session

    def prepare(self, running: Running) -> dict[str, Decomposed]:
        """The parts of each weight; the network has theta from here on."""
        import torch

        arrays, shapes = running.memory.arrays, _decomposed(running.network.layout.shapes)
        task = len(arrays[TASKS]) - 1
        others, alpha = self._attending(running, shapes)
        own = [_unpacked(arrays, shapes, f"own/{number}/") for number in range(task + 1)]
        parts = {}
        for place, name in enumerate(shapes):
            before = [(_tensor(arrays[f"mask/{number}/{name}"]), _tensor(own[number][name])) for number in range(task)]
            parts[name] = Decomposed(
                _tensor(running.state[name]), _tensor(arrays[f"mask/{task}/{name}"]), _tensor(own[task][name]),
                others=_tensor(others[name]), alpha=_tensor(alpha[:, place]), before=before,
            )  # fmt: skip
            with torch.no_grad():
                running.network.parameters[name].copy_(parts[name].theta)
        return parts

    def gradients(self, running, current, drawn):
        """Those of theta move the parts; what is left is of weights that are not decomposed."""
        import torch

        config, found = self.config, super().gradients(running, current, drawn)
        with torch.no_grad():
            for (name, parameter), gradient in zip(running.network.parameters.items(), found, strict=True):
                if name in running.prepared:
                    part = running.prepared[name]
                    part.step(gradient, lr=config.lr, l1=config.l1, l2=config.l2)
                    parameter.copy_(part.theta)
                    gradient.zero_()
        return found

    def settle(self, running):
        import torch

        with torch.no_grad():
            for name, part in running.prepared.items():
                running.network.parameters[name].copy_(part.sent)

    def end_session(self, running: Running):
        arrays, parts = running.memory.arrays, running.prepared
        task = len(arrays[TASKS]) - 1
        found = dict(arrays) | {f"mask/{task}/{name}": part.mask.numpy() for name, part in parts.items()}
        found |= _packed({name: part.own.numpy() for name, part in parts.items()}, f"own/{task}/")
        for number in range(task):
            found |= _packed({name: part.before[number][1].numpy() for name, part in parts.items()}, f"own/{number}/")
        found[ALPHA] = np.stack([part.alpha.numpy() for part in parts.values()], axis=1)
        for slot in range(self.config.knowledge):
            found |= _packed({name: part.others[slot].numpy() for name, part in parts.items()}, f"others/{slot}/")
        return found

    # -- at a test

    def scorer(self, network, memory, received):
        """Each class by the network of its task; classes of tasks that the device has not had by the base."""
        if memory is None or TASKS not in memory.arrays:
            return network.model
        arrays, base, tasks = memory.arrays, network.read(), memory.arrays[TASKS]
        states = [self._state(base, arrays, number) for number in range(len(tasks))]

        def score(x):
            found = _through(network, base, x)
            for state, classes in zip(states, tasks, strict=True):
                of_task = _tensor(classes)
                found[:, of_task] = _through(network, state, x)[:, of_task]
            return found

        return score

    # -- what it costs

    def step_flops(self, weights, drawn, arrays=None):
        """A weight takes 2 + 2 k for theta, as many for gradients and steps, two thresholds, and 10 for each earlier task."""
        tasks = 64 if arrays is None else len(arrays.get(TASKS, ())) - 1
        return weights * (8 + 4 * self.config.knowledge + 10 * tasks)

    def arrays_bytes(self, model, active, *, buffered, classes):
        """As if each class were a task, and nothing of A were zero."""
        return (3 * classes + 2 * self.config.knowledge) * model.packed_bytes(model.parameters)

    def _attending(self, running, shapes):
        """A_j [knowledge, ...] of each weight, and alpha [knowledge, weights]: what has come now, zeros before anything has."""
        arrays, count, received = running.memory.arrays, self.config.knowledge, running.received
        dtype = next(iter(running.state.values())).dtype
        if ALPHA in arrays and not received:
            return self._others(arrays, shapes), arrays[ALPHA]
        nothing = {name: np.zeros((count, *shape), dtype) for name, shape in shapes.items()}
        others = {name: received[f"others/{name}"] for name in shapes} if received else nothing
        return others, np.zeros((count, len(shapes)), dtype)

    def _others(self, arrays, shapes):
        slots = [_unpacked(arrays, shapes, f"others/{slot}/") for slot in range(self.config.knowledge)]
        nothing = {name: np.zeros((0, *shape), arrays[ALPHA].dtype) for name, shape in shapes.items()}
        return {name: np.stack([slot[name] for slot in slots]) if slots else nothing[name] for name in shapes}

    def _state(self, base, arrays, task: int):
        """theta of a task, all tensors of the network."""
        shapes = _decomposed({name: value.shape for name, value in base.items()})
        own = _unpacked(arrays, shapes, f"own/{task}/")
        if task == len(arrays[TASKS]) - 1 and ALPHA in arrays:
            others = self._others(arrays, shapes)
            attended = {name: np.tensordot(arrays[ALPHA][:, place], others[name], 1) for place, name in enumerate(shapes)}
        elif f"attended/{task}/{next(iter(shapes))}" in arrays:
            attended = _unpacked(arrays, shapes, f"attended/{task}/")
        else:
            attended = dict.fromkeys(shapes, 0)
        theta = {}
        for name in shapes:
            mask = arrays[f"mask/{task}/{name}"].reshape(-1, *[1] * (base[name].ndim - 1))
            theta[name] = (base[name] * mask + own[name] + attended[name]).astype(base[name].dtype)
        return base | theta


def _decomposed(shapes) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in shapes.items() if len(shape) >= 2}


def _tensor(array: np.ndarray):
    import torch

    return torch.from_numpy(np.array(array))


def _packed(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """What is not zero, and a bit a place."""
    return pack(tensors, {name: value != 0 for name, value in tensors.items()}, prefix)


def _unpacked(arrays, shapes, prefix: str) -> dict[str, np.ndarray]:
    return unpack(arrays, shapes, prefix)[0]


def _through(network, state, x):
    network.load(state, {})
    network.model.eval()
    return network.model(x).clone()
