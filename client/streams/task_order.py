"""A fleet's tasks in an order of each device's own: again and again, piece by piece, or under a transformation of the images.

The samples are those of another fleet; what is added is a table of tasks, and none where all devices have the same order.
"""

from dataclasses import dataclass

import numpy as np

from client.streams.stream import Streams
from sparcl_core.domains import Domains


@dataclass(frozen=True, eq=False, kw_only=True)
class ArrangedStreams(Streams):
    """The tasks of `base` in another order; make it with `of`.

    The sequence of tasks is run through `cycles` times, with the same samples each time. A task comes in `chunks` pieces, each a step: step
    t * chunks + c is piece c of the t-th task in the device's sequence. With `domains` every task has the one task of `base`, transformed.

    Attributes:
        base: whose samples these are.
        sequences: [devices, T] int32, tasks in order; [1, T] if all devices have the same.
        cycles, pieces: how often, and in how many pieces a task comes.
        transform: what is done to the images of a task; None: nothing.
    """

    base: Streams
    sequences: np.ndarray
    cycles: int = 1
    pieces: int = 1
    transform: Domains | None = None

    @classmethod
    def of(
        cls, base: Streams, sequences: np.ndarray, classes: tuple[tuple[int, ...], ...], *, cycles: int = 1, chunks: int = 1,
        domains: Domains | None = None,
    ) -> "ArrangedStreams":  # fmt: skip
        """`classes`: per task.

        Raises:
            ValueError: if the parts do not fit each other.
        """
        if cycles < 1 or chunks < 1:
            raise ValueError(f"cycles is {cycles}, chunks {chunks}: at least 1 of each")
        if sequences.ndim != 2 or len(sequences) not in (1, len(base)):
            raise ValueError(f"sequences has shape {sequences.shape}: a row for each of {len(base)} devices, or one for all")
        if sequences.min() < 0 or sequences.max() >= len(classes):
            raise ValueError(f"sequences holds tasks {sequences.min()} to {sequences.max()}: there are tasks 0 to {len(classes) - 1}")
        if domains and len(base.classes) > 1:
            raise ValueError(f"base has {len(base.classes)} tasks: with domains it has one, which every task transforms")
        if not domains and len(base.classes) != len(classes):
            raise ValueError(f"classes are of {len(classes)} tasks, base has {len(base.classes)}: they must be the same")
        shown = {"cycles": cycles, "pieces": chunks, "transform": domains}
        return cls(base.x, base.y, classes, blur=base.blur, base=base, sequences=sequences.astype(np.int32), **shown)

    @property
    def sizes(self) -> np.ndarray:
        whole, steps = self.base.sizes, self.sequences.shape[1] * self.cycles
        if not any(whole.strides):  # one number for all, as where devices draw: no table for a large fleet
            whole = np.full((1, steps), whole[0, 0])
        else:
            parts = np.tile(self._parts(self.sequences), (1, self.cycles))
            whole = np.take_along_axis(whole, np.broadcast_to(parts, (len(self), steps)), axis=1)
        cuts = whole[:, :, None] * np.arange(self.pieces + 1) // self.pieces
        sizes = np.diff(cuts, axis=2).reshape(len(whole), -1)
        return np.broadcast_to(sizes, (len(self), sizes.shape[1]))

    @property
    def order(self) -> np.ndarray:
        order = self._steps(self.sequences)
        return np.broadcast_to(order, (len(self), order.shape[1]))

    @property
    def chunks(self) -> int:
        return self.pieces

    @property
    def domains(self) -> Domains | None:
        return self.transform

    def __len__(self) -> int:
        return len(self.base)

    def order_of(self, device: int) -> tuple[int, ...]:
        return tuple(self._steps(self._sequence(device))[0].tolist())

    def all_samples(self, device: int) -> tuple[np.ndarray, ...]:
        pieces = [self._cut(own) for own in self.base.all_samples(device)]
        parts = self._parts(self._sequence(device))[0].tolist()
        return tuple(piece for part in parts for piece in pieces[part]) * self.cycles

    def _cut(self, own: np.ndarray) -> list[np.ndarray]:
        """`own` in pieces, as even as can be: they have no order that the cut could follow."""
        ends = [len(own) * piece // self.pieces for piece in range(self.pieces + 1)]
        return [own[start:end] for start, end in zip(ends, ends[1:], strict=False)]

    def _sequence(self, device: int) -> np.ndarray:
        """[1, T], the tasks of a device in order."""
        row = device % len(self.sequences)  # 0 where all share one
        return self.sequences[row : row + 1]

    def _steps(self, sequences: np.ndarray) -> np.ndarray:
        """[n, T] to [n, steps]."""
        return np.tile(sequences, (1, self.cycles)).repeat(self.pieces, axis=1)

    def _parts(self, sequences: np.ndarray) -> np.ndarray:
        """Which task of `base` each task takes its samples from."""
        return np.zeros_like(sequences) if self.transform else sequences
