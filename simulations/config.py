"""One typed, frozen experiment, complete before the run and stored with the result.

An experiment file is TOML in `simulations/experiments/` (or anywhere); its sections are the dataclasses of the packages that
use them. Unknown keys and wrong types are errors that name the key and the nearest right one.
"""

import dataclasses
import difflib
import json
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from server.aggregate import AggregationConfig
from server.availability import AvailabilityConfig
from server.clock import ClockConfig
from server.energy import EnergyConfig
from server.optimizer import ServerOptimizerConfig
from server.selection import SelectionConfig
from server.settings import FederationConfig
from server.tiers import BudgetConfig
from simulations.errors import ConfigError, WeightsError
from simulations.fleet import FleetConfig
from simulations.sections import DataConfig, StreamConfig
from sparcl_core import tdm
from sparcl_core.change import ChangeConfig
from sparcl_core.ddr import DDRConfig
from sparcl_core.dgm import DGMConfig
from sparcl_core.foreign import printable
from sparcl_core.method import KernelConfig, LearnerConfig, MethodConfig, ModelConfig
from sparcl_core.pretrained import changed, digest
from sparcl_core.tdm import TDMConfig
from sparcl_core.wire import WireConfig

EXPERIMENTS = Path(__file__).parent / "experiments"


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
        evaluate_every: evaluate the global model every so many rounds besides the end of every task; 0: there only.
    """

    name: str = "experiment"
    description: str = ""
    seed: int = 0
    sparsity: float = 0.9
    profile: str = "raspberry-pi-4"
    evaluate_every: int = 1
    target: float = 0.0
    data: DataConfig = field(default_factory=DataConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
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
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(f"name is {self.name!r}: it names the run folder, so take letters, digits, '-', '_' and '.'")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: it must not be negative")
        if not 0 <= self.target < 1:
            raise ValueError(f"target is {self.target}: an accuracy in [0, 1); 0 reports none")
        if self.evaluate_every < 0:
            raise ValueError(f"evaluate_every is {self.evaluate_every}: a number of rounds, or 0 for the end of tasks only")
        tdm.check(self.method.tdm, self.sparsity, self.federation.task_epochs)
        federation = self.federation
        schedule = tdm.Schedule(self.tdm, self.sparsity, federation.task_epochs, federation.local_epochs)
        if self.tdm.enabled and self.sparsity > 0 and not any(schedule.action(1, s) == "adapt" for s in range(schedule.sessions)):
            raise ValueError(
                f"federation.local_epochs is {federation.local_epochs}: with rounds of that length masks would never adapt in a task of "
                f"{federation.task_epochs} epochs; take shorter rounds, or set tdm.enabled=false"
            )
        self._check_together()

    def _check_together(self) -> None:
        """Settings that contradict each other."""
        federation, stream = self.federation, self.stream
        if self.clock.is_buffered and federation.batchnorm != "global":
            raise ValueError(
                f"federation.batchnorm is {federation.batchnorm!r}: in mode {self.clock.mode!r} there is no instant at which all devices "
                f"of a round could be asked for their statistics; take global, or clock.mode=sync"
            )
        if self.clock.over_selection and not federation.cohort_size:
            raise ValueError("clock.over_selection asks more devices than federation.cohort_size, which is 0 (all): set it")
        if self.budget.memory == "fit" and federation.mask == "local":
            raise ValueError("budget.memory is 'fit', but federation.mask is 'local': nested masks need the shared one; take mask=shared")
        if self.tdm.gradient == "last-step" and federation.mask == "local":
            raise ValueError(
                "tdm.gradient is 'last-step', but federation.mask is 'local': such masks change before a round, when the last step was of "
                "another model; take tdm.gradient=mean, or federation.mask=shared"
            )
        if stream.online and self.ddr.enabled:
            raise ValueError(
                "stream.online is true, but ddr.enabled too: data removal judges samples by several passes, and an online stream has one; "
                "set ddr.enabled=false"
            )
        if stream.online and federation.local_epochs > 1:
            raise ValueError(
                f"stream.online is true, but federation.local_epochs is {federation.local_epochs}: a single pass is one epoch; set it to 1"
            )

    @property
    def method(self) -> MethodConfig:
        return MethodConfig(self.model, self.learner, self.tdm, self.ddr, self.dgm, self.sparsity, self.kernels)

    @property
    def rounds(self) -> int:
        """Rounds of all tasks, if the virtual clock does not end the run before."""
        return self.federation.rounds or self.stream.steps * self.federation.rounds_per_task


SECTIONS = (
    DataConfig, StreamConfig, ModelConfig, LearnerConfig, TDMConfig, DDRConfig, DGMConfig,
    FederationConfig, WireConfig, AggregationConfig, ServerOptimizerConfig, KernelConfig,
    FleetConfig, ClockConfig, AvailabilityConfig, EnergyConfig, SelectionConfig, BudgetConfig, ChangeConfig,
)  # fmt: skip
for _section in (*SECTIONS, Experiment):
    # pydantic reads this off standard dataclasses, so the packages below need not know pydantic
    _section.__pydantic_config__ = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
_ADAPTER = TypeAdapter(Experiment)


def available() -> list[str]:
    """Names of the experiments that come with the project."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.toml"))


def load(name: str, overrides: list[str] | None = None, *, finds_weights: bool = True) -> Experiment:
    """The experiment in a file, with `key=value` overrides applied in order.

    Args:
        name: one of `available()`, or a path to a TOML file.
        overrides: `learner.lr=0.1`; values are TOML, a bare word is a string.
        finds_weights: look at the file of `model.weights`: its SHA-256 becomes a setting, or is compared with the one that is. Off on
            devices, which are sent their weights.

    Raises:
        ConfigError: if there is no such file, it is no TOML, or a key or value is wrong.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = EXPERIMENTS / f"{name}.toml"
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"experiment {name!r} is not here; there are {', '.join(available())}, or give a .toml file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    for override in overrides or []:
        _override(tree, override)
    experiment = from_tree(tree)
    return _find_weights(experiment) if finds_weights and experiment.model.weights else experiment


def _find_weights(experiment: Experiment) -> Experiment:
    model, shown = experiment.model, printable(experiment.model.weights)
    try:
        path = Path(model.weights).expanduser().absolute()
        found = digest(path)
    except (OSError, ValueError, RuntimeError) as error:  # a path with a zero byte, a home that nobody has
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(f"model.weights is {shown}: it cannot be read ({reason}); give a safetensors file, or leave it empty") from error
    if model.weights_sha256 not in ("", found):
        raise WeightsError(changed(model.weights, found, model.weights_sha256))
    return replace(experiment, model=replace(model, weights=str(path), weights_sha256=found))


def from_tree(tree: dict[str, Any]) -> Experiment:
    """The experiment in nested dicts."""
    try:
        return _ADAPTER.validate_json(json.dumps(tree, default=str))  # TOML also knows dates
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(item) for item in error.errors())) from error


def to_tree(experiment: Experiment) -> dict[str, Any]:
    """The inverse of `from_tree`; None, which TOML cannot say, is left out."""

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items() if item is not None}
        return list(value) if isinstance(value, tuple) else value

    return clean(dataclasses.asdict(experiment))


def dense_twin(experiment: Experiment) -> Experiment:
    """The same experiment without sparsity of any kind, sent in fp32: same schedule, buffer, augmentation and single-head masking."""
    return replace(
        experiment,
        name=f"{experiment.name}-dense",
        sparsity=0.0,
        tdm=replace(experiment.tdm, enabled=False),
        ddr=replace(experiment.ddr, enabled=False),
        dgm=replace(experiment.dgm, enabled=False, sparsity=None),
        federation=replace(experiment.federation, mask="shared"),
        budget=replace(experiment.budget, memory="refuse" if experiment.budget.memory == "fit" else experiment.budget.memory),
        wire=WireConfig(up="f32", down="f32", importance="f32"),
    )


def _override(tree: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {override!r}: write key=value, for example learner.lr=0.05")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *parents, last = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a section")
    tree[last] = value


def _explain(item: dict) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "unexpected_keyword_argument":
        known = [".".join(key) for key in _keys(Experiment)]
        near = difflib.get_close_matches(where, known, n=1) or [key for key in known if key.split(".")[-1] == where.split(".")[-1]]
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(_siblings(item['loc']))}"
        return f"unknown config key {where!r}; {hint}"
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']}" if where else str(item["ctx"]["error"])
    return f"{where} is {item['input']!r}: {item['msg'].lower()}"


def _keys(section: type) -> list[tuple[str, ...]]:
    keys = []
    for part in dataclasses.fields(section):
        inner = next((s for s in SECTIONS if s is part.type), None)
        keys += [(part.name, *key) for key in _keys(inner)] if inner else [(part.name,)]
    return keys


def _siblings(loc: tuple) -> list[str]:
    section = Experiment
    for part in loc[:-1]:
        section = next(f.type for f in dataclasses.fields(section) if f.name == part)
    return [f.name for f in dataclasses.fields(section)]
