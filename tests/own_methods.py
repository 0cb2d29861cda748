"""Learning methods of a user's own, as the tests take them: `learner.method = "own_methods:Distilled"`."""

from dataclasses import dataclass, replace

from sparcl_core.config import LearnerConfig
from sparcl_core.costs.flops import Passes
from sparcl_core.methods.base import LearningMethod
from sparcl_core.sparsity.packed import pack, unpack


class Distilled(LearningMethod):
    """Distillation on current data from the model as the last task left it, the teacher (Li and Hoiem 2016, arXiv:1606.09282).

        CE(f(x), y) + alpha * T^2 * KL(softmax(teacher(x) / T) || softmax(f(x) / T))

    A device keeps the weights of its teacher. In the first task it has none.
    """

    teachers = 1

    @dataclass(frozen=True)
    class Config(LearnerConfig):
        """softmax_temp: T, the temperature at which the two are compared."""

        softmax_temp: float = 2.0

        def __post_init__(self):
            super().__post_init__()
            if not self.softmax_temp > 0:
                raise ValueError(f"softmax_temp is {self.softmax_temp}: a temperature must be above 0")

    def end_task(self, border):
        return replace(border.memory, arrays=pack(border.state, border.masks)), Passes()

    def prepare(self, running):
        arrays = running.memory.arrays
        return running.freeze(*unpack(arrays, running.network.layout.shapes)) if arrays else None

    def current_term(self, running, batch, logits, seen):
        loss, teacher = super().current_term(running, batch, logits, seen), running.prepared
        if teacher is None:
            return loss
        import torch.nn.functional as F

        temperature = self.config.softmax_temp
        now, then = F.log_softmax(logits / temperature, 1), F.softmax(teacher(batch.x) / temperature, 1)
        return loss + self.config.alpha * temperature**2 * F.kl_div(now, then, reduction="batchmean")

    def arrays_bytes(self, model, active, *, buffered, classes):
        return model.packed_bytes(active)
