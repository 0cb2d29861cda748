"""LwF, learning without forgetting (Li and Hoiem 2016, arXiv:1606.09282).

    CE(f(x), y) + lambda_o * mean sum_c -p_c log q_c,   p = softmax(teacher(x)_old / T),  q = softmax(f(x)_old / T)

x, y: the current batch; the teacher: the model as the last task left it; old: the classes of the tasks before. The paper's Knowledge
Distillation loss (its equations 2 and 3; T = 2, lambda_o = 1 there; mammoth's alpha and softmax_temp).

Difference: the paper records the teacher's answers to a task's data before it begins. Here a device keeps the teacher, whose answers are
those to the very images of a batch, augmented as they are: that costs a forward pass a sample and epoch, counted.
"""

from dataclasses import dataclass, replace

from sparcl_core.config import LearnerConfig, weight_of_a_loss
from sparcl_core.costs.flops import Passes
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.given import Border, Running
from sparcl_core.methods.seen import SEEN, seen_after
from sparcl_core.sparsity.packed import pack, unpack

TEACHER = "teacher/"


@dataclass(frozen=True)
class LwFConfig(LearnerConfig):
    """lambda_o: weight of the distillation. softmax_temp: T, the temperature at which the two are compared."""

    lambda_o: float = 1.0
    softmax_temp: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        weight_of_a_loss("lambda_o", self.lambda_o)
        if not 0 < self.softmax_temp < float("inf"):
            raise ValueError(f"softmax_temp is {self.softmax_temp}: a temperature is above 0 and finite")


class LwF(LearningMethod):
    name = "lwf"
    Config = LwFConfig
    teachers = 1

    def end_task(self, border: Border):
        arrays = pack(border.state, border.masks, TEACHER) | {SEEN: seen_after(border)}
        return replace(border.memory, arrays=arrays), Passes()

    def prepare(self, running: Running):
        """The teacher and the old classes; None in the first task."""
        arrays = running.memory.arrays
        if not arrays:
            return None
        import torch

        old = torch.from_numpy(arrays[SEEN].copy())
        return running.freeze(*unpack(arrays, running.network.layout.shapes, TEACHER)), old

    def current_term(self, running, batch, logits, seen):
        loss = super().current_term(running, batch, logits, seen)
        if running.prepared is None:
            return loss
        teacher, old = running.prepared
        return loss + self.config.lambda_o * distillation(logits[:, old], teacher(batch.x)[:, old], self.config.softmax_temp)

    def arrays_bytes(self, model, active, *, buffered, classes):
        return model.packed_bytes(active) + classes


def distillation(logits, targets, temperature: float):
    """Cross-entropy between the softmax of `targets` and that of `logits` [B, classes], both at `temperature`; a mean over the batch."""
    import torch.nn.functional as F

    return F.cross_entropy(logits / temperature, (targets / temperature).softmax(1))
