"""Sections of an experiment that belong to no part of it: how samples become streams, and who the devices are. For [data]: `.data`."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

WIDEST = 3.0  # sigma of a spread; with it one device in six is more than 20 times as fast as its profile


@dataclass(frozen=True)
class StreamConfig:
    """How the data becomes the devices' streams; docs/streams.md has sources and examples.

    Attributes:
        tasks: the classes are cut into this many tasks of equal size, in class order; in `domain-il` the number of domains.
        devices: number of devices.
        partition: `dirichlet` (every sample to one device, label skew per task), `iid` (every sample to one device, evenly), `drawn`
            (every device draws its own samples, label skew per task, and devices share samples: for fleets larger than the data),
            `shards` (label-sorted shards), `pathological` (a few classes of each task per device), `natural` (a device per id of
            data.id_column), or `sizes` (iid, but devices of different size).
        alpha: concentration of the Dirichlet distribution of `dirichlet` and `drawn`; small is skewed.
        samples: of each task that a device draws; for `drawn` only, else 0.
        shards_per_device: of each task; read by `shards` only.
        classes_per_device: of each task; read by `pathological` only.
        size_law: the n-th of the devices by size has n, n^2 or e^n units of data; read by `sizes` only.
        setting: `class-il`, `task-il` (the same stream, judged by the accuracy within a task's classes) or `domain-il` (every task has all
            classes and the same samples, its images transformed by `domain`).
        domain: `permuted` or `rotated`; read in `domain-il` only, see `sparcl_core.domains`.
        rotation: degrees from one task to the next; read by `rotated` only.
        online: a task comes in federation.rounds_per_task pieces, one a round, and each is seen in that round only.
        label_rate: share of a device's samples of each step that have a label, at least one; the others are not there for it, as all
            methods here learn from labels.
        blur: share of every task's samples on a device that are exchanged for samples of its other tasks.
        order: `same`, or `shuffled`: every device has its own order of tasks.
        cycles: the sequence of tasks is run through so many times, with the same samples.
        new_classes_share: share of the devices that go on to further tasks; the others meet their first task again and again.
        boundaries: whether devices are told where a task ends, `known`, or must find out, `detected`.
        advance: when a device moves on to its next step: `rounds` (after federation.rounds_per_task rounds of the server), `time` (after
            `task_hours`), or `participation` (after that many rounds of its own).
        task_hours: virtual hours of a step; read by `time` only.
        pace_spread: standard deviation of the logarithm of a device's speed through its stream; 0: all alike.
        start_spread: devices begin up to so many steps late, uniformly; 0: at once.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {
        "stream.partition=dirichlet|drawn": ("alpha",),
        "stream.partition=shards": ("shards_per_device",),
        "stream.partition=pathological": ("classes_per_device",),
        "stream.partition=sizes": ("size_law",),
        "stream.setting=domain-il": ("domain", "rotation"),
        "stream.domain=rotated": ("rotation",),
        "stream.advance=time": ("task_hours",),
    }
    tasks: int = 5
    devices: int = 10
    partition: Literal["dirichlet", "iid", "drawn", "shards", "pathological", "natural", "sizes"] = "dirichlet"
    alpha: float = 1.0
    samples: int = 0
    shards_per_device: int = 2
    classes_per_device: int = 2
    size_law: Literal["linear", "square", "exponential"] = "linear"
    setting: Literal["class-il", "task-il", "domain-il"] = "class-il"
    domain: Literal["permuted", "rotated"] = "permuted"
    rotation: float = 15.0
    online: bool = False
    label_rate: float = 1.0
    blur: float = 0.0
    order: Literal["same", "shuffled"] = "same"
    cycles: int = 1
    new_classes_share: float = 1.0
    boundaries: Literal["known", "detected"] = "known"
    advance: Literal["rounds", "time", "participation"] = "rounds"
    task_hours: float = 24.0
    pace_spread: float = 0.0
    start_spread: float = 0.0

    def __post_init__(self):
        if self.tasks < 1 or self.devices < 1:
            raise ValueError(f"tasks is {self.tasks}, devices {self.devices}: at least 1 of each")
        self._check_partition()
        self._check_tasks()
        if not 0 < self.task_hours < math.inf:
            raise ValueError(f"task_hours is {self.task_hours}: a step lasts a finite number of hours, above 0")
        for key in ("pace_spread", "start_spread"):
            if not 0 <= getattr(self, key) < math.inf:
                raise ValueError(f"{key} is {getattr(self, key)}: finite and not negative; 0 spreads nothing")

    @property
    def steps(self) -> int:
        """Tasks that a device meets one after the other, recurring ones counted each time."""
        return self.tasks * self.cycles

    def _check_partition(self) -> None:
        if not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}: the concentration of a Dirichlet distribution must be above 0")
        if self.partition == "drawn" and self.samples < 1:
            raise ValueError(f"samples is {self.samples}: with partition 'drawn' every device draws so many of each task, at least 1")
        if self.partition != "drawn" and self.samples:
            raise ValueError(
                f"samples is {self.samples}: partition {self.partition!r} cuts up all data, only 'drawn' draws a number of samples; "
                f"leave samples at 0, or set stream.partition=drawn"
            )
        for key in ("shards_per_device", "classes_per_device"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}: at least 1")

    def _check_tasks(self) -> None:
        if self.setting == "domain-il" and self.domain == "rotated" and not (math.isfinite(self.rotation) and self.rotation % 360):
            raise ValueError(f"rotation is {self.rotation}: tasks would not differ; degrees from one task to the next, no multiple of 360")
        if not 0 < self.label_rate <= 1:
            raise ValueError(f"label_rate is {self.label_rate}: a share in (0, 1]; 1 has a label for every sample")
        if not 0 <= self.blur < 1:
            raise ValueError(f"blur is {self.blur}: a share in [0, 1); 0 keeps tasks apart")
        if self.blur and self.setting == "domain-il":
            raise ValueError(
                f"blur is {self.blur}: in domain-il every task has the same samples, so there is nothing to exchange; "
                f"leave blur at 0, or take another stream.setting"
            )
        if self.cycles < 1:
            raise ValueError(f"cycles is {self.cycles}: the tasks are run through at least once")
        if not 0 < self.new_classes_share <= 1:
            raise ValueError(f"new_classes_share is {self.new_classes_share}: a share of the devices in (0, 1]; 1 lets all go on")
        if self.tasks == 1 and (self.blur or self.new_classes_share < 1):
            raise ValueError(f"tasks is 1: blur ({self.blur}) and new_classes_share ({self.new_classes_share}) need at least 2")


@dataclass(frozen=True)
class FleetConfig:
    """Which device is of which kind.

    Attributes:
        mix: profile (name, or path to a .toml file) -> weight; empty: the experiment's `profile` for all.
        file: CSV with one row per device, instead of a mix; see `simulations.fleet.mix.read_fleet`.
        compute_spread: sigma of the factor on `flops_per_s` and `moved_bytes_per_s` of each device; 0: all as their profile says.
        network_spread: the same for `down_bits_per_s` and `up_bits_per_s`.
        assign: `random` (kinds of a mix are dealt to devices by a seeded permutation) or `blocks` (the first devices are of the first kind,
            and so on); with a file its rows decide.
    """

    read_with: ClassVar[dict[str, tuple[str, ...]]] = {"fleet.mix": ("assign",)}
    mix: dict[str, float] = field(default_factory=dict)
    file: str = ""
    compute_spread: float = 0.0
    network_spread: float = 0.0
    assign: Literal["blocks", "random"] = "random"

    def __post_init__(self):
        if self.mix and self.file:
            raise ValueError(f"mix and file are both given: the rows of {self.file!r} say which device has which profile; leave one out")
        for name, weight in self.mix.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"mix.{name} is {weight}: a weight is finite and not negative")
        if self.mix and not any(self.mix.values()):
            raise ValueError(f"the weights of mix ({', '.join(self.mix)}) sum to 0: at least one must be above 0")
        for key in ("compute_spread", "network_spread"):
            if not 0 <= getattr(self, key) <= WIDEST:
                raise ValueError(
                    f"{key} is {getattr(self, key)}: a sigma in [0, {WIDEST:g}]; with 0.5, one device in six is at least "
                    f"1.65 times as fast as its profile"
                )
        if self.assign not in ("blocks", "random"):
            raise ValueError(f"assign is {self.assign!r}: choose blocks or random")
