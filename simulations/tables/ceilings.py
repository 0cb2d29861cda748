"""How large a saving can get at all: what the dense share of the network and the data share leave.

FLOPs: the sparse layers cost 2 (1 - s) + (1 - q) of 3 passes, everything else its dense cost, on the share of the data
that DDR leaves over a whole task; importance and mask updates are not in it. Bytes: every weight of one gradient mask (up), or every
active one (down), and the dense rest at the width of their values, no positions, header, importance or control. Entropy coding
and values that round to 0 can beat a ceiling of bytes; they are why one is beaten.
"""

from dataclasses import dataclass

from simulations.build import World
from sparcl_core.codec import WIDTH
from sparcl_core.costs.flops import per_sample
from sparcl_core.learner import Learner
from sparcl_core.sparsity import ddr
from sparcl_core.sparsity.densities import active_counts
from sparcl_core.sparsity.masks import num_active


@dataclass(frozen=True)
class Ceilings:
    """Largest possible savings, dense over sparse."""

    flops: float
    up_bytes: float
    down_bytes: float
    data_share: float


def data_share(config: ddr.DDRConfig, epochs: int) -> float:
    """Mean share of a task's data that is trained on, over its epochs, where nothing is protected."""
    stages, length = ddr.num_stages(config, epochs), ddr.stage_length(config, epochs)
    if not stages:
        return 1.0
    return sum(1 - config.remove * min(epoch // length, stages) / stages for epoch in range(epochs)) / epochs


def ceilings(world: World) -> Ceilings:
    """The ceilings of an experiment; 1 where it is dense."""
    e = world.experiment
    learner = Learner(e.method, world.data.inputs, e.federation.task_epochs, e.seed)
    sizes = {name: learner.layout.size(name) for name in learner.layout.shapes if name in learner.layout.masked}
    active = active_counts(e.masks.densities, {name: learner.layout.shapes[name] for name in sizes}, e.method.first_sparsity)
    updated = active
    if learner.draws_gradient_masks and e.masks.densities == "uniform":
        updated = {name: num_active(size, learner.gradient_sparsity) for name, size in sizes.items()}
    elif learner.draws_gradient_masks:  # as large a share of what is active in every layer
        share = (1 - learner.gradient_sparsity) / (1 - e.sparsity)
        updated = {name: num_active(size, 1 - share * active[name] / size) for name, size in sizes.items()}
    dense, sparse = per_sample(learner.layers, sizes, sizes), per_sample(learner.layers, active, updated)
    share = data_share(e.ddr, e.federation.task_epochs)
    rest = sum(learner.layout.size(name) for name in learner.layout.shapes) - sum(sizes.values())
    up = 8 * learner.layout.dense_bytes / (WIDTH[e.wire.up] * (rest + sum(updated.values())))
    down = 8 * learner.layout.dense_bytes / (WIDTH[e.wire.down] * (rest + sum(active.values())))
    return Ceilings((dense.sparse + dense.dense) / (sparse.sparse + sparse.dense) / share, up, down, share)
