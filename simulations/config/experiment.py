"""One typed, frozen experiment, complete before the run and stored with the result.

Its sections are the dataclasses of the packages that use them; `simulations.config.loading` reads it from a TOML file in
`simulations/experiments/`, or anywhere.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import ClassVar, Literal

from server.aggregation.config import AggregationConfig
from server.aggregation.registry import make_rule
from server.config import FederationConfig
from server.fleet.availability import AvailabilityConfig, check_kind
from server.fleet.charging import EnergyConfig
from server.global_model.optimizer import ServerOptimizerConfig
from server.rounds.clock import ClockConfig
from server.selection.policies import SelectionConfig, find_policy
from server.selection.sparsity_tiers import BudgetConfig
from simulations.config import largest
from simulations.config.contradictions import contradictions, schedule
from simulations.config.data import DATA, DataConfig
from simulations.config.sections import FleetConfig, StreamConfig
from sparcl_core.config import MODELS, CorrectionConfig, KernelConfig, LearnerConfig, MethodConfig, ModelConfig
from sparcl_core.foreign import printable
from sparcl_core.methods.registry import make_correction, make_method
from sparcl_core.plugins.kinds import expect_module
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.settings import SCHEMES, MaskConfig
from sparcl_core.sparsity.tdm import TDMConfig
from sparcl_core.task_change import ChangeConfig
from sparcl_core.wire.error_feedback import WireConfig

LONGEST_NAME = 100  # bytes; a folder's name has 255, and settings and the seed come behind it


@dataclass(frozen=True)
class Experiment:
    """A whole experiment.

    Attributes:
        name, description: what it is.
        seed: the only source of randomness.
        sparsity: s, share of the maskable weights that is absent; 0 trains the dense network.
        profile: device profile of all devices, a file in simulations/profiles/ or a path to one; `fleet` can mix several.
        target: Class-IL accuracy on the test data of all tasks (Task-IL in the setting task-il) whose price is reported: hours, joules and
            bytes until it was reached first. 0: none.
        evaluate_every: evaluate the model every so many rounds besides the end of every task; 0: there only.
        evaluate_on: `server`, the global model; or `devices`, the model that each device would use, on the tasks that it has had, and the
            mean over devices is reported (docs/federated-methods.md).
        evaluate_devices: so many devices, drawn for every evaluation; 0: all that have trained. Of `evaluate_on = "devices"`.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {"no fleet.mix": ("profile",), "no fleet.file": ("profile",)}
    name: str = "experiment"
    description: str = ""
    seed: int = 0
    sparsity: float = 0.9
    profile: str = "raspberry-pi-4"
    evaluate_every: int = 1
    evaluate_on: Literal["server", "devices"] = "server"
    evaluate_devices: int = 0
    target: float = 0.0
    data: DataConfig = field(default_factory=DataConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    tdm: TDMConfig = field(default_factory=TDMConfig)
    ddr: DDRConfig = field(default_factory=DDRConfig)
    dgm: DGMConfig = field(default_factory=DGMConfig)
    federation: FederationConfig = field(default_factory=FederationConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    aggregation: AggregationConfig = field(default_factory=AggregationConfig)
    server_optimizer: ServerOptimizerConfig = field(default_factory=ServerOptimizerConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)
    fleet: FleetConfig = field(default_factory=FleetConfig)
    clock: ClockConfig = field(default_factory=ClockConfig)
    availability: AvailabilityConfig = field(default_factory=AvailabilityConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    change: ChangeConfig = field(default_factory=ChangeConfig)

    def __post_init__(self):
        if problems := [*self._own(), *largest.too_large(self)]:
            raise ValueError("; ".join(problems))
        if problems := [*schedule(self), *contradictions(self)]:  # they count with what was checked above
            raise ValueError("; ".join(problems))

    def _own(self) -> Iterator[str]:
        """What is wrong with the settings that belong to no section."""
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            yield f"name is {printable(repr(self.name))}: it names the run folder, so take letters, digits, '-', '_' and '.'"
        if len(self.name.encode(errors="replace")) > LONGEST_NAME:
            yield f"name has {len(self.name)} characters: it names the run folder, so take at most {LONGEST_NAME} bytes"
        if self.seed < 0:
            yield f"seed is {self.seed}: it must not be negative"
        if not 0 <= self.target < 1:
            yield f"target is {self.target}: an accuracy in [0, 1); 0 reports none"
        correction = CorrectionConfig(self.federation.correction, self.federation.mu)
        named = ((MODELS, self.model.name), (DATA, self.data.name), (SCHEMES, self.masks.scheme))
        own = [(kind, name) for kind, name in named if name not in kind.ours]
        found_by_name = (
            (make_method, self.learner), (make_correction, correction, self.learner.lr), (make_rule, self.aggregation),
            (find_policy, self.selection), (check_kind, self.availability),
            *((expect_module, kind, name) for kind, name in own),
        )  # fmt: skip
        for find, *settings in found_by_name:
            try:
                find(*settings)
            except ValueError as error:
                yield str(error)
        if self.evaluate_devices < 0:
            yield f"evaluate_devices is {self.evaluate_devices}: a number of devices, or 0 for all that have trained"
        if self.evaluate_devices and self.evaluate_on == "server":
            yield f"evaluate_devices is {self.evaluate_devices}, but evaluate_on is 'server': set evaluate_on=devices, or leave it at 0"
        if self.evaluate_every < 0:
            yield f"evaluate_every is {self.evaluate_every}: a number of rounds, or 0 for the end of tasks only"

    @property
    def method(self) -> MethodConfig:
        correction = CorrectionConfig(self.federation.correction, self.federation.mu)
        return MethodConfig(
            self.model, self.learner, self.tdm, self.ddr, self.dgm, self.sparsity, self.kernels, self.masks, correction
        )  # fmt: skip

    @property
    def rounds(self) -> int:
        """Rounds of all tasks, if the virtual clock does not end the run before."""
        return self.federation.rounds or self.stream.steps * self.federation.rounds_per_task


SECTIONS: dict[str, type] = {part.name: part.type for part in fields(Experiment) if is_dataclass(part.type)}
for _section in (*SECTIONS.values(), Experiment):
    # pydantic reads this off standard dataclasses, so the packages below need not know pydantic
    _section.__pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


def dense_twin(experiment: Experiment) -> Experiment:
    """The same experiment without sparsity of any kind, sent in fp32: same schedule, buffer, augmentation and single-head masking."""
    return replace(
        experiment,
        name=f"{experiment.name}-dense",
        sparsity=0.0,
        masks=MaskConfig(),
        tdm=replace(experiment.tdm, enabled=False),
        ddr=replace(experiment.ddr, enabled=False),
        dgm=replace(experiment.dgm, enabled=False, sparsity=None),
        federation=replace(experiment.federation, mask="shared"),
        budget=replace(experiment.budget, memory="refuse" if experiment.budget.memory == "fit" else experiment.budget.memory),
        wire=WireConfig(up="f32", down="f32", importance="f32"),
    )


def left_on(experiment: Experiment) -> list[str]:
    """What an experiment of sparsity 0 still does that its dense twin does not, in words; of others nothing."""
    found = []
    if experiment.sparsity == 0:
        twin = dense_twin(experiment)
        if experiment.ddr.enabled:
            found.append("data removal (ddr)")
        if (wire := experiment.wire) != twin.wire:
            found.append(f"{wire.up} updates up and {wire.down} down (wire)")
    return found
