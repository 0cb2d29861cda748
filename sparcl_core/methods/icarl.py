"""iCaRL, incremental classifier and representation learning (Rebuffi et al. 2017, arXiv:1611.07725).

    sum of binary cross-entropies, a mean over batch and classes so far:
        of a new class       with 1 where it is the label, else 0
        of an old class      with sigmoid(teacher(x)), the teacher being the model as the last task left it    (algorithm 3)

for the current batch and for a draw from the exemplars beside it. Exemplars are chosen where a task ends, capacity / classes so far for
each: the next one is that which brings the mean of the chosen ones' features nearest to the class's mean (herding, algorithm 4); of older
classes the first ones stay (algorithm 5). Features are the input of the last layer, of length 1. An image is of the class whose
exemplars' mean feature, under the model as it is now, is nearest (algorithm 1), so Class-IL needs no bias correction of the classifier.

In a federation a device sends the mean features of its classes under the model that it has trained, of older ones by its exemplars, of its
task's by their samples. The server keeps the mean over the devices of a round, weighted by samples; of a class that none of them has, what
it had. That says of which class an image is under the global model, on the server and on devices.

Differences: the paper trains on the union of data and exemplars, ours draws from them beside each batch as ER does; the teacher's answers
to exemplars are those that were stored with them where the last task ended. Features are not averaged with those of the mirrored image.
The sums of features that make means are not counted, the passes that give them are.

A device keeps the teacher, and which classes it has seen.
"""

from dataclasses import replace

import numpy as np

from sparcl_core.costs.flops import Passes
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.given import Border, Running
from sparcl_core.methods.lwf import TEACHER
from sparcl_core.methods.prototypes import averaged, class_means
from sparcl_core.methods.seen import SEEN, seen_after
from sparcl_core.replay.shares import first_of_each, refilled
from sparcl_core.sparsity.packed import pack, unpack


class ICaRL(LearningMethod):
    name = "icarl"
    draws = 1
    teachers = 1
    counts = ("counts",)
    scores = True

    def problems(self, situation):
        if not self.config.buffer_size and not self.config.buffer_share:
            yield (
                f"learner.method is {self.config.method!r}, but learner.buffer_size and buffer_share are 0: an image is of the class whose "
                f"exemplars are nearest, so take at least a place for each class"
            )

    def prepare(self, running: Running):
        """The teacher, if there is one; and the old classes and those so far, [classes] bool."""
        import torch

        arrays, num_classes = running.memory.arrays, running.network.inputs.num_classes
        old = torch.from_numpy(arrays[SEEN].copy()) if arrays else torch.zeros(num_classes, dtype=torch.bool)
        known = old.clone()
        known[list(running.data.classes)] = True
        teacher = running.freeze(*unpack(arrays, running.network.layout.shapes, TEACHER)) if arrays else None
        return teacher, old, known

    def current_term(self, running, batch, logits, seen):
        teacher, old, known = running.prepared
        return binary_terms(logits, batch.y, teacher(batch.x) if teacher else logits, old=old, known=known)

    def draw_term(self, running, number, drawn, logits):
        _, old, known = running.prepared
        return binary_terms(logits, drawn.y, drawn.logits, old=old, known=known)

    def offer(self, running, rows, logits, rng):
        """Nothing: exemplars are chosen where a task ends."""

    def end_task(self, border: Border):
        memory, buffer, data, network = border.memory, border.memory.buffer, border.data, border.network
        seen = seen_after(border)
        share = buffer.capacity // int(seen.sum())
        kept = first_of_each(buffer.y[: len(buffer)], share)
        features, logits = network.features_of(data.x)
        features = of_length_one(features)
        again = network.outputs(buffer.x[kept]) if len(kept) else buffer.logits[kept]
        chosen = [np.flatnonzero(data.y == label) for label in np.unique(data.y)]
        picked = [rows[herding(features[rows], share)] for rows in chosen]
        new = np.concatenate(picked)[: buffer.capacity - len(kept)]
        held = replace(buffer, logits=_with(buffer.logits, kept, again))
        fresh = refilled(held, kept, x=data.x[new], y=data.y[new], logits=logits[new])
        arrays = pack(border.state, border.masks, TEACHER) | {SEEN: seen}
        flops = sum(_herding_flops(len(rows), min(share, len(rows)), features.shape[1]) for rows in chosen)
        return replace(memory, buffer=fresh, arrays=arrays), Passes(taught=len(data.y) + len(kept), flops=flops)

    # -- on the wire

    def shapes_up(self, model, classifier):
        classes, features = model.shapes[classifier[0]]
        return {"means": (classes, features), "counts": (classes,)}

    def shapes_down(self, model, classifier):
        return {"means": model.shapes[classifier[0]]}

    def upload(self, running: Running):
        """`means` [C, D] of each class that the device has samples of, and of how many, `counts` [C], at most those that it trains on."""
        if not running.received:  # it is a device alone
            return {}
        data, buffer, kept = running.data, running.memory.buffer, np.flatnonzero(running.memory.ddr.kept)
        x, labels = (np.concatenate([own[kept], held[: len(buffer)]]) for own, held in ((data.x, buffer.x), (data.y, buffer.y)))
        features = running.freeze(running.network.read(), running.masks).features_of(x)
        counts = np.bincount(labels, minlength=len(running.received["means"]))
        means = of_length_one(class_means(of_length_one(features), labels, len(counts)))
        return {"means": means, "counts": np.minimum(counts, len(kept)).astype(means.dtype)}

    def combine(self, kept, uploads, fleet):
        return {"means": averaged(kept["means"], uploads)[0]}

    # -- at a test

    def scorer(self, network, memory, received):
        means = received.get("means", np.zeros(0))
        if memory is not None and len(memory.buffer):
            buffer, held = memory.buffer, slice(len(memory.buffer))
            features, _ = network.features_of(buffer.x[held].copy())  # a device that is tested has it read-only
            own = of_length_one(class_means(of_length_one(features), buffer.y[held], network.inputs.num_classes))
            means = np.where(means.any(1)[:, None], means, own) if len(means) else own
        if not means.any():
            return network.model
        import torch

        centres = torch.from_numpy(of_length_one(means))

        def nearest(x):
            features, logits = network.features(x)
            away = torch.cdist(torch.nn.functional.normalize(features, dim=1), centres, compute_mode="donot_use_mm_for_euclid_dist")
            return torch.where(centres.any(1), -away, -torch.inf).to(logits.dtype)

        return nearest

    # -- what it costs

    def least_buffer(self, classes):
        """An exemplar of each, or there is no mean."""
        return classes

    def held_by_twin(self, buffer, offered):
        return len(buffer)

    def task_passes(self, samples, buffered, weights):
        return Passes(taught=samples + buffered, flops=_herding_flops(samples, buffered, weights))

    def upload_passes(self, samples, buffered):
        return Passes(taught=samples + buffered)

    def arrays_bytes(self, model, active, *, buffered, classes):
        return model.packed_bytes(active) + classes


def binary_terms(logits, labels, answers, *, old, known):
    """Mean over batch and known classes of the binary cross-entropies.

    Args:
        logits, answers: [B, classes], the model's and its teacher's.
        labels: [B] int64.
        old, known: [classes] bool, classes of earlier tasks, and those with the current one's.
    """
    import torch.nn.functional as F

    is_label = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    targets = is_label.where(~old, answers.detach().sigmoid())
    return F.binary_cross_entropy_with_logits(logits[:, known], targets[:, known])


def herding(features: np.ndarray, count: int) -> np.ndarray:
    """The rows of the exemplars of a class in the order in which they are chosen, [min(count, n)]; of equal ones the lower.

    features: [n, D], of length 1 each.
    """
    mean, total = features.mean(0), np.zeros(features.shape[1], features.dtype)
    is_free, rows = np.ones(len(features), bool), []
    for number in range(1, min(count, len(features)) + 1):
        away = ((mean - (total + features) / number) ** 2).sum(1)
        rows.append(int(np.where(is_free, away, np.inf).argmin()))
        is_free[rows[-1]] = False
        total = total + features[rows[-1]]
    return np.array(rows, np.int64)


def of_length_one(features: np.ndarray) -> np.ndarray:
    """`features` [..., D], each divided by its Euclidean length; zeros stay."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12).astype(features.dtype)


def _with(array: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[rows] = values
    return array


def _herding_flops(samples: int, chosen: int, features: int) -> int:
    """Of one class: for every exemplar, a sum, a quotient, a difference, a square and its sum at each feature of each sample."""
    return 5 * samples * chosen * features
