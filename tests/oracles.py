"""Slow references, written from the method's description in plain Python, never from `sparcl_core`.

Each function follows one paragraph of the description: lists and loops, exact fractions where a count is rounded, nothing
vectorised, nothing shared with the code under test.
"""

import math
from fractions import Fraction

import numpy as np


def exact(share: float) -> Fraction:
    """The decimal number that was meant by a float: 0.9 is nine tenths, and 1 - 0.8 * 0.25 is eight."""
    return Fraction(share).limit_denominator(10**6)


def active_count(size: int, sparsity: float) -> int:
    """(1 - s) of `size` weights, to the nearest whole one, halves up; a layer never loses its last weight."""
    return max(1, math.floor((1 - exact(sparsity)) * size + Fraction(1, 2)))


# --- TDM -------------------------------------------------------------------------------------------------------------


def tdm_action_at(task: int, epoch: int, epochs: int, length: int) -> str:
    """What happens to the masks at the beginning of `epoch` of a task of `epochs` epochs in stages of `length` epochs."""
    if epoch % length:
        return "rest"  # only the first epoch of a stage acts
    stage, last = epoch // length, (epochs - 1) // length
    if stage == 0:
        return "rest" if task == 0 else "grow"
    return "rest" if stage == last else "adapt"


def tdm_actions_by_round(task: int, epochs: int, length: int, round_epochs: int) -> list[str]:
    """The same for a task cut into rounds: a round does what the latest stage that began since the last round asks for.

    The first adaptation of a task undoes its inter-task growth; where rounds are too long for one, there is no growth.
    """
    actions = []
    for begin in range(0, epochs, round_epochs):
        since = range(max(0, begin - round_epochs + 1), begin + 1)
        stage_starts = [epoch for epoch in since if epoch % length == 0]
        actions.append(tdm_action_at(task, stage_starts[-1], epochs, length) if stage_starts else "rest")
    return actions if "adapt" in actions else ["rest"] * len(actions)


def keep_highest(active: list[bool], score: list[float], keep: int) -> list[bool]:
    """The `keep` active places with the highest score, one after another; of equals the lower index."""
    left = [i for i, is_active in enumerate(active) if is_active]
    kept = [False] * len(active)
    for _ in range(keep):
        best = left[0]
        for i in left[1:]:
            if score[i] > score[best]:
                best = i
        left.remove(best)
        kept[best] = True
    return kept


def tdm_survivors(active: list[bool], weights: list[float], importance: list[float], sparsity: float, p_intra: float) -> list[bool]:
    """Intra-task shrink: to sparsity s + p_intra by lowest |w| + I."""
    score = [abs(w) + i for w, i in zip(weights, importance, strict=True)]
    keep = active_count(len(active), exact(sparsity) + exact(p_intra))
    return keep_highest(active, score, min(keep, sum(active)))


# --- sparse training beside TDM ---------------------------------------------------------------------------------------


def erk_densities(shapes: list[tuple[int, ...]], sparsity: float) -> list[Fraction]:
    """Erdos-Renyi-Kernel: density = eps * (sum of the kernel's sides) / (their product), all layers together at density 1 - s.

    A layer that would be above 1 is dense, one after the other, the most crowded first, and eps is found anew for those that are left.
    """
    sizes, scores = [math.prod(shape) for shape in shapes], [Fraction(sum(shape), math.prod(shape)) for shape in shapes]
    dense: list[int] = []
    while True:
        sparse = [i for i in range(len(shapes)) if i not in dense]
        budget = (1 - exact(sparsity)) * sum(sizes) - sum(sizes[i] for i in dense)
        eps = budget / sum(scores[i] * sizes[i] for i in sparse)
        worst = max(sparse, key=lambda i: scores[i])
        if eps * scores[worst] <= 1:
            return [Fraction(1) if i in dense else eps * scores[i] for i in range(len(shapes))]
        dense.append(worst)


def rigl_share(epoch: int, epochs: int, exchange: float, until: float) -> float:
    """f(t) = alpha / 2 * (1 + cos(t pi / T_end))."""
    return exchange / 2 * (1 + math.cos(epoch * math.pi / (until * epochs)))


def rigl_update(active: list[bool], weights: list[float], gradients: list[float], share: float) -> tuple[list[int], list[int]]:
    """Places that are dropped and grown in one layer: k smallest |w| of the active ones, then the k largest |gradient| of all inactive."""
    places = [i for i, is_active in enumerate(active) if is_active]
    k = min(math.floor(share * len(places) + 0.5), len(active) - len(places))
    dropped: list[int] = []
    for _ in range(k):  # of equals the lower index stays
        dropped.append(min((i for i in places if i not in dropped), key=lambda i: (abs(weights[i]), -i)))
    free = [i for i in range(len(active)) if not active[i] or i in dropped]
    grown: list[int] = []
    for _ in range(k):
        grown.append(max((i for i in free if i not in grown), key=lambda i: (abs(gradients[i]), -i)))
    return sorted(dropped), sorted(grown)


def set_removed(weights: list[float], zeta: float) -> list[bool]:
    """Of active weights: the share zeta of the smallest positive, the share zeta of the largest negative ones, and all zeros."""
    gone = [weight == 0 for weight in weights]
    for sign in (1, -1):
        own = [i for i, weight in enumerate(weights) if weight * sign > 0]
        own.sort(key=lambda i: (abs(weights[i]), -i))
        for i in own[: math.floor(exact(zeta) * len(own) + Fraction(1, 2))]:
            gone[i] = True
    return gone


def highest_of_all(layers: list[list[float]], keep: int) -> list[list[bool]]:
    """One ranking of all layers; of equals the earlier layer, then the lower index; a layer keeps its highest whatever the others have."""
    kept = [[False] * len(layer) for layer in layers]
    for layer, own in zip(layers, kept, strict=True):
        own[max(range(len(layer)), key=lambda i: (layer[i], -i))] = True
    order = sorted((-score, number, i) for number, layer in enumerate(layers) for i, score in enumerate(layer) if not kept[number][i])
    for _, number, i in order[: max(0, keep - len(layers))]:
        kept[number][i] = True
    return kept


# --- DGM -------------------------------------------------------------------------------------------------------------


def dgm_mask(active: list[bool], score: list[float], q: float) -> list[bool]:
    """The share 1 - q of all weights with the highest CGI, among the active ones; all of those if they are fewer."""
    return keep_highest(active, score, min(active_count(len(active), q), sum(active)))


# --- DDR -------------------------------------------------------------------------------------------------------------


def ddr_misclassified(history: list[bool]) -> int:
    """Misclassifications; `history`: right or wrong, pass by pass since the last stage."""
    return sum(not right for right in history)


def ddr_forgetting(before: bool, history: list[bool]) -> float:
    """Changes from right to wrong since the last stage, where `before` is the outcome of the pass before it.

    A sample that was not right in any pass since then was never learned and counts as the maximum.
    """
    if not any(history):
        return math.inf
    events, last = 0, before
    for right in history:
        if last and not right:
            events += 1
        last = right
    return events


def ddr_kept(
    kept: list[bool], score: list[float], labels: list[int], batch_size: int, removed_share: float, stage: int, stages: int
) -> list[bool]:
    """What is left after removal `stage` (from 1) of `stages`: the lowest scores go one by one, of equals the lower index."""
    size, kept = len(kept), list(kept)
    target = math.floor(exact(removed_share) * size * stage / stages)
    at_least = min(Fraction(batch_size), Fraction(size, 4))
    while kept.count(False) < target and kept.count(True) - 1 >= at_least:
        free = [i for i in range(size) if kept[i] and sum(labels[j] == labels[i] for j in range(size) if kept[j]) > 1]
        if not free:
            break
        kept[min(free, key=lambda i: (score[i], i))] = False
    return kept


# --- replay ----------------------------------------------------------------------------------------------------------


def reservoir_distribution(offers: int, capacity: int) -> dict[tuple[int, ...], Fraction]:
    """Exact probability of every content (by slot) of a reservoir after `offers` samples 0, 1, 2, ...

    The first `capacity` samples fill the slots in order. Sample n (from 0) then draws a number from 0 to n, all equally
    likely, and takes that slot if there is one.
    """
    chances = {tuple(range(min(offers, capacity))): Fraction(1)}
    for n in range(capacity, offers):
        after: dict[tuple[int, ...], Fraction] = {}
        for content, chance in chances.items():
            for drawn in range(n + 1):
                new = content if drawn >= capacity else (*content[:drawn], n, *content[drawn + 1 :])
                after[new] = after.get(new, Fraction(0)) + chance / (n + 1)
        chances = after
    return chances


def cross_entropy(logits: list[list[float]], labels: list[int], classes: list[int] | None = None) -> float:
    """Mean over the batch of -log softmax at the label; `classes`: the only ones that exist (single head), None for all."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        seen = [row[c] for c in (range(len(row)) if classes is None else classes)]
        top = max(seen)
        total += top + math.log(sum(math.exp(z - top) for z in seen)) - row[label]
    return total / len(logits)


def mean_squared_error(logits: list[list[float]], stored: list[list[float]]) -> float:
    """Mean over batch and classes."""
    squares = [(a - b) ** 2 for row, old in zip(logits, stored, strict=True) for a, b in zip(row, old, strict=True)]
    return sum(squares) / len(squares)


def er_loss(current, replay, weight: float, classes: list[int] | None = None) -> float:
    """CE(f(x), y) + w CE(f(B1.x), B1.y). `current`, `replay`: pairs of logits and labels."""
    return cross_entropy(*current, classes) + weight * cross_entropy(*replay)


def derpp_loss(current, first, second, alpha: float, beta: float, classes: list[int] | None = None) -> float:
    """CE(f(x), y) + a MSE(f(B1.x), B1.logits) + b CE(f(B2.x), B2.y). `first`: pair of logits and stored logits."""
    return cross_entropy(*current, classes) + alpha * mean_squared_error(*first) + beta * cross_entropy(*second)


# --- aggregation -----------------------------------------------------------------------------------------------------


def averaged(
    rule: str, samples: list[int], deltas: list[list[float]], held: list[list[bool]], saw: list[list[bool]], weights: list[float],
    erasable: bool, min_votes: int, shrinkage: float,
) -> tuple[list[Fraction], list[bool]]:  # fmt: skip
    """What one tensor changes by, and where enough devices counted; in exact fractions, one coordinate after another.

    `held[k][j]`: device k's mask holds j. `saw[k][j]`: it may vote on j (it has seen the class, or j is no classifier row).
    `erasable`: coordinates that too few devices hold become 0, unless too few devices could have voted on them.
    The server's own value is one more holder, with `shrinkage` times everybody's samples.
    """
    count = [1 if rule == "count-mean" else n for n in samples]
    own = exact(shrinkage) * sum(count)
    changes, enough = [], []
    for j, weight in enumerate(weights):
        old = Fraction(weight)
        able = [k for k in range(len(samples)) if saw[k][j]]
        holders = [k for k in able if held[k][j]]
        enough.append(len(holders) >= min_votes)
        if not enough[-1]:
            changes.append(-old if erasable and len(able) >= min_votes else Fraction(0))
            continue
        value, total = own * old, own
        for k in able if rule == "zero-filled" else holders:
            value += count[k] * (old + Fraction(deltas[k][j])) if held[k][j] else 0
            total += count[k]
        changes.append(value / total - old)
    return changes, enough


def server_steps(name: str, lr: float, momentum: float, beta1: float, beta2: float, tau: float, rounds: list[tuple]) -> list[float]:
    """How one coordinate moves, round by round. `rounds`: its average u, whether it was voted on, whether it was dropped after."""
    first, second, steps = 0.0, tau * tau, []
    for u, is_voted, is_dropped in rounds:
        if not is_voted:
            steps.append(u)
        elif name == "sgd":
            steps.append(lr * u)
        elif name == "momentum":
            first = momentum * first + u
            steps.append(lr * first)
        else:
            first = beta1 * first + (1 - beta1) * u
            second = beta2 * second + (1 - beta2) * u * u
            steps.append(lr * first / (math.sqrt(second) + tau))
        if is_dropped or (not is_voted and u != 0):
            first, second = 0.0, tau * tau
    return steps


# --- kernels ---------------------------------------------------------------------------------------------------------
# In float64. Loops over places, groups and windows; what is alike for all samples and channels is a product of NumPy's.


def relative_error(found, wanted) -> float:
    """The largest difference, relative to the largest value that is wanted; 0 where both are empty or zero."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    difference = np.abs(found - wanted).max(initial=0.0)
    return 0.0 if difference == 0 else float(difference / max(np.abs(wanted).max(), 1e-30))


def convolution_meetings(size, kernel, stride, pad):
    """Every (p, q, k, l, r, s): output place (p, q) sees input place (r, s) through kernel place (k, l)."""
    rows, columns = ((size[i] + 2 * pad[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    for p in range(rows):
        for q in range(columns):
            for k in range(kernel[0]):
                for l in range(kernel[1]):  # noqa: E741
                    r, s = p * stride[0] - pad[0] + k, q * stride[1] - pad[1] + l
                    if 0 <= r < size[0] and 0 <= s < size[1]:
                        yield p, q, k, l, r, s


def convolution(x, weight, bias, stride, pad):
    """x [B, C, H, W] through weight [O, C, K, L], zeros around the input."""
    size, kernel = x.shape[2:], weight.shape[2:]
    rows, columns = ((size[i] + 2 * pad[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    out = np.zeros((x.shape[0], weight.shape[0], rows, columns))
    for p, q, k, l, r, s in convolution_meetings(size, kernel, stride, pad):  # noqa: E741
        out[:, :, p, q] += x[:, :, r, s] @ weight[:, :, k, l].T
    return out if bias is None else out + bias[None, :, None, None]


def convolution_input_gradient(size, weight, grad, stride, pad):
    """What each input place counts for: the gradient of every output place that sees it, times the weight that it is seen through."""
    out = np.zeros((grad.shape[0], weight.shape[1], *size))
    for p, q, k, l, r, s in convolution_meetings(size, weight.shape[2:], stride, pad):  # noqa: E741
        out[:, :, r, s] += grad[:, :, p, q] @ weight[:, :, k, l]
    return out


def convolution_weight_gradient(x, grad, kernel, stride, pad, places):
    """At flat indices `places` of the weight [O, C, K, L]: the sum of input times output gradient over all that the weight joins."""
    outs, channels, rows, columns = np.unravel_index(np.asarray(places, np.int64), (grad.shape[1], x.shape[1], *kernel))
    found = np.zeros(len(places))
    for p, q, k, l, r, s in convolution_meetings(x.shape[2:], kernel, stride, pad):  # noqa: E741
        here = (rows == k) & (columns == l)
        found[here] += (x[:, channels[here], r, s] * grad[:, outs[here], p, q]).sum(0)
    return found


def normalised(values, epsilon):
    """Mean, biased variance, and the values moved to mean 0 and variance 1 (but for epsilon)."""
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / len(values)
    return mean, variance, (values - mean) / math.sqrt(variance + epsilon)


def normalised_backward(values, grad, epsilon):
    """By the chain rule: each value counts by itself, through the mean and through the variance."""
    mean, variance, _ = normalised(values, epsilon)
    size, deviation = len(values), math.sqrt(variance + epsilon)
    by_variance = sum(grad * (values - mean)) * -0.5 * deviation**-3
    by_mean = -sum(grad) / deviation + by_variance * sum(-2 * (values - mean)) / size
    return grad / deviation + by_variance * 2 * (values - mean) / size + by_mean / size


def batch_norm(x, gamma, beta, epsilon, other, is_active):
    """relu(norm(x) + other) of x [B, C, H, W], each channel normalised over samples and plane."""
    out = np.empty_like(x)
    for c in range(x.shape[1]):
        out[:, c] = (normalised(x[:, c].ravel(), epsilon)[2] * gamma[c] + beta[c]).reshape(x[:, c].shape)
    out = out if other is None else out + other
    return np.maximum(out, 0) if is_active else out


def batch_norm_backward(x, gamma, beta, epsilon, other, is_active, grad):
    """Gradients of x, gamma, beta and the addend."""
    if is_active:
        grad = np.where(batch_norm(x, gamma, beta, epsilon, other, False) > 0, grad, 0)
    to_x, to_gamma, to_beta = np.empty_like(x), np.empty_like(gamma), np.empty_like(beta)
    for c in range(x.shape[1]):
        values, above = x[:, c].ravel(), grad[:, c].ravel()
        to_x[:, c] = normalised_backward(values, above * gamma[c], epsilon).reshape(x[:, c].shape)
        to_gamma[c], to_beta[c] = sum(above * normalised(values, epsilon)[2]), sum(above)
    return to_x, to_gamma, to_beta, grad


def group_norm(x, groups, gamma, beta, epsilon, is_active):
    """relu(norm(x)) of x [B, C, H, W], each sample's channels normalised in groups that lie side by side."""
    out = np.empty_like(x)
    for sample in range(x.shape[0]):
        for part in np.split(np.arange(x.shape[1]), groups):
            inner = normalised(x[sample, part].ravel(), epsilon)[2].reshape(x[sample, part].shape)
            out[sample, part] = inner * gamma[part, None, None] + beta[part, None, None]
    return np.maximum(out, 0) if is_active else out


def group_norm_backward(x, groups, gamma, beta, epsilon, is_active, grad):
    """Gradients of x, gamma and beta."""
    if is_active:
        grad = np.where(group_norm(x, groups, gamma, beta, epsilon, False) > 0, grad, 0)
    to_x, to_gamma, to_beta = np.empty_like(x), np.zeros_like(gamma), np.zeros_like(beta)
    for sample in range(x.shape[0]):
        for part in np.split(np.arange(x.shape[1]), groups):
            values, above = x[sample, part], grad[sample, part]
            inner = (above * gamma[part, None, None]).ravel()
            to_x[sample, part] = normalised_backward(values.ravel(), inner, epsilon).reshape(values.shape)
            to_gamma[part] += (above * normalised(values.ravel(), epsilon)[2].reshape(values.shape)).sum((1, 2))
            to_beta[part] += above.sum((1, 2))
    return to_x, to_gamma, to_beta


def max_pool(x, size, grad=None):
    """Maximum of each whole window; with `grad`, its way back to the first place that holds the maximum."""
    samples, channels, rows, columns = x.shape
    out, back = np.empty((samples, channels, rows // size, columns // size)), np.zeros(x.shape)
    for b, c, p, q in np.ndindex(*out.shape):
        window = [(x[b, c, r, s], r, s) for r in range(p * size, (p + 1) * size) for s in range(q * size, (q + 1) * size)]
        best = window[0]
        for one in window[1:]:
            if one[0] > best[0]:
                best = one
        out[b, c, p, q] = best[0]
        if grad is not None:
            back[b, c, best[1], best[2]] += grad[b, c, p, q]
    return out if grad is None else (out, back)
