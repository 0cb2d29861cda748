"""Mean features of classes, which devices send and the server averages (FedSpace's prototypes, iCaRL's class means)."""

import numpy as np

from sparcl_core.methods.sends_arrays import Upload


def class_means(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """The mean of `features` [N, D] of each class, [classes, D]; zeros where a class has none. labels: [N] int64."""
    means = np.zeros((classes, features.shape[1]), features.dtype)
    for label in np.unique(labels):
        means[label] = features[labels == label].mean(0)
    return means


def averaged(kept: np.ndarray, uploads: list[Upload]) -> tuple[np.ndarray, np.ndarray]:
    """Over the devices of a round, the mean of their `means` weighted by their `counts`, float64 [classes, D]; and the sum of counts.

    `kept`: what the server has; it stays where no device has a class.
    """
    total = sum(one.arrays["counts"].astype(np.float64) for one in uploads)
    summed = sum(one.arrays["counts"].astype(np.float64)[:, None] * one.arrays["means"] for one in uploads)
    return np.where(total[:, None] > 0, summed / np.maximum(total, 1)[:, None], kept), total
