"""What a method or a correction sends beside the model in a federation, and what the server makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sparcl_core.methods.given import Arrays, Running

if TYPE_CHECKING:
    from sparcl_core.codec import Layout

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Upload:
    """What one device has sent beside its update. arrays: by name; samples: those of its task that it has trained on."""

    device: int
    samples: int
    arrays: Arrays


class SendsArrays:
    """What crosses the wire in a federation beside the model and its updates. As it is: nothing.

    The server keeps the arrays of `shapes_down`, zeros before the first round, and sends them to every device that it asks, whole and
    lossless. A device has them as `running.received`, its steps being done it answers with those of `shapes_up`, and `combine` makes what
    the server keeps from now on. An array that bears the name and the shape of a sparse tensor crosses over its active places alone.

    Attributes:
        counts: names among `shapes_up` of numbers of samples: whole, and at most what the device has trained on. All others are held
            against those of other devices, as updates are (`server.defence.clipping`).
        in_order: what is combined must be of the devices of one round, so that rounds cannot be buffered.
        needs_shared_masks: its arrays are over the shared masks, so that devices cannot have masks of their own.
        once_a_task: a device is sent them with the first round of a task alone, and keeps what it needs of them.
        labels: what is sent, both ways, are whole numbers from 0 to 255, which cross the wire as such.
        scores: `LearningMethod.scorer` wants what the server keeps.
    """

    counts: ClassVar[tuple[str, ...]] = ()
    in_order: ClassVar[bool] = False
    needs_shared_masks: ClassVar[bool] = False
    once_a_task: ClassVar[bool] = False
    labels: ClassVar[bool] = False
    scores: ClassVar[bool] = False

    def shapes_up(self, model: Layout, classifier: tuple[str, ...]) -> Shapes:
        """Names and shapes of what a device sends. `classifier`: tensors of the last layer, weight first, whose rows are classes."""
        return {}

    def shapes_down(self, model: Layout, classifier: tuple[str, ...]) -> Shapes:
        """Names and shapes of what the server keeps, and sends."""
        return {}

    def upload(self, running: Running) -> Arrays:
        """What a device sends behind a session; asked after `end_session`. `running.steps` were done."""
        return {}

    def combine(self, kept: Arrays, uploads: list[Upload], fleet: int) -> Arrays:
        """What the server keeps after a round: new arrays, made of those that it has kept.

        Args:
            uploads: of devices whose updates are used as they came, at least one, in device order.
            fleet: devices that there are.
        """
        return kept
