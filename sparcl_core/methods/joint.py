"""Joint training: each task is learned on the data of all tasks so far, which a device keeps: the upper bound.

CE(f(x), y)     x, y: a batch of all data so far

mammoth's `joint` trains once, behind the last task; here there is a model after every task, at the price of training on the first task's
data again with every further one. Single-head masking leaves the classes of all tasks so far.
"""

from sparcl_core.methods.base import LearningMethod


class Joint(LearningMethod):
    name = "joint"
    keeps_data = True
