"""Prototypes of classes that the server averages, after FedSpace (Shenaj et al. 2023, "Asynchronous Federated Continual Learning", CVPR
Workshop on Federated Learning for Computer Vision, arXiv:2304.03626), whose prototype augmentation is that of PASS (Zhu et al. 2021, CVPR).

    CE(f(x), y) + prototype_weight * mean_c CE(h(P_c + r e), c) + representation_weight * CE(cos(z, P) / T, y)

x, y: the current batch, z its features, what the last layer h is given; c: classes that the server knows and the task does not have;
e: standard normal noise; the last term, over the classes that the server knows, draws features to the prototype of their class and
away from others.

Behind its steps a device goes through its task's data once more and sends of each of its classes the mean feature and the number of
samples, and how far features lie from their means, a variance a feature. The server keeps

    P_c = sum_k n_kc P_kc / sum_k n_kc, over the devices of a round that have c, else what it had;   r^2 = the same mean of variances

of which r stays as the first round has it, as in PASS, where it is that of the first task. No sample and no feature of one leaves a device,
nothing but a mean; a class costs as many numbers as the last layer has inputs.

Differences: pre-training on fractal images is left out (`model.weights` takes such a model), and so is the aggregation by drift of
prototypes, in the place of which are the project's own averaging rules. Classes are not made more by rotations (PASS). What terms on
prototypes take, a pass of a few vectors through the last layer, is not counted.
"""

from dataclasses import dataclass

import numpy as np

from sparcl_core.config import LearnerConfig, weight_of_a_loss
from sparcl_core.costs.flops import Passes
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.given import Running
from sparcl_core.methods.prototypes import averaged, class_means


@dataclass(frozen=True)
class FedSpaceConfig(LearnerConfig):
    """prototype_weight: weight of the term on absent classes' prototypes. representation_weight: of that which draws features to their own.
    prototype_temp: T, the temperature of the latter."""

    prototype_weight: float = 1.0
    representation_weight: float = 0.1
    prototype_temp: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        weight_of_a_loss("prototype_weight", self.prototype_weight)
        weight_of_a_loss("representation_weight", self.representation_weight)
        if not 0 < self.prototype_temp < float("inf"):
            raise ValueError(f"prototype_temp is {self.prototype_temp}: a temperature is above 0 and finite")


class FedSpace(LearningMethod):
    name = "fedspace"
    Config = FedSpaceConfig
    wants_features = needs_server = True
    counts = ("counts",)

    # -- on the wire

    def shapes_up(self, model, classifier):
        classes, features = model.shapes[classifier[0]]
        return {"means": (classes, features), "counts": (classes,), "variance": (1,)}

    def shapes_down(self, model, classifier):
        classes, features = model.shapes[classifier[0]]
        return {"prototypes": (classes, features), "known": (classes,), "radius": (1,)}

    def upload(self, running: Running):
        """Of the data that the device still trains on: `means` [C, D], 0 of classes that it has not, `counts` [C], `variance` [1]."""
        if not running.received:  # it is a device alone
            return {}
        data, kept = running.data, np.flatnonzero(running.memory.ddr.kept)
        features = running.freeze(running.network.read(), running.masks).features_of(data.x[kept])
        labels, classes = data.y[kept], running.network.inputs.num_classes
        means, counts = class_means(features, labels, classes), np.bincount(labels, minlength=classes).astype(features.dtype)
        return {"means": means, "counts": counts, "variance": variance_about(means, features, labels)}

    def combine(self, kept, uploads, fleet):
        found, total = averaged(kept["prototypes"], uploads)
        radius = kept["radius"]
        if not radius[0] and total.sum():
            variance = sum(one.arrays["counts"].sum() * np.maximum(one.arrays["variance"], 0).astype(np.float64) for one in uploads)
            radius = np.sqrt(variance / total.sum())
        return {"prototypes": found, "known": np.maximum(kept["known"], total > 0), "radius": radius}

    # -- the loss

    def prepare(self, running: Running):
        """Prototypes [C, D], which classes they are known of, and which of those the task has not, [C] bool, and r; None if of none."""
        received = running.received
        if not received or not received["known"].any():
            return None
        import torch

        known = torch.from_numpy(received["known"] > 0)
        absent = known.clone()
        absent[list(running.data.classes)] = False
        return torch.from_numpy(received["prototypes"]), known, absent, float(received["radius"][0])

    def current_term(self, running, batch, logits, seen):
        import torch
        import torch.nn.functional as F

        loss = super().current_term(running, batch, logits, seen)
        if running.prepared is None:
            return loss
        prototypes, known, absent, radius = running.prepared
        if self.config.prototype_weight and absent.any():
            noise = torch.from_numpy(running.rng.standard_normal(prototypes.shape)).to(prototypes.dtype)
            answers = running.network.classify((prototypes + radius * noise)[absent])
            loss = loss + self.config.prototype_weight * F.cross_entropy(answers, absent.nonzero().squeeze(1))
        rows = known[batch.y]
        if self.config.representation_weight and rows.any():
            loss = loss + self.config.representation_weight * self._representation(batch.features[rows], batch.y[rows], prototypes, known)
        return loss

    def _representation(self, features, labels, prototypes, known):
        """CE(cos(z, P) / T, y) over the classes that are known, those of `labels` among them."""
        import torch.nn.functional as F

        alike = F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).T / self.config.prototype_temp
        return F.cross_entropy(alike.masked_fill(~known, float("-inf")), labels)

    # -- what it costs

    def upload_passes(self, samples, buffered):
        """Every sample goes forward once more."""
        return Passes(taught=samples)


def variance_about(means: np.ndarray, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean squared distance of features [N, D] from the means [C, D] of their classes, a feature: [1]; 0 without samples."""
    return np.array([((features - means[labels]) ** 2).mean() if len(labels) else 0.0], features.dtype)
