"""From the labels that a data set has to classes numbered from 0, and a word on classes that one of its parts lacks."""

import logging

import numpy as np

log = logging.getLogger(__name__)
SHOWN = 12


def number_classes(train_y: np.ndarray, test_y: np.ndarray) -> tuple[tuple[int, ...], np.ndarray, np.ndarray]:
    """The labels of both parts in ascending order, and each part's as places in that order, int64.

    Labels that are 0 to their number - 1 are those places. Others are renumbered, so that no output stands for a class that is not there;
    a line of the log says so.
    """
    labels = np.union1d(train_y, test_y)
    if labels[-1] != len(labels) - 1:
        told = (shown(labels), len(labels) - 1)
        log.warning("labels do not run from 0 without a gap: %s become classes 0 to %d in that order; classes.parquet has both", *told)
    return tuple(labels.tolist()), np.searchsorted(labels, train_y), np.searchsorted(labels, test_y)


def tell_missing(labels: tuple[int, ...], train_y: np.ndarray, test_y: np.ndarray) -> None:
    """A line of the log for classes without samples to train on, and one for those without samples to test on."""
    everyone = np.array(labels)
    for part, y, meaning in (
        ("training", train_y, "what is tested of them counts as wrong"),
        ("test", test_y, "nothing says how well they are learned"),
    ):
        if len(missing := np.delete(everyone, np.unique(y))):
            log.warning("no %s sample of label %s: %s", part, shown(missing), meaning)


def shown(labels: np.ndarray) -> str:
    """`labels` as text, the middle of many left out."""
    texts = [str(label) for label in labels.tolist()]
    return ", ".join(texts if len(texts) <= SHOWN else [*texts[: SHOWN - 2], "...", texts[-1]])
