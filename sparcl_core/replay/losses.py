"""Replay losses as pure functions of logits.

x, y: current batch; B1, B2: independent buffer draws of the same size (smaller while the buffer holds fewer).
- ER     (Chaudhry et al. 2019): CE(f(x), y) + weight * CE(f(B1.x), B1.y)
- DER    (Buzzega et al. 2020):  CE(f(x), y) + alpha * MSE(f(B1.x), B1.logits)
- DER++  (Buzzega et al. 2020):  CE(f(x), y) + alpha * MSE(f(B1.x), B1.logits) + beta * CE(f(B2.x), B2.y)
Each term is a mean over its own batch; MSE is a mean over batch and classes. `sgd` is the first term alone.

mammoth's ER takes one mean over the joined batch of n current and m replayed samples: n / (n + m) of ours with weight m / n. So for
draws as large as the batch, weight 1 and half of mammoth's learning rate take mammoth's steps; with mammoth's own rate, ours are twice
as long.

Single-head masking (the released SparCL code's `use_cl_mask`): the first term sees the logits of the current task's classes
only, all others are -inf. Plain DER++ does not do this; it moves Class-IL accuracy by ten points and more.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparcl_core.config import REPLAY_DRAWS


class Replay(NamedTuple):
    """One buffer draw: logits [B, classes] of the model now, and what the buffer holds."""

    logits: Tensor
    y: Tensor
    stored_logits: Tensor


def single_head(logits: Tensor, task_classes: Tensor) -> Tensor:
    """`logits` [B, classes] with all classes outside `task_classes` [k] set to -inf."""
    masked = torch.full_like(logits, float("-inf"))
    return masked.index_copy(1, task_classes, logits.index_select(1, task_classes))


def current_term(logits: Tensor, y: Tensor) -> Tensor:
    """CE(f(x), y), a mean over the batch; logits may hold -inf outside the task."""
    return F.cross_entropy(logits, y)


def replay_term(method: str, draws: list[Replay], alpha: float, beta: float) -> Tensor:
    """The replay part of the loss, weighted. `draws`: as many as REPLAY_DRAWS[method].

    alpha: weight of MSE (der, derpp) or of CE (er). beta: weight of CE (derpp).
    """
    terms = [draw_term(method, number, draw, alpha, beta) for number, draw in enumerate(draws[: REPLAY_DRAWS[method]])]
    return sum(terms[1:], terms[0])


def draw_term(method: str, number: int, draw: Replay, alpha: float, beta: float) -> Tensor:
    """What one buffer draw adds to the loss: their sum is `replay_term`, and each can run backward before the next runs forward."""
    if method == "er":
        return alpha * F.cross_entropy(draw.logits, draw.y)
    if number == 0:
        return alpha * F.mse_loss(draw.logits, draw.stored_logits)
    return beta * F.cross_entropy(draw.logits, draw.y)
