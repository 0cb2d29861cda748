"""A data set: a function (config, seed, **options) -> training images and labels, test images and labels."""

import numpy as np

from sparcl_core.seeding import generator


def bars(config, seed: int, *, samples: int = 40, noise: float = 20.0):
    """Six classes of 8x8 pictures, a bright bar at another height each, under noise."""
    rng = generator(0, "bars")  # the data set is the same for every seed of a run
    images, labels = [], np.repeat(np.arange(6), samples)
    for label in labels:
        image = rng.normal(60, noise, (1, 8, 8))
        image[:, label + 1] += 150
        images.append(image)
    x = np.clip(images, 0, 255).astype(np.uint8)
    is_test = np.arange(len(x)) % 4 == 0
    return x[~is_test], labels[~is_test], x[is_test], labels[is_test]
