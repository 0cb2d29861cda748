"""How large the numbers of an experiment may be. What lies above could not be sent, stored or waited for, and is refused at once.

Where a bound comes from:

- 16 bits: an instruction carries the number of the step and the local epochs of a round in 16 bits each, a report the number of classes in
  15 (`sparcl_core.wire.protocol`).
- Memory: the roster has 16 bytes per device and 8 per device and step, an order of tasks 4 more, and the clock, the batteries and the
  fleet some 200 bytes per device: 2 GB for ten million devices. The ledger has three rows of some 300 bytes for every device of a round:
  90 GB for a hundred million. Weights, gradients and what an update is taken against are four copies of the model: 4 GB for 2^28 weights.
- Time: ten million hours are a thousand years; float64 still tells microseconds apart there.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparcl_core.config import ModelConfig

BITS_16 = 2**16 - 1
DEVICES = 10_000_000
PLACES = 200_000_000  # devices x steps
ROUNDS = 1_000_000
WORK = 100_000_000  # rounds x devices of a round
WEIGHTS = 2**28
WHOLE = 2**31 - 1  # every other whole number: counts of samples and batches, lengths in rounds
SEED = 2**63 - 1  # TOML's integers end there
HOURS, SECONDS = 1e7, 3.6e10
SIGMA = 10.0
SIDE = 4096  # pixels; thousands of images of that size fill no memory that a device has
ALPHA = (1e-6, 1e9)  # of a Dirichlet distribution: beyond, float64 has no draws from it

# Weights per width^2: six blocks of 12; of the others, whose channels are rounded, a tenth less than those of the published width
QUADRATIC = {"vit-tiny": 72, "mobilenetv2": 1900, "mobilenetv3-small": 5300, "efficientnet-b0": 3500}

LIMITS = {
    "seed": SEED,
    "stream.devices": DEVICES,
    "federation.local_epochs": BITS_16,
    "federation.rounds_per_task": ROUNDS,
    "federation.rounds": ROUNDS,
    "stream.tasks": BITS_16,
    "stream.cycles": BITS_16,
    "stream.pace_spread": SIGMA,
    "stream.start_spread": float(BITS_16),
    "stream.alpha": ALPHA[1],
    **dict.fromkeys(("stream.task_hours", "clock.start_hour", "clock.horizon_hours"), HOURS),
    **dict.fromkeys(("availability.join_hours", "availability.leave_hours", "availability.slot_minutes"), HOURS),
    **dict.fromkeys(("clock.deadline_s", "clock.period_s", "selection.preferred_s"), SECONDS),
    "clock.over_selection": 1000.0,
    "data.size": SIDE,
}


def too_large(experiment) -> Iterator[str]:
    """What is too large in an `Experiment`, one message each."""
    numbers = dict(_numbers(experiment))
    found = False
    for key, value in numbers.items():
        most = LIMITS.get(key, WHOLE if isinstance(value, int) else None)
        if most is not None and value > most:
            found = True
            yield f"{key} is {_short(value)}: at most {_short(most)} (docs/settings.md says why)"
    if numbers["stream.alpha"] < ALPHA[0]:
        yield f"stream.alpha is {numbers['stream.alpha']:g}: at least {ALPHA[0]:g}, where every device has a single class"
    if not found:  # products of numbers that are within their own limits
        yield from _products(experiment)


def _products(experiment) -> Iterator[str]:
    stream, federation = experiment.stream, experiment.federation
    steps = stream.steps * (federation.rounds_per_task if stream.online else 1)
    pieces = " x federation.rounds_per_task" if stream.online else ""
    if steps > BITS_16:
        yield f"stream.tasks x stream.cycles{pieces} is {steps:,}: a device's stream has at most {BITS_16:,} steps"
    elif stream.devices * steps > PLACES:
        yield f"stream.devices x stream.tasks x stream.cycles{pieces} is {stream.devices * steps:,}: at most {PLACES:,}"
    if experiment.rounds > ROUNDS:
        yield f"the run has {experiment.rounds:,} rounds: at most {ROUNDS:,}; set federation.rounds or federation.rounds_per_task smaller"
    cohort = min(federation.cohort_size or stream.devices, stream.devices)
    if experiment.rounds * cohort > WORK:
        yield (
            f"{experiment.rounds:,} rounds of {cohort:,} devices: the ledger has rows for each, at most {WORK:,}; "
            f"set federation.cohort_size, or take fewer rounds"
        )
    model = experiment.model
    if model.is_ours and (weights := least_weights(model)) > WEIGHTS:
        yield (
            f"model.width is {model.width:,} and model.hidden {model.hidden:,}: that is {weights:,} weights and more of a {model.name}, "
            f"and {WEIGHTS:,} is the most"
        )


def least_weights(model: "ModelConfig") -> int:
    """Weights that a model of ours has at least, whatever its images: those between its own layers. Others are counted when made."""
    if model.name == "mlp":
        return model.width**2
    if model.name == "cnn":
        return 9 * model.width**2 + model.width * model.hidden
    if model.name == "resnet18":  # four stages of 1, 2, 4, 8 times the width, two blocks each of two 3x3 convolutions
        return 2600 * model.width**2
    if model.name in QUADRATIC:
        return QUADRATIC[model.name] * model.width**2
    raise NotImplementedError(f"model.name {model.name!r} is a name without a bound: least_weights needs a line for it")


def _numbers(part, prefix: str = "") -> Iterator[tuple[str, int | float]]:
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from _numbers(value, f"{prefix}{field.name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{field.name}", value


def _short(value: int | float) -> str:
    """A number as people write it; integers of thousands of digits, which Python will not print, by their size."""
    if isinstance(value, int):
        return f"{value:,}" if value < 10**30 else f"above 2^{value.bit_length() - 1}"
    return f"{value:g}"
