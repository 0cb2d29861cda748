"""What a device pays: FLOPs and bytes as counted, seconds and joules by its profile.

The model of time and energy (ours; the figures of a profile carry their sources):
    compute_s = sparse FLOPs / (rate * sparse_efficiency) + all other FLOPs / (rate * efficiency)
    transfer_s = latency_s per message + 8 * bytes / bits per second
    joules = compute_s * active_w + transfer_s * idle_w + bytes * radio_j_per_byte
"""

from dataclasses import dataclass

from sparcl_core.flops import Flops


@dataclass(frozen=True)
class DeviceProfile:
    """Figures of one kind of device. SI units; powers are of the whole device.

    Attributes:
        flops_per_s: sustained FLOP/s.
        efficiency: share of it that dense training reaches.
        sparse_efficiency: share of it that training with unstructured sparse weights reaches, per FLOP really needed.
        memory_bytes: memory of the device.
        active_w, idle_w: power while computing, and while not.
        radio_j_per_byte: energy per byte sent or received, on top of idle power.
        down_bits_per_s, up_bits_per_s, latency_s: network.
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


@dataclass(frozen=True)
class Cost:
    """Costs that add up: `Cost() + a + b`."""

    flops: Flops = Flops()
    down_bytes: int = 0
    up_bytes: int = 0
    seconds: float = 0.0
    joules: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.flops + other.flops,
            self.down_bytes + other.down_bytes,
            self.up_bytes + other.up_bytes,
            self.seconds + other.seconds,
            self.joules + other.joules,
        )


def compute_cost(profile: DeviceProfile, flops: Flops, is_sparse: bool = True) -> Cost:
    """Training cost. `is_sparse` False: the maskable layers are dense as well and run at the dense rate."""
    sparse = flops.train_sparse if is_sparse else 0
    seconds = sparse / (profile.flops_per_s * profile.sparse_efficiency)
    seconds += (flops.total - sparse) / (profile.flops_per_s * profile.efficiency)
    return Cost(flops=flops, seconds=seconds, joules=seconds * profile.active_w)


def download_cost(profile: DeviceProfile, num_bytes: int) -> Cost:
    """Cost of receiving one message of `num_bytes`."""
    seconds = profile.latency_s + 8 * num_bytes / profile.down_bits_per_s
    return Cost(down_bytes=num_bytes, seconds=seconds, joules=seconds * profile.idle_w + num_bytes * profile.radio_j_per_byte)


def upload_cost(profile: DeviceProfile, num_bytes: int) -> Cost:
    """Cost of sending one message of `num_bytes`."""
    seconds = profile.latency_s + 8 * num_bytes / profile.up_bits_per_s
    return Cost(up_bytes=num_bytes, seconds=seconds, joules=seconds * profile.idle_w + num_bytes * profile.radio_j_per_byte)
