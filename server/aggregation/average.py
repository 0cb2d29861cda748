"""Averaging sparse updates by a rule, and what is done around every rule. Pure functions, sums over devices in the order given, in float64.

The rule says what becomes of a coordinate that devices hold (`rule`, with the notation used here). What it is given:

An update that is old has a weight s_k < 1 (asynchronous rounds). With `stale = "shrink"` d_kj counts as s_k d_kj and all else stays: a
round of old updates moves the model less, as FedBuff's sum of s_k d_k over K (Nguyen et al., AISTATS 2022, Algorithm 1; its K updates
count alike, ours by samples). With `stale = "normalise"` n_k counts as n_k s_k throughout: who is older has less to say beside the others,
and three updates of one age move the model as if they were new.

tau = shrinkage * sum_k n_k over all devices: the server's own value is one more holder, with tau samples, so that the fewer devices
hold a coordinate, the closer it stays to the server's value.

Where fewer than `min_votes` devices count, a coordinate is unheld under every rule: u_j = 0, or -w_j with `unheld = "zero"`. Only
masked tensors are zeroed, and only where at least `min_votes` devices could have voted: a classifier row whose class was absent
this round is kept (absence of data says nothing about a weight), and so is a model of which too few devices came back. Dense
tensors and BatchNorm statistics are always kept: no mask speaks against them.

With shared masks every device holds every active coordinate and no update has masks of its own: FedAvg on the active set under
the rules here (`count-mean` without the weights), at the cost of the values sent and one pass over the model.
"""

import numpy as np

from server.aggregation.config import AggregationConfig
from server.aggregation.registry import make_rule
from server.aggregation.rule import Changes, Rule, Support
from server.aggregation.update import Update
from sparcl_core.codec import Layout
from sparcl_core.sparsity.masks import State


def chosen(updates: list[Update], layout: Layout, config: AggregationConfig) -> list[Update]:
    """Those of a round that count at all, by the rule: in the average, in the votes, and in all else that follows from them."""
    return make_rule(config).chosen(updates, layout) if updates else []


def mean_update(updates: list[Update], weights: State, layout: Layout, voting_rows: tuple[str, ...], *, config: AggregationConfig) -> State:
    """What is to be added to `weights`: u, float64 arrays in the layout's shapes.

    Args:
        updates: sorted by device; see `chosen`.
        weights: the server's w, any float dtype; read by `zero-filled` and `unheld = "zero"` only.
        voting_rows: names of the tensors whose first axis is the class, and of whose rows only those devices count that have seen it.
            What a device sends for rows of other classes is left out, not refused: a dense softmax moves every row.

    Raises:
        ValueError: if there is no update, they are out of order, all samples are 0, or a device sent a value where its mask is off.
    """
    rule = make_rule(config)
    counts = _counts(rule, _in_order(updates), layout, config)
    scales = [1.0 if config.stale == "normalise" else update.weight for update in updates]
    tau = config.shrinkage * sum(counts)
    result = {}
    for name, shape in layout.shapes.items():
        support = Support.of(name, updates, counts, layout, row_voting=name in voting_rows)
        rows = support.electorate.shape[0]
        extent = (rows, layout.size(name) // rows)
        old = weights[name].reshape(extent)
        changes = Changes(
            name=name, shape=extent, updates=updates, counts=counts, scales=scales, support=support, old=old, tau=tau, layout=layout
        )
        u = rule.combine(changes)
        unheld = support.holders < config.min_votes
        np.copyto(u, 0.0, where=unheld)
        if config.unheld == "zero" and name in layout.masked - layout.statistics:
            erased = unheld & (support.electorate >= config.min_votes)
            if erased.any():
                np.copyto(u, -old, where=erased)
        result[name] = u.reshape(shape)
    return result


def voted(updates: list[Update], layout: Layout, voting_rows: tuple[str, ...], config: AggregationConfig) -> dict[str, np.ndarray]:
    """Which coordinates at least `min_votes` devices count for: bool arrays in the layout's shapes. Arguments as in `mean_update`."""
    counts = _counts(make_rule(config), _in_order(updates), layout, config)
    result = {}
    for name, shape in layout.shapes.items():
        support = Support.of(name, updates, counts, layout, row_voting=name in voting_rows)
        enough = support.holders >= config.min_votes
        result[name] = np.broadcast_to(enough, (enough.shape[0], layout.size(name) // enough.shape[0])).copy().reshape(shape)
    return result


def _in_order(updates: list[Update]) -> list[Update]:
    """Updates that are fit to be averaged."""
    order = [update.device for update in updates]
    if not updates or order != sorted(set(order)):
        raise ValueError(f"updates of devices {order}: at least one, each device once, in device order")
    if sum(update.samples for update in updates) <= 0:
        raise ValueError("no update has a sample behind it: they cannot be weighted")
    return updates


def _counts(rule: Rule, updates: list[Update], layout: Layout, config: AggregationConfig) -> list[float]:
    """n_k by device, by the rule; times s_k where weights are normalised."""
    counts = rule.counts(updates, layout)
    if config.stale == "normalise":
        return [count * update.weight for count, update in zip(counts, updates, strict=True)]
    return counts
