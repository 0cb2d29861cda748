"""LPS, learn-prune-share (Wang et al. 2020, "Learn-Prune-Share for Lifelong Learning", ICDM, arXiv:2012.06956): PackNet whose pruning is
learned, and whose tasks choose what they use of earlier ones.

Weights of task t are W, those that earlier tasks own are F and stay; the network is W + F * M, M binary. In the epochs of a task

    learn    cross-entropy moves W, and M by its scores: a weight of F is used while its score is not below 0. Scores begin at 1 and move by
             the straight-through gradient, as if M were the score itself: score <- score - share_lr * G / max |G|, G = dL/d(F * M) * F of a
             layer. A plain step, of one rate for all, drops nothing in one network, and in another so much at once that it diverges
    prune    behind the share `admm_from` of the epochs that are over when masks are pruned, by ADMM (`sparsity.admm`): rho / 2 ||W - Z +
             U||^2 is added to the loss. At first Z = P(W), U = 0; where a session begins from then on Z = P(W + U), then U = U + W - Z. P
             keeps, in each layer, the weights of largest magnitude, as many as are left when masks are pruned
    retrain  the masks of `masks.scheme = "packnet"` are pruned, W alone goes on, and M stays as it is

Of M a bit a place and task is kept for ever, so that what the network of a task answers never changes behind it. In all else it is
`packnet`: masks, freezing, owners, and where it can run.

In a federation every device has Z and U of its own. The server keeps one score for each owned place, sends these with every round (whose a
place is need not be known to train), and takes the mean of what devices make of them, weighted by samples; what a task has chosen is read
of them where it ends. Between sessions a score is a byte, 0 where a place is free; that is what crosses the wire, too.

Differences: the paper's masks are real-valued in the forward pass and drawn to binary ones by a second ADMM, which keeps a set share of F
(0.9 in the released code); ours are binary all the time, and how many are used is learned. rho is constant, where the released code raises
it in steps. Learning, pruning and retraining share the task's epochs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sparcl_core.config import LearnerConfig, weight_of_a_loss
from sparcl_core.costs.flops import Passes
from sparcl_core.methods.choosing import UNIT, ZERO, Choosing
from sparcl_core.methods.given import Arrays, Running
from sparcl_core.methods.packnet import PackNet
from sparcl_core.sparsity.admm import updated
from sparcl_core.sparsity.packed import pack
from sparcl_core.sparsity.packnet import Owners, claimed, nobody, num_kept, selected, tasks_over

SCORE, Z, U = "score/", "z/", "u/"  # among the arrays of a device, before the name of a tensor


@dataclass(frozen=True)
class LPSConfig(LearnerConfig):
    """rho: weight of ADMM's pull. admm_from: share of the epochs before masks are pruned, behind which it pulls. share_lr: of the scores by
    which a task chooses. With rho and share_lr 0 it is PackNet."""

    rho: float = 0.1
    admm_from: float = 0.3
    share_lr: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        weight_of_a_loss("rho", self.rho)
        if self.lr * self.rho > 1:
            raise ValueError(
                f"rho is {self.rho:g}: with lr {self.lr:g} steps would swing about what is to be pruned; take at most {1 / self.lr:g}"
            )
        if not 0 <= self.admm_from < 1:
            raise ValueError(f"admm_from is {self.admm_from}: a share of the epochs before masks are pruned, in [0, 1)")
        if not 0 <= self.share_lr < math.inf:
            raise ValueError(f"share_lr is {self.share_lr}: a learning rate, finite and not negative; 0 uses all that earlier tasks own")


class LPS(PackNet):
    name = "lps"
    Config = LPSConfig
    once_a_task = False

    def problems(self, situation):
        yield from super().problems(situation)
        if situation.latest_start < self.config.admm_from:
            yield (
                f"learner.admm_from is {self.config.admm_from}, but no round begins between that and the pruning, the last one at "
                f"{situation.latest_start:.2g}: take a smaller one, or shorter rounds"
            )

    # -- on the wire

    def shapes_up(self, model, classifier):
        return self.shapes_down(model, classifier)

    def upload(self, running: Running) -> Arrays:
        return running.received and _scores(running)

    def combine(self, kept, uploads, fleet):
        total = sum(one.samples for one in uploads)
        found = {}
        for name, before in kept.items():
            mean = sum(one.samples / total * one.arrays[name].astype(np.float64) for one in uploads)
            found[name] = np.where(before > 0, np.clip(np.rint(mean), 1, 255), 0)
        return found

    def told(self, owners, kept, begins):
        return {name: np.where(own > 0, ZERO + UNIT if begins else kept[name], 0) for name, own in owners.items()}

    def chosen(self, kept, task):
        return _bits(kept, task) if any(score.any() for score in kept.values()) else {}

    # -- where a task begins and ends

    def begin_task(self, border):
        memory = border.memory
        if memory.received:
            return replace(memory, arrays={}), Passes()
        kept = _without_session(memory.arrays) or nobody(border.masks)
        owned = {name: kept[name] > 0 for name in border.masks}
        if self.config.share_lr and any(own.any() for own in owned.values()):
            kept = kept | {SCORE + name: np.where(own, np.uint8(ZERO + UNIT), np.uint8(0)) for name, own in owned.items()}
        return replace(memory, arrays=kept), Passes()

    def end_task(self, border):
        memory = border.memory
        if memory.received:
            return replace(memory, arrays={}), Passes()
        kept = self.owners(memory)
        own = claimed({name: kept[name] for name in border.masks}, border.masks, border.data.task)
        return replace(memory, arrays=kept | own), Passes()

    def owners(self, memory):
        return _without_session(memory.arrays) | _bits(_within(SCORE, memory.arrays), tasks_over(_without_session(memory.arrays)))

    # -- a session

    def owned(self, running) -> Owners:
        """Not 0 where a place is not free, as in a federation a device is told scores alone."""
        return running.received or {name: running.memory.arrays[name] for name in running.masks}

    def watched(self, running):
        """All that is owned, as long as the task chooses."""
        return {name: own > 0 for name, own in self.owned(running).items()} if _within(SCORE, running.memory.arrays) else {}

    def prepare(self, running: Running) -> dict[str, Choosing]:
        """The parts of each sparse tensor; the network has W + F * M from here on."""
        import torch

        running.memory = replace(running.memory, arrays=self._begun(running))
        arrays, network, owners, parts = running.memory.arrays, running.network, self.owned(running), {}
        learns, scores = bool(_within(SCORE, arrays)), self._scores_at_first(running)
        for name, mask in running.masks.items():
            owned, target = owners[name] > 0, None
            if U + name in arrays:
                target = np.zeros(mask.shape, running.state[name].dtype)
                target[mask & ~owned] = _z(arrays, name) - arrays[U + name]
            parts[name] = Choosing(
                network.gather(name, mask & ~owned), network.gather(name, owned), network.gather(name, running.state[name] * owned),
                scores=network.gather(name, scores[name].astype(running.state[name].dtype)), learns=learns,
                target=None if target is None else network.gather(name, target),
            )  # fmt: skip
            with torch.no_grad():
                parts[name].share_(network.parameters[name])
        return parts

    def gradients(self, running, current, drawn):
        import torch

        found, config = super().gradients(running, current, drawn), self.config
        with torch.no_grad():
            for (name, parameter), gradient in zip(running.network.parameters.items(), found, strict=True):
                if name in running.prepared:
                    running.prepared[name].step_(parameter, gradient, rho=config.rho, share_lr=config.share_lr)
        return found

    def settle(self, running):
        """W + F, of which every task has its own choice."""
        import torch

        with torch.no_grad():
            for name, part in running.prepared.items():
                parameter = running.network.parameters[name]
                parameter.copy_(parameter.where(~part.owned, part.fixed))

    def end_session(self, running):
        arrays = running.memory.arrays
        if running.received:
            return {name: value for name, value in arrays.items() if not name.startswith(SCORE)}
        scores = _scores(running) if _within(SCORE, arrays) else {}
        return arrays | {SCORE + name: value for name, value in scores.items()}

    # -- what it costs

    def step_flops(self, weights, drawn, arrays=None):
        """Scores: a product with F, its largest, a step, and F * M. ADMM: a difference, scaled, added to the gradient."""
        return weights * (5 * _has(SCORE, arrays) + 3 * _has(U, arrays))

    def session_flops(self, weights, arrays=None):
        """W + U for Z, and U + W - Z."""
        return weights * 3 * _has(U, arrays)

    def arrays_bytes(self, model, active, *, buffered, classes):
        """Owners and scores, a byte a place each; what each task has chosen, as if each class were one; Z and U."""
        bits = sum(math.ceil(model.parameters[name] / 8) for name in active)
        places = sum(model.parameters[name] for name in active)
        return 2 * places + (classes + 1) * bits + 2 * sum(active.values()) * model.itemsize

    def _begun(self, running: Running) -> Arrays:
        """The arrays of the device as the steps find them: Z and U moved, or, behind the pruning, neither them nor scores any more."""
        arrays = running.memory.arrays
        if running.received and self.config.share_lr and any(score.any() for score in running.received.values()):
            arrays = arrays | {SCORE + name: value.astype(np.uint8) for name, value in running.received.items()}
        if not all(mask.all() for mask in running.masks.values()):
            return {} if running.received else self.owners(running.memory)
        scheme, config = running.scheme, self.config
        if not config.rho or not running.masks or running.memory.epochs < config.admm_from * scheme.until * scheme.task_epochs - 1e-9:
            return arrays
        owners, moved = self.owned(running), {}
        for name, mask in running.masks.items():
            weights = running.state[name][mask & (owners[name] == 0)]
            z, u = updated(weights, arrays.get(U + name), num_kept(weights.size, scheme.sparsity))
            moved |= pack({name: z}, {name: z != 0}, Z) | {U + name: u}
        return arrays | moved

    def _scores_at_first(self, running: Running) -> Arrays:
        """Of the tensors, from what came, what is kept, or what was chosen."""
        arrays, owners = running.memory.arrays, self.owned(running)
        if running.received:
            return running.received
        if found := _within(SCORE, arrays):
            return found
        return {name: _chosen(owners, arrays, name) * np.uint8(ZERO) for name in running.masks}


def _scores(running: Running) -> Arrays:
    """As bytes, in the tensors' shapes."""
    return {name: running.network.spread(name, part.scores.round() * part.owned, np.uint8) for name, part in running.prepared.items()}


def _bits(scores: Arrays, task: int) -> Owners:
    return {selected(task, name): np.packbits(score >= ZERO) for name, score in scores.items()}


def _chosen(owners: Owners, arrays: Arrays, name: str) -> np.ndarray:
    """What the task that is running uses of earlier ones."""
    bits, own = arrays.get(selected(tasks_over(owners), name)), owners[name]
    return own > 0 if bits is None else np.unpackbits(bits, count=own.size).view(bool).reshape(own.shape)


def _z(arrays: Arrays, name: str) -> np.ndarray:
    """Z [n]."""
    places = np.unpackbits(arrays[f"{Z}{name}/mask"], count=arrays[U + name].size).view(bool)
    z = np.zeros_like(arrays[U + name])
    z[places] = arrays[Z + name]
    return z


def _within(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _without_session(arrays: Arrays) -> Owners:
    """Owners, and what was chosen."""
    return {name: value for name, value in arrays.items() if not name.startswith((SCORE, Z, U))}


def _has(prefix: str, arrays: Arrays | None) -> bool:
    """Is there, or may there be, such an array?"""
    return arrays is None or any(name.startswith(prefix) for name in arrays)
