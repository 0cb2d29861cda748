"""A selection policy: a function from candidates to the rows of those that are asked."""

import numpy as np


def longest_ago(candidates, size: int, rng: np.random.Generator) -> np.ndarray:
    """Those that trained longest ago, ties by chance."""
    return np.lexsort((rng.random(len(candidates)), candidates.last_round))[:size]
