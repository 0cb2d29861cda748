"""What corrects the steps of a device for its data being its own, whatever its learning method is: FedProx, SCAFFOLD.

A method says what the loss is; a correction changes the gradient that the weights then move by, so that the two go together:
`federation.correction = "scaffold"` with `learner.method = "derpp"`. What it keeps on a device stands beside what the method keeps, what it
sends crosses the wire beside what the method sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sparcl_core.config import CorrectionConfig
from sparcl_core.costs.flops import Count
from sparcl_core.costs.memory import Held
from sparcl_core.methods.given import Arrays, Running
from sparcl_core.methods.sends_arrays import SendsArrays

if TYPE_CHECKING:
    from torch import Tensor


class Correction(SendsArrays):
    """As it is: none, which is FedAvg.

    Attributes:
        all_gradients: it needs the gradients of all active weights in every step, so that DGM cannot leave any out.
    """

    name: ClassVar[str] = "none"
    all_gradients: ClassVar[bool] = False

    def __init__(self, config: CorrectionConfig, lr: float):
        """`lr`: the learning rate of the devices."""
        self.config, self.lr = config, lr

    def prepare(self, running: Running, received: Arrays) -> Any:
        """What the steps need, made once, from then on `running.correction`. `received`: as `running.received` is for a method."""
        return None

    def gradients(self, running: Running, gradients: list[Tensor]) -> list[Tensor]:
        """Those that weights move by, in the order of `running.network.parameters`; may write to those that it is given."""
        return gradients

    def end_session(self, running: Running) -> Arrays:
        """The arrays to keep; `running.network` has been trained, in `running.steps`."""
        return running.memory.corrected

    def step_flops(self, weights: Count) -> Count:
        """FLOPs of `gradients`. `weights`: that the network holds, times the steps."""
        return 0 * weights

    def session_flops(self, weights: int) -> int:
        """FLOPs of `prepare` and `end_session`."""
        return 0

    def arrays_bytes(self, model: Held, active: dict[str, int]) -> int:
        """The most that its arrays take on a device, and those that it has received."""
        return 0
