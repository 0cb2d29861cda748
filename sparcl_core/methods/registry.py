"""Which learning method, or correction of its steps, a name means: one of ours, one of an installed package, or `package.module:Class`."""

from sparcl_core.config import CorrectionConfig, LearnerConfig
from sparcl_core.foreign import printable
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.correction import Correction
from sparcl_core.plugins.kinds import Kind

OURS = {
    "sgd": "sparcl_core.methods.sgd:SGD",
    "joint": "sparcl_core.methods.joint:Joint",
    "ewc_on": "sparcl_core.methods.ewc_on:EWCOnline",
    "lwf": "sparcl_core.methods.lwf:LwF",
    "agem": "sparcl_core.methods.agem:AGEM",
    "icarl": "sparcl_core.methods.icarl:ICaRL",
    "fdr": "sparcl_core.methods.fdr:FDR",
    "er": "sparcl_core.methods.er:ER",
    "der": "sparcl_core.methods.der:DER",
    "derpp": "sparcl_core.methods.derpp:DERpp",
    "packnet": "sparcl_core.methods.packnet:PackNet",
    "lps": "sparcl_core.methods.lps:LPS",
    "flwf2t": "sparcl_core.methods.flwf2t:FLwF2T",
    "refed": "sparcl_core.methods.refed:ReFed",
    "fedweit": "sparcl_core.methods.fedweit:FedWeIT",
    "fedspace": "sparcl_core.methods.fedspace:FedSpace",
}
OUR_CORRECTIONS = {
    "none": "sparcl_core.methods.correction:Correction",
    "fedprox": "sparcl_core.methods.fedprox:FedProx",
    "scaffold": "sparcl_core.methods.scaffold:Scaffold",
}
OF_BUFFERS = ("buffer_share", "buffer_size", "replay_from", "joint_forward")  # keys of [learner] for methods that draw from one
METHODS = Kind(setting="learner.method", noun="method", group="sparcl.methods", ours=OURS)

CORRECTIONS = Kind(setting="federation.correction", noun="correction", group="sparcl.corrections", ours=OUR_CORRECTIONS)


def find_method(name: str) -> type[LearningMethod]:
    """The class that `name` means.

    Raises:
        ValueError: if there is none, with the value, the rule, and what was probably meant.
    """
    found = METHODS.find(name)
    shown = f"learner.method is {printable(repr(name), 120)}"
    if not (isinstance(found, type) and issubclass(found, LearningMethod)):
        raise ValueError(f"{shown}, which is no learning method: a class derived from sparcl_core.methods.base.LearningMethod")
    config = found.Config
    if not (isinstance(config, type) and issubclass(config, LearnerConfig) and "__dataclass_fields__" in vars(config)):
        raise ValueError(f"{shown}, whose Config is none: a frozen dataclass derived from sparcl_core.config.LearnerConfig")
    return found


def readers() -> dict[str, tuple[str, ...]]:
    """Of the keys of `LearnerConfig` that not all methods read: which of ours do."""
    found: dict[str, list[str]] = {}
    for name in OURS:
        method = find_method(name)
        for key in (*method.reads, *(OF_BUFFERS if method.draws else ())):
            found.setdefault(key, []).append(name)
    return {key: tuple(names) for key, names in found.items()}


def make_method(config: LearnerConfig) -> LearningMethod:
    """The method of these settings.

    Raises:
        ValueError: if there is none of that name, or its own settings are missing.
    """
    method = find_method(config.method)
    if not isinstance(config, method.Config):
        own = f"{method.Config.__module__}.{method.Config.__qualname__}"
        raise ValueError(f"the settings of the learner are a {type(config).__name__}: learner.method {config.method!r} has its own, {own}")
    return method(config)


def make_correction(config: CorrectionConfig, lr: float) -> Correction:
    """The correction of these settings, for devices of this learning rate.

    Raises:
        ValueError: if there is none of that name.
    """
    found = CORRECTIONS.find(config.name)
    if not (isinstance(found, type) and issubclass(found, Correction)):
        shown = f"federation.correction is {printable(repr(config.name), 120)}"
        raise ValueError(f"{shown}, which is none: a class derived from sparcl_core.methods.correction.Correction")
    return found(config, lr)
