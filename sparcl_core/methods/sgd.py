"""Plain SGD, which does nothing against forgetting: the lower bound.

CE(f(x), y)     x, y: the current batch
"""

from sparcl_core.methods.base import LearningMethod


class SGD(LearningMethod):
    name = "sgd"
