"""What a device pays: FLOPs and bytes as counted, seconds and joules by its profile.

The model of time and energy (ours; the figures of a profile carry their sources):

    compute_s  = sparse FLOPs / (rate * sparse_efficiency) + other FLOPs / (rate * efficiency)
                 + moved bytes / moved_bytes_per_s + steps * (step_s + layer passes * layer_s)
    transfer_s = latency_s + extra_s + 8 * bytes / bits per second      (of one message)
    joules     = compute_s * active_w + FLOPs * j_per_flop + transfer_s * (idle_w + radio_w) + bytes * radio_j_per_byte

Moved bytes are what lies between the products: activations that are written, normalised, packed and read again. A sparse layer moves as
many as a dense one, so that their share of a step grows with the sparsity; without them no single `sparse_efficiency` fits two sparsities
(docs/costs.md has the check against measured seconds). Layer passes are layers that a step goes through, forward and backward: what it
costs to call a layer at all makes small batches of deep networks slow, however few FLOPs they have.
"""

import math
from dataclasses import dataclass

from sparcl_core.costs.flops import Flops


@dataclass(frozen=True)
class DeviceProfile:
    """Figures of one kind of device. SI units; powers are of the whole device.

    Attributes:
        flops_per_s: sustained FLOP/s.
        efficiency: share of it that dense training reaches.
        sparse_efficiency: share of it that training with unstructured sparse weights reaches, per FLOP really needed.
        memory_bytes: memory that training may use.
        active_w: power while computing; 0 where `j_per_flop` states the energy of a FLOP instead.
        idle_w: power while nothing is done.
        radio_j_per_byte: energy per byte sent or received, on top of idle power; 0 where `radio_w` states the radio's power instead.
        down_bits_per_s, up_bits_per_s, latency_s: network.
        moved_bytes_per_s: activation bytes a second that a training step gets through besides its products.
        step_s: seconds of a training step that depend on nothing in it.
        layer_s: seconds of a pass through one layer, forward and backward, that depend on nothing in it.
        j_per_flop, radio_w: see above.
        jitter_s: mean of what a message takes beyond that, exponentially distributed.
        battery_j: capacity of the battery; 0: on mains.
        charge_w: power that its charger or panel delivers at best.
    """

    name: str
    flops_per_s: float
    efficiency: float
    sparse_efficiency: float
    memory_bytes: float
    active_w: float
    idle_w: float
    radio_j_per_byte: float
    down_bits_per_s: float
    up_bits_per_s: float
    latency_s: float
    moved_bytes_per_s: float = math.inf
    step_s: float = 0.0
    j_per_flop: float = 0.0
    radio_w: float = 0.0
    jitter_s: float = 0.0
    battery_j: float = 0.0
    charge_w: float = 0.0
    layer_s: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Costs that add up: `Cost() + a + b`."""

    flops: Flops = Flops()
    down_bytes: int = 0
    up_bytes: int = 0
    seconds: float = 0.0
    joules: float = 0.0

    @property
    def columns(self) -> dict[str, int | float]:
        """The cost by the names that tables have for it: whole numbers, and measures that are none. Every column of it is in this list."""
        transferred = {"down_bytes": self.down_bytes, "up_bytes": self.up_bytes}
        return transferred | self.flops.columns | {"paper_flops": self.flops.paper, "seconds": self.seconds, "joules": self.joules}

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.down_bytes + other.down_bytes,
            self.up_bytes + other.up_bytes,
            self.seconds + other.seconds,
            self.joules + other.joules,
        )


def compute_cost(profile: DeviceProfile, flops: Flops, *, is_sparse: bool = True, moved_per_sample: int = 0, layer_passes: int = 0) -> Cost:
    """Training cost.

    Args:
        flops: with the samples and steps that they belong to.
        is_sparse: False: the maskable layers are dense as well and run at the dense rate.
        moved_per_sample: activation bytes of one sample, `memory.activation_bytes`.
        layer_passes: layers that a step goes through: counted layers (`flops.layer_shapes`) x forward passes.
    """
    sparse = flops.train_sparse if is_sparse else 0
    seconds = sparse / (profile.flops_per_s * profile.sparse_efficiency)
    seconds += (flops.total - sparse) / (profile.flops_per_s * profile.efficiency)
    seconds += flops.samples * moved_per_sample / profile.moved_bytes_per_s
    seconds += flops.steps * (profile.step_s + layer_passes * profile.layer_s)
    return Cost(flops=flops, seconds=seconds, joules=seconds * profile.active_w + flops.total * profile.j_per_flop)


def download_cost(profile: DeviceProfile, num_bytes: int, extra_s: float = 0.0) -> Cost:
    """Cost of receiving one message of `num_bytes`. `extra_s`: what jitter adds to it."""
    seconds = profile.latency_s + extra_s + 8 * num_bytes / profile.down_bits_per_s
    return Cost(down_bytes=num_bytes, seconds=seconds, joules=_radio_joules(profile, seconds, num_bytes))


def upload_cost(profile: DeviceProfile, num_bytes: int, extra_s: float = 0.0) -> Cost:
    """Cost of sending one message of `num_bytes`. `extra_s`: what jitter adds to it."""
    seconds = profile.latency_s + extra_s + 8 * num_bytes / profile.up_bits_per_s
    return Cost(up_bytes=num_bytes, seconds=seconds, joules=_radio_joules(profile, seconds, num_bytes))


def _radio_joules(profile: DeviceProfile, seconds: float, num_bytes: int) -> float:
    return seconds * (profile.idle_w + profile.radio_w) + num_bytes * profile.radio_j_per_byte
