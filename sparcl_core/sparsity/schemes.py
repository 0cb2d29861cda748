"""Which scheme `masks.scheme` names."""

from sparcl_core.sparsity.packnet import PackNet
from sparcl_core.sparsity.rigl import RigL
from sparcl_core.sparsity.scheme import Scheme
from sparcl_core.sparsity.set import SET
from sparcl_core.sparsity.settings import MaskConfig
from sparcl_core.sparsity.tdm import TDM, TDMConfig


def make_scheme(config: MaskConfig, tdm: TDMConfig, sparsity: float, *, task_epochs: int, seed: int) -> Scheme:
    """The scheme of a run; a dense network has no masks that could change."""
    common = {"task_epochs": task_epochs, "seed": seed}
    if sparsity == 0 or config.scheme == "static":
        return Scheme(config, sparsity, **common)
    if config.scheme == "tdm":
        return TDM(config, sparsity, **common, tdm=tdm)
    return {"set": SET, "rigl": RigL, "packnet": PackNet}[config.scheme](config, sparsity, **common)
