"""Which averaging rule a name means: one of ours, one of an installed package, or `package.module:name` for one of the user's own."""

from collections.abc import Callable
from typing import Any

import numpy as np

from server.aggregation.config import RULES, AggregationConfig
from server.aggregation.rule import Changes, Rule
from sparcl_core.foreign import printable
from sparcl_core.plugins.options import check_options


class FunctionRule(Rule):
    """A function from the `Changes` of a tensor, and options by name, to u: an array of `changes.shape`, or one that broadcasts to it."""

    def __init__(self, settings: AggregationConfig, function: Callable[..., Any]):
        super().__init__(settings)
        self.function = function

    def combine(self, changes: Changes) -> np.ndarray:
        """As of every rule. Raises ValueError if the function returns anything else, with the tensor's name."""
        returned = self.function(changes, **self.settings.options)
        shown = f"aggregation.rule {printable(self.settings.rule, 120)} was given the changes of {changes.name} and has returned"
        try:
            found = np.array(np.broadcast_to(np.asarray(returned, np.float64), changes.shape))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{shown} {printable(repr(returned), 120)}: an array of shape {changes.shape} is needed") from error
        np.copyto(found, 0.0, where=changes.support.holders == 0)  # nothing is done there, and the median of nothing is NaN
        if not np.isfinite(found).all():
            raise ValueError(f"{shown} values that are not finite: 0 leaves a weight as it is")
        return found


def make_rule(config: AggregationConfig) -> Rule:
    """The rule of these settings.

    Raises:
        ValueError: if there is none of that name, it is neither a function nor a `Rule`, or its options do not fit it.
    """
    found = RULES.find(config.rule)
    is_class = isinstance(found, type)
    shown = f"aggregation.rule is {printable(repr(config.rule), 120)}"
    rule = "a function from server.aggregation.rule.Changes to an array, or a class derived from server.aggregation.rule.Rule"
    if not callable(found) or (is_class and not issubclass(found, Rule)):
        raise ValueError(f"{shown}, which is no rule: {rule}")
    check_options(found, config.options, setting="aggregation.options", given=1, needed=f"{shown}: a rule is {rule}")
    return found(config, **config.options) if is_class else FunctionRule(config, found)
