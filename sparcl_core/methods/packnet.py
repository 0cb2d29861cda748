"""PackNet (Mallya and Lazebnik, CVPR 2018, arXiv:1711.05769): a task's weights are pruned, and what is left belongs to it for ever.

Masks are those of `masks.scheme = "packnet"` (see `sparsity.packnet`), of which `sparsity` is the share of a task's free weights that is
pruned: the paper has 0.5 to 0.75. Weights that earlier tasks own take part in the forward pass and do not move; with the first task biases,
normalisation (its statistics included) and all other dense tensors stop moving but for the classifier, of which only the rows of the
task's own classes ever move. So what the network of a task answers never changes behind it.

A test sample goes through the network of its task, which somebody must name: there is no Class-IL accuracy.

In a federation the server assigns owners where a task begins, and sends them with a device's first round of it, as one that was away cannot
know them: whole numbers over active places, entropy-coded. A device keeps them, a byte a place.

Differences: ours prunes within the task's epochs. Dense tensors other than the classifier include a first layer that the model's own rule
leaves dense (`model.sparse`), which the paper prunes, too.
"""

from dataclasses import replace

import numpy as np

from sparcl_core.costs.flops import Passes
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.given import Running
from sparcl_core.sparsity.packnet import MOST_TASKS, Owners, claimed, nobody

OF_TASK = "of-task"  # [] int64, in a federation: the task for whose beginning the owners were sent


class PackNet(LearningMethod):
    name = "packnet"
    owns = labels = once_a_task = needs_task_ids = in_order = needs_shared_masks = True

    def problems(self, situation):
        has = f"learner.method is {self.config.method!r}, but"
        if not self.config.single_head:
            yield f"{has} learner.single_head is false: a task would move the classifier of others; set learner.single_head=true"
        if not situation.sparsity:
            yield f"{has} sparsity is 0: it is the share of a task's weights that is pruned for later tasks; set sparsity=0.5 to 0.75"
        elif situation.scheme != "packnet":
            yield f"{has} masks.scheme {situation.scheme!r}: its masks are of another kind; set masks.scheme=packnet"
        if not situation.is_in_step:
            yield (
                f"{has} devices would be in different tasks at a time, meet a task again, or not be told of its end, and they share the "
                f"weights of one task: leave out stream.boundaries, advance, order, cycles, new_classes_share, start_spread and pace_spread"
            )
        if situation.blur:
            yield f"{has} stream.blur is {situation.blur:g}: classes of a task would come before or behind it; set stream.blur=0"
        if situation.tasks > MOST_TASKS:
            yield f"{has} stream.tasks is {situation.tasks}: at most {MOST_TASKS} can own weights"
        if situation.batchnorm != "global":
            yield f"{has} federation.batchnorm is {situation.batchnorm!r}: statistics must stay as they are; set batchnorm=global"
        if situation.optimizer != "sgd":
            yield f"{has} server_optimizer.name is {situation.optimizer!r}: momentum would move weights that stay; take sgd"
        if situation.fits_memory:
            yield f"{has} budget.memory is 'fit': sparser masks would cut into the networks of tasks; set budget.memory=refuse"
        if situation.evaluate_on != "server":
            yield f"{has} evaluate_on is {situation.evaluate_on!r}: all devices have the same networks; set evaluate_on=server"

    def shapes_down(self, model, classifier):
        return {name: shape for name, shape in model.shapes.items() if name in model.masked}

    def frozen(self, running, classifier):
        owners, shapes = self.owned(running), running.network.layout.shapes
        others = np.ones(running.network.inputs.num_classes, bool)
        others[list(running.data.classes)] = False
        rows = {name: np.broadcast_to(others.reshape(-1, *[1] * (len(shapes[name]) - 1)), shapes[name]) for name in classifier}
        if not any(own.any() for own in owners.values()):
            return rows
        rest = {name: np.ones(shape, bool) for name, shape in shapes.items() if name not in owners and name not in classifier}
        owned = {name: (own > 0) | rows.get(name, False) for name, own in owners.items()}
        return rows | rest | owned

    def owned(self, running: Running) -> Owners:
        """Whose each place is in this session; 0 where it is free.

        Raises:
            ValueError: if this device of a federation was not told for this task.
        """
        arrays = running.memory.arrays
        if not running.received and arrays.get(OF_TASK, running.data.task) != running.data.task:
            raise ValueError(f"task {running.data.task} has begun, and it was not said whose each weight is: the model cannot be trained")
        return running.received or {name: value for name, value in arrays.items() if name != OF_TASK}

    def owners(self, memory):
        return memory.arrays

    def told(self, owners, kept, begins):
        return owners

    def begin_task(self, border):
        memory = border.memory
        if memory.received or memory.arrays:
            return memory, Passes()
        return replace(memory, arrays=nobody(border.masks)), Passes()

    def end_task(self, border):
        """Of a device alone; in a federation it is the server that assigns."""
        memory = border.memory
        if memory.received or OF_TASK in memory.arrays:
            return memory, Passes()
        return replace(memory, arrays=claimed(memory.arrays, border.masks, border.data.task)), Passes()

    def end_session(self, running):
        if not running.received:
            return running.memory.arrays
        return {name: value.astype(np.uint8) for name, value in running.received.items()} | {OF_TASK: np.array(running.data.task)}

    def arrays_bytes(self, model, active, *, buffered, classes):
        """A byte a place, and the number of a task."""
        return sum(model.parameters[name] for name in active) + 8
