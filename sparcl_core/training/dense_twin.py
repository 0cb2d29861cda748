"""What the dense twin of a session would have computed meanwhile, and what a step computes."""

from sparcl_core.costs.flops import Flops, Passes, SampleFlops, dense_forward, per_sample, sizes
from sparcl_core.methods.given import Arrays, Running
from sparcl_core.training.setup import Setup


class DenseTwin:
    """FLOPs of the dense twin for the same epochs: all data, every weight, a buffer that was offered every sample."""

    def __init__(self, setup: Setup, running: Running):
        whole = sizes(running.masks)
        self.setup, self.running, self.offered = setup, running, running.memory.twin_offered
        self.cost, self.forward = per_sample(setup.layers, whole, whole), dense_forward(setup.layers)
        self.weights = sum(setup.held.parameters.values())
        self.flops, self.is_spent = Flops(), False

    def epoch(self) -> None:
        setup, method, memory = self.setup, self.setup.method, self.running.memory
        replays = setup.replays_in(self.running.data.task)
        for batch in setup.batch_sizes(memory.ddr.kept.size):
            drawn = setup.draw_size(batch, method.held_by_twin(memory.buffer, self.offered)) if replays else 0
            flops = step_flops(setup, self.cost, batch, drawn, arrays=memory.arrays, weights=self.weights)
            budget = setup.config.flops_budget
            self.is_spent |= bool(budget and self.flops.steps and self.flops.total + flops.total > budget)
            if self.is_spent:
                break
            self.flops += flops + Flops(paper=self.forward * method.paper_passes(method.step_passes(batch, drawn, memory.arrays)))
            self.offered += batch

    def session(self) -> Flops:
        """Before and behind the steps."""
        memory, method = self.running.memory, self.setup.method
        passes = self.setup.passes_between(self.running, memory.ddr.kept.size, method.held_by_twin(memory.buffer, self.offered))
        own = method.session_flops(self.weights, memory.arrays)
        between = passes.flops + own + self.setup.correction.session_flops(self.weights)
        paper = method.paper_passes(Passes(taught=passes.taught))
        return self.cost.teach(passes.taught) + Flops(method=between, paper=self.forward * paper)


def step_flops(setup: Setup, cost: SampleFlops, batch: int, drawn: int, *, arrays: Arrays, weights: int) -> Flops:
    """FLOPs of a step on `batch` samples of the task and draws of `drawn` each, at `cost` a sample, with so many weights."""
    passes = setup.method.step_passes(batch, drawn, arrays)
    method = setup.method.step_flops(weights, passes.replayed, arrays) + setup.correction.step_flops(weights)
    return cost.step(passes.trained) + cost.teach(passes.taught) + Flops(method=method)
