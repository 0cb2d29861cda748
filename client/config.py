"""What every device knows before the first message."""

from dataclasses import dataclass, field
from typing import Literal

from sparcl_core.codec import Layout
from sparcl_core.config import MethodConfig
from sparcl_core.inputs import InputSpec
from sparcl_core.task_change import ChangeConfig
from sparcl_core.wire.error_feedback import WireConfig


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Settings of all devices.

    Attributes:
        method, inputs, task_epochs, seed: see `sparcl_core.learner.Learner`.
        wire: how updates are coded.
        mask: `shared`, the server updates one mask for all; `local`, every device adapts its own within a round.
        batchnorm: `global`, running statistics cross the wire like weights; `local`, they stay on the device; `recompute`, the server
            asks for those of the global model; `fedbn`, weights, biases and statistics stay on the device.
        chunks: pieces that a task comes in, see `client.streams.stream.Streams`.
        change: how a device notices that its task has changed; None: it is told.
    """

    method: MethodConfig
    inputs: InputSpec
    task_epochs: int
    seed: int
    wire: WireConfig = field(default_factory=WireConfig)
    mask: Literal["shared", "local"] = "shared"
    batchnorm: Literal["global", "local", "recompute", "fedbn"] = "global"
    chunks: int = 1
    change: ChangeConfig | None = None

    def layout(self, whole: Layout) -> Layout:
        """What of a model with layout `whole` crosses the wire in every round."""
        return whole.sent(self.batchnorm)
