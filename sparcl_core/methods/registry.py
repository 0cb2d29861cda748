"""Which learning method a name means: one of ours, or `package.module:Class` for one of the user's own."""

import difflib
import importlib
import re

from sparcl_core.config import LearnerConfig
from sparcl_core.foreign import printable
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.der import DER
from sparcl_core.methods.derpp import DERpp
from sparcl_core.methods.er import ER
from sparcl_core.methods.sgd import SGD

METHODS = {method.name: method for method in (SGD, ER, DER, DERpp)}


def find_method(name: str) -> type[LearningMethod]:
    """The class that `name` means.

    Raises:
        ValueError: if there is none, with the value, the rule, and what was probably meant.
    """
    if name in METHODS:
        return METHODS[name]
    shown = f"learner.method is {printable(repr(name), 120)}"
    if ":" not in name:
        *most, last = map(repr, METHODS)
        near = difflib.get_close_matches(name[:100], METHODS, n=1)
        other = f"; did you mean {near[0]!r}?" if near else ", or package.module:Class for a method of your own"
        raise ValueError(f"{shown}: input should be {', '.join(most)} or {last}{other}")
    if not re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        raise ValueError(f"{shown}: a method of your own is written package.module:Class")
    found = _imported(name, shown)
    if not (isinstance(found, type) and issubclass(found, LearningMethod)):
        raise ValueError(f"{shown}, which is no learning method: a class derived from sparcl_core.methods.base.LearningMethod")
    config = found.Config
    if not (isinstance(config, type) and issubclass(config, LearnerConfig) and "__dataclass_fields__" in vars(config)):
        raise ValueError(f"{shown}, whose Config is none: a frozen dataclass derived from sparcl_core.config.LearnerConfig")
    return found


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


def _imported(name: str, shown: str) -> object:
    path, _, wanted = name.partition(":")
    try:
        module = importlib.import_module(path)
    except Exception as error:  # whatever the user's module does while it is read
        why = f"{printable(path)} cannot be imported ({type(error).__name__}: {printable(error)})"
        raise ValueError(f"{shown}, but {why}; it must lie where Python looks for modules, on every node (PYTHONPATH)") from error
    if not hasattr(module, wanted):
        near = difflib.get_close_matches(wanted, vars(module), n=1)
        raise ValueError(f"{shown}, but {path} has no {printable(wanted)}{f'; did you mean {near[0]}?' if near else ''}")
    return getattr(module, wanted)
