"""One typed, frozen experiment, complete before the run and stored with the result.

Its sections are the dataclasses of the packages that use them; `simulations.config.loading` reads it from a TOML file in
`simulations/experiments/`, or anywhere.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Literal

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
from simulations.config.data import DataConfig, contradictions
from simulations.config.sections import FleetConfig, StreamConfig
from sparcl_core.config import CorrectionConfig, KernelConfig, LearnerConfig, MethodConfig, ModelConfig
from sparcl_core.foreign import printable
from sparcl_core.methods.base import LearningMethod
from sparcl_core.methods.registry import make_correction, make_method
from sparcl_core.methods.situation import Situation
from sparcl_core.sparsity.ddr import DDRConfig
from sparcl_core.sparsity.dgm import DGMConfig
from sparcl_core.sparsity.settings import MaskConfig
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
        if problems := [*self._schedule(), *self._contradictions()]:  # they count with what was checked above
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
        found_by_name = (
            (make_method, self.learner), (make_correction, correction, self.learner.lr), (make_rule, self.aggregation),
            (find_policy, self.selection), (check_kind, self.availability),
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

    def _schedule(self) -> Iterator[str]:
        """What the rules of the masks' scheme say of sparsity and the length of tasks."""
        federation, name = self.federation, self.masks.scheme
        try:
            scheme = self.method.scheme(federation.task_epochs, self.seed)
            scheme.check()
        except ValueError as error:
            yield str(error)
            return
        if self.sparsity == 0 or name == "static" or (name == "tdm" and not self.tdm.enabled):
            return
        schedule = scheme.schedule(federation.local_epochs)
        if not any(schedule.action(1, session) == "adapt" for session in range(schedule.sessions)):
            off = {"tdm": "tdm.enabled=false", "packnet": "a smaller masks.until"}.get(name, "masks.scheme=static")
            yield (
                f"federation.local_epochs is {federation.local_epochs}: with rounds of that length masks would never adapt in a task of "
                f"{federation.task_epochs} epochs; take shorter rounds, or set {off}"
            )

    def _contradictions(self) -> Iterator[str]:
        """Settings that contradict each other."""
        federation, stream = self.federation, self.stream
        yield from self._federated()
        yield from self._of_the_method()
        yield from contradictions(self.data, stream)
        if self.clock.is_buffered and federation.batchnorm not in ("global", "fedbn"):
            yield (
                f"federation.batchnorm is {federation.batchnorm!r}: in mode {self.clock.mode!r} there is no instant at which all devices "
                f"of a round could be asked for their statistics; take global, or clock.mode=sync"
            )
        if self.clock.over_selection and not federation.cohort_size:
            yield "clock.over_selection asks more devices than federation.cohort_size, which is 0 (all): set it"
        asked = self.clock.buffer_size or min(federation.cohort_size or stream.devices, stream.devices)
        if asked < (least := make_rule(self.aggregation).least_updates):
            yield (
                f"aggregation.rule is {self.aggregation.rule!r}, which needs {least} updates to compare and gets {asked} in a round: ask "
                f"more devices, or count on fewer that are hostile (aggregation.options.byzantine)"
            )
        if self.budget.memory == "fit" and federation.mask == "local":
            yield "budget.memory is 'fit', but federation.mask is 'local': nested masks need the shared one; take mask=shared"
        if self.budget.memory == "fit" and self.masks.densities != "uniform":
            yield (
                f"budget.memory is 'fit', but masks.densities {self.masks.densities!r}: nested masks thin all layers alike; "
                f"take masks.densities=uniform"
            )
        if self.masks.initial == "snip" and self.model.weights:
            yield (
                "masks.initial is 'snip', but model.weights names a file: devices draw the dense network that they rank from the seed, and "
                "have no such file; take masks.initial=magnitude, or leave model.weights empty"
            )
        if self.masks.scheme == "tdm" and self.tdm.gradient == "last-step" and federation.mask == "local":
            yield (
                "tdm.gradient is 'last-step', but federation.mask is 'local': such masks change before a round, when the last step was of "
                "another model; take tdm.gradient=mean, or federation.mask=shared"
            )
        if stream.online and self.ddr.enabled:
            yield (
                "stream.online is true, but ddr.enabled too: data removal judges samples by several passes, and an online stream has one; "
                "set ddr.enabled=false"
            )
        if stream.online and federation.local_epochs > 1:
            yield (
                f"stream.online is true, but federation.local_epochs is {federation.local_epochs}: a single pass is one epoch; set it to 1"
            )

    def _federated(self) -> Iterator[str]:
        """Where the correction of the devices' steps, or what a method sends, does not fit the rest."""
        federation, method = self.federation, make_method(self.learner)
        correction = make_correction(self.method.correction, self.learner.lr)
        named = f"federation.correction is {federation.correction!r}", f"learner.method is {self.learner.method!r}"
        for shown, sender in zip(named, (correction, method), strict=True):
            if sender.in_order and self.clock.is_buffered:
                yield (
                    f"{shown}, but clock.mode is {self.clock.mode!r}: what its devices send beside their updates is of one round, and "
                    f"there updates of several are averaged; take clock.mode=sync"
                )
            if sender.needs_shared_masks and federation.mask == "local":
                yield f"{shown}, but federation.mask is 'local': its arrays are over masks that all devices share; take mask=shared"
        if correction.all_gradients and self.method.is_sparse and self.dgm.enabled:
            yield (
                f"federation.correction is {federation.correction!r}, but dgm.enabled is true: it needs the gradients of all active "
                f"weights, of which DGM computes a part; set dgm.enabled=false"
            )
        yield from _of_networks_by_task(self, method)
        if self.evaluate_on == "server" and (federation.batchnorm == "fedbn" or method.personal):
            why = "federation.batchnorm is 'fedbn'" if federation.batchnorm == "fedbn" else f"learner.method is {self.learner.method!r}"
            yield f"{why}, where every device has a model of its own, but evaluate_on is 'server': set evaluate_on=devices"
        if federation.batchnorm == "fedbn" and self.model.weights:
            yield "federation.batchnorm is 'fedbn', but model.weights names a file: what it has of BatchNorm would reach no device"

    def _of_the_method(self) -> Iterator[str]:
        """Why the learning method cannot run in this situation."""
        method, stream, federation = make_method(self.learner), self.stream, self.federation
        at_once = stream.advance == "rounds" and not stream.pace_spread and not stream.start_spread
        alike = stream.order == "same" and stream.cycles == 1 and stream.new_classes_share == 1
        situation = Situation(
            tasks=stream.tasks, blur=stream.blur, sparsity=self.sparsity, scheme=self.masks.scheme,
            is_in_step=stream.boundaries == "known" and at_once and alike, batchnorm=federation.batchnorm, evaluate_on=self.evaluate_on,
            optimizer=self.server_optimizer.name, fits_memory=self.budget.memory == "fit",
        )  # fmt: skip
        yield from method.problems(situation)
        if self.method.scheme(federation.task_epochs, self.seed).needs == "owners" and not method.owns:
            yield (
                f"masks.scheme is {self.masks.scheme!r}, but learner.method {self.learner.method!r}: these masks are for methods whose "
                f"tasks own weights; set learner.method=packnet, or another masks.scheme"
            )

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


def _of_networks_by_task(experiment: Experiment, method: LearningMethod) -> Iterator[str]:
    """What does not fit a method whose devices have a network for each task, or that moves weights by itself."""
    shown = f"learner.method is {experiment.learner.method!r}"
    if method.needs_task_ids and experiment.stream.setting != "task-il":
        setting = experiment.stream.setting
        yield f"{shown}, which must be told at a test which task an image is of: stream.setting is {setting!r}, take task-il"
    if method.moves_weights and experiment.sparsity:
        yield f"{shown}, whose steps no mask can follow, but sparsity is {experiment.sparsity}: set sparsity=0"
    if method.moves_weights and experiment.federation.correction != "none":
        yield f"{shown}, whose steps nothing corrects: set federation.correction=none"


SECTIONS = tuple(part.type for part in fields(Experiment) if is_dataclass(part.type))
for _section in (*SECTIONS, Experiment):
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
