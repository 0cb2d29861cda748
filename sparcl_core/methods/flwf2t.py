"""FLwF-2T, federated learning without forgetting with two teachers (Usmanova et al. 2021, arXiv:2109.04197).

    alpha CE(f(x), y) + beta D(f, device)(x) + (1 - alpha - beta) D(f, server)(x)
    D(f, g)(x) = mean sum_c -p_c log q_c,   p = softmax(g(x)_old / T),  q = softmax(f(x)_old / T)

x, y: the current batch; device: the device's own model as it had trained it last in the task before; server: the model that it was sent for
this round; old: the classes of the tasks before. In the first task there is CE alone.

Differences: alpha and beta are `1 - client_weight - server_weight` and `client_weight`; the paper finds them by a grid search, ours are no
result of one. The released code takes D as a mean over classes too, a factor of its size in the weights. Its exemplars are left out.

A device keeps two models: the teacher, and the one that it trained last, which becomes the teacher when it hears of the next task.
"""

from dataclasses import dataclass, replace

from sparcl_core.config import LearnerConfig
from sparcl_core.costs.flops import Passes
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.given import Border, Running
from sparcl_core.methods.lwf import TEACHER, distillation
from sparcl_core.methods.seen import SEEN, seen_after
from sparcl_core.sparsity.packed import pack, unpack

LAST = "last/"


@dataclass(frozen=True)
class FLwF2TConfig(LearnerConfig):
    """client_weight, server_weight: of what the two teachers say; cross-entropy has the rest. softmax_temp: T, their temperature."""

    client_weight: float = 0.25
    server_weight: float = 0.25
    softmax_temp: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        if min(self.client_weight, self.server_weight) < 0 or not self.client_weight + self.server_weight < 1:
            raise ValueError(
                f"client_weight is {self.client_weight}, server_weight {self.server_weight}: shares that are not negative and leave "
                f"something for cross-entropy, so below 1 together"
            )
        if not 0 < self.softmax_temp < float("inf"):
            raise ValueError(f"softmax_temp is {self.softmax_temp}: a temperature is above 0 and finite")


class FLwF2T(LearningMethod):
    name = "flwf2t"
    Config = FLwF2TConfig
    teachers = 2
    needs_server = True

    def end_task(self, border: Border):
        own = {TEACHER + name.removeprefix(LAST): value for name, value in border.memory.arrays.items() if name.startswith(LAST)}
        arrays = own | {SEEN: seen_after(border)} if own else border.memory.arrays
        return replace(border.memory, arrays=arrays), Passes()

    def prepare(self, running: Running):
        """The two teachers, the device's and the server's, and the old classes; None in the first task."""
        arrays = running.memory.arrays
        if SEEN not in arrays:
            return None
        import torch

        device = running.freeze(*unpack(arrays, running.network.layout.shapes, TEACHER))
        return device, running.freeze(running.state, running.masks), torch.from_numpy(arrays[SEEN].copy())

    def current_term(self, running, batch, logits, seen):
        loss = super().current_term(running, batch, logits, seen)
        if running.prepared is None:
            return loss
        device, server, old = running.prepared
        beta, gamma, temperature = self.config.client_weight, self.config.server_weight, self.config.softmax_temp
        of_device, of_server = (distillation(logits[:, old], teacher(batch.x)[:, old], temperature) for teacher in (device, server))
        return (1 - beta - gamma) * loss + beta * of_device + gamma * of_server

    def end_session(self, running: Running):
        others = {name: value for name, value in running.memory.arrays.items() if not name.startswith(LAST)}
        return others | pack(running.network.read(), running.masks, LAST)

    def step_passes(self, current, drawn, arrays=None):
        has_teachers = arrays is None or SEEN in arrays
        return Passes(current, 0 * drawn, self.teachers * current * has_teachers)

    def arrays_bytes(self, model, active, *, buffered, classes):
        return 2 * model.packed_bytes(active) + classes
