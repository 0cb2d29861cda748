"""Blurry borders between tasks: a share of every task's samples is exchanged for samples of the other tasks.

Rainbow Memory's blurry-M (Bang et al. 2021, arXiv:2103.17230): M per cent of a task's samples are of the other tasks' classes.
i-Blurry (Koh et al. 2022, arXiv:2110.10031) adds classes that are never blurred.

Differences from the papers: the exchange is within each device, among its own samples, so that a device has the same samples with
and without it; every class is blurred alike.
"""

from collections.abc import Sequence

import numpy as np

from sparcl_core.seeding import generator


def exchange(tasks: Sequence[np.ndarray], y: np.ndarray, blur: float, *, seed: int, device: int) -> tuple[np.ndarray, ...]:
    """A device's samples of each task, a share of them moved to other tasks.

    Of a task's n samples blur * n move, rounded up or down at random, the same share of every class but for rounding; they are dealt
    one by one to the other tasks in turn. Where all tasks have as many samples, they still have as many afterwards.

    Args:
        tasks: per task, [n] int64, indices into `y`.
        y: [N] int64, labels.
        blur: share in [0, 1).
        seed, device: the address of the draw.

    Returns:
        As `tasks`, in an order that means nothing.
    """
    others = len(tasks) - 1
    rng = generator(seed, "blur", device)
    rounding, first = rng.random(), int(rng.integers(others)) if others else 0
    arrived: list[list[np.ndarray]] = [[] for _ in tasks]
    for task, own in enumerate(tasks):
        count = int(blur * len(own) + rounding) if others else 0
        mixed = rng.permutation(own)
        mixed = mixed[np.argsort(y[mixed], kind="stable")]  # evenly spaced picks from it take the same share of every class
        moves = np.zeros(len(own), dtype=bool)
        moves[((np.arange(count) + rng.random()) * len(own) / max(count, 1)).astype(int)] = True
        arrived[task].append(mixed[~moves])
        for turn in range(others):
            to = (task + 1 + (first + turn) % others) % len(tasks)
            arrived[to].append(mixed[moves][turn::others])
    return tuple(rng.permutation(np.concatenate(parts)) for parts in arrived)
