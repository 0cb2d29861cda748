"""What the wire codec costs: bytes against the information content of the positions, and time of a large update.

Run it as `python -m benchmarks.codec`.
"""

import math
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from sparcl_core.codec import Encoded, Layout, SparseTensor, decode, encode, encode_places, quantise, reference
from sparcl_core.networks.models import ModelConfig, build_model, sparse_names

PLACES = 1_000_000
DENSITIES = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3)
FORMS = ("int4", "int6", "int8", "bf16", "f32")
SPARSITY = 0.95
TARGET_MS = 150
RUNS = 11
SEED = 0


def main() -> None:
    torch.set_num_threads(1)
    print_machine()
    print_positions()
    print_times()


def print_machine() -> None:
    print(f"{cpu_model()}, {platform.system()} {platform.machine()}, one thread")
    print(f"Python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__} (for the model's shapes only)")


def cpu_model() -> str:
    """As the kernel names it, since `platform.processor` is empty on many systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def print_positions() -> None:
    """Whole payloads of places drawn at random: header, checksum and table are included."""
    print(f"\nPositions of k of n = {PLACES:,} places: bytes, and ratio to log2 C(n, k) / 8\n")
    print(f"{'density':>8} {'log2C/8':>9} {'payload':>9} {'ratio':>6} {'bitmap':>9} {'ratio':>7} {'32-bit':>11} {'ratio':>6}")
    layout, masks = Layout({"w": (PLACES,)}, frozenset({"w"})), {"w": np.ones(PLACES, dtype=bool)}
    rng = np.random.default_rng(SEED)
    for density in DENSITIES:
        places = np.sort(rng.permutation(PLACES)[: round(density * PLACES)])
        limit = information(PLACES, places.size)
        real = len(encode_places("drop", layout, {"w": places}, masks, versions=(0, 0)))
        bitmap, indices = PLACES // 8, 4 * places.size
        print(
            f"{density:>8.1%} {limit:>9,.0f} {real:>9,} {real / limit:>6.3f} {bitmap:>9,} {bitmap / limit:>7.2f} "
            f"{indices:>11,} {indices / limit:>6.2f}"
        )


def information(total: int, count: int) -> float:
    """log2 C(total, count), in bytes."""
    return (math.lgamma(total + 1) - math.lgamma(count + 1) - math.lgamma(total - count + 1)) / math.log(2) / 8


def print_times() -> None:
    """One update of all parameters: 5 % of every sparse tensor at places that the other side does not know, the rest dense."""
    layout, tensors = update()
    values = sum(tensor.places.size for tensor in tensors.values())
    parameters = layout.dense_bytes // 4
    print(f"\nAn update of ResNet-18 width 64: {parameters:,} parameters, {values:,} values")
    print(f"Median of {RUNS} runs; encode is quantise + encode; ratio to 4 bytes a parameter.")
    print("int8, int6 and int4 do not send what they round to 0.\n")
    print(f"{'form':>8} {'bytes':>10} {'ratio':>7} {'encode':>10} {'decode':>10} {'target':>10}")
    for form in FORMS:
        encoded = coded(layout, tensors, form)
        encoding = median_ms(lambda form=form: coded(layout, tensors, form))
        decoding = median_ms(lambda data=encoded.data: decode(data, layout, {}))
        print(
            f"{form:>8} {len(encoded):>10,} {len(encoded) / layout.dense_bytes:>7.4f} "
            f"{encoding:>7.0f} ms {decoding:>7.0f} ms {TARGET_MS:>7} ms"
        )


def update() -> tuple[Layout, dict[str, SparseTensor]]:
    config = ModelConfig("resnet18", width=64)
    shape = (3, 32, 32)
    model = build_model(config, shape, 10)
    layout = Layout({name: tuple(p.shape) for name, p in model.named_parameters()}, frozenset(sparse_names(model, config, shape)))
    rng, tensors = np.random.default_rng(SEED), {}
    for name in layout.shapes:
        size = layout.size(name)
        places = np.flatnonzero(rng.random(size) >= SPARSITY) if name in layout.masked else np.arange(size)
        tensors[name] = SparseTensor(places, rng.laplace(scale=1e-3, size=places.size).astype(np.float32))
    return layout, tensors


def coded(layout: Layout, tensors: dict[str, SparseTensor], form: str) -> Encoded:
    rng = np.random.Generator(np.random.Philox(SEED))
    sent = {name: quantise(tensor, reference("delta", layout, name, {}), form, name, rng=rng) for name, tensor in tensors.items()}
    return encode("delta", layout, sent, model_version=1, mask_version=1)


def median_ms(action) -> float:
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    main()
