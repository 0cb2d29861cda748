"""What the global model goes by, and what it begins with."""

from dataclasses import dataclass

from server.aggregation.config import AggregationConfig
from server.config import FederationConfig
from server.global_model.optimizer import ServerOptimizerConfig
from sparcl_core.codec import Layout
from sparcl_core.config import MethodConfig
from sparcl_core.sparsity.masks import Masks, State
from sparcl_core.wire.error_feedback import WireConfig


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What the global model goes by. follows_reports: the masks' schedule begins a task when devices say that theirs has changed."""

    method: MethodConfig
    federation: FederationConfig
    wire: WireConfig
    aggregation: AggregationConfig
    optimizer: ServerOptimizerConfig
    seed: int
    follows_reports: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Start:
    """The model that a run begins with.

    Attributes:
        layout: of the whole model.
        classifier: tensors whose first axis is the class.
        weights: inactive ones are 0.
        masks: the shared ones.
        dense: all weights, where devices are to find the first mask (`masks.initial = "snip"`), and `masks` stand in for it; else None.
    """

    layout: Layout
    classifier: tuple[str, ...]
    weights: State
    masks: Masks
    dense: State | None = None
