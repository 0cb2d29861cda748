"""`python -m benchmarks.kernels`: every part runs on a network that is small, and what it counts is right."""

import json
import math

import pytest
import torch

from benchmarks.kernels import __main__ as command
from benchmarks.kernels import memory, step, timing
from benchmarks.kernels.plot import crossover
from benchmarks.kernels.settings import Settings, chosen
from benchmarks.kernels.sides import resnet_layers
from sparcl_core.kernels import native

TINY = Settings(
    width=8, image=8, batch=4, sparsities=(0.9,), methods=("derpp",), memory_methods=("derpp",), memory_batch=2,
    plotted=(0.5, 0.9), layer_repeats=1, plot_repeats=1, dense_repeats=1, cycles=1, normals=1, processes=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    if not native.has_kernels():
        pytest.skip("no kernels here")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_all_parts_print_tables_of_at_most_100_columns(tmp_path, monkeypatch, capsys):
    def here(method, variant, width, image, batch, sparsity):
        return memory.peak_of(variant, method, width, image, batch, sparsity)

    monkeypatch.setattr(memory, "_apart", here)
    monkeypatch.setattr(memory, "ThreadPoolExecutor", lambda _: _Pool())
    monkeypatch.setattr(command, "chosen", lambda is_quick, repeats: TINY)
    picture, raw = tmp_path / "deeper" / "kernels.png", tmp_path / "kernels.json"
    command.main(["--out", str(picture), "--json", str(raw)])
    told = capsys.readouterr().out
    assert not [line for line in told.splitlines() if len(line) > 100 and str(picture) not in line]
    assert "kernels: " in told and "geometric mean" in told and "derpp" in told and "everything" in told and "1x at" in told
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(raw.read_text())
    assert set(found) == {"machine", *command.PARTS} and len(found["layers"]) == 7 and len(found["memory"]) == 5
    assert max(max(row["error"]["x"], row["error"]["w"]) for row in found["layers"]) < 1e-4


class _Pool:
    """One after the other, in this thread."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def map(self, work, jobs):
        return map(work, jobs)


def test_a_process_for_memory_says_what_it_measured():
    found = memory._apart("sgd", memory.VARIANTS[memory.NAMES.index("everything")], 8, 8, 2, 0.9)
    assert set(found) == {"peak", "held", "level", "is_marked"} and found["peak"] > 0 and found["level"] > 0


def test_an_unfused_model_trains_to_the_same_weights():
    from benchmarks.kernels.workload import Training

    fused, apart = (Training("derpp", 0.9, "sparse", 8, 16, 8, is_joint) for is_joint in (False, True))
    memory.unfuse(apart.learner.model)
    for training in (fused, apart):
        training.step(draws=True)
        training.step()
    for one, other in zip(fused.run.parameters, apart.run.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_layers_are_those_of_resnet18():
    layers = resnet_layers(64, 32)
    assert len(layers) == 7 and sum(layer.count for layer in layers) == 16
    assert [layer.count for layer in layers] == [4, 1, 3, 1, 3, 1, 3]
    assert (layers[-1].name, layers[-2].name) == ("512->512 4x4", "256->512 8x8 s2")


def test_means_ratios_and_crossovers():
    assert timing.geometric_mean([2, 8], [1, 1]) == pytest.approx(4) and timing.geometric_mean([2, 8], [3, 0]) == pytest.approx(2)
    assert timing.speed_up([4, 6, 100], [2, 2, 20]) == 3
    assert step._mean(32, 61, 1) == pytest.approx((32 + 61 + 28) / 30)
    assert crossover((0.5, 0.75), [0.5, 2.0]) == pytest.approx(1 - math.sqrt(0.5 * 0.25))
    assert crossover((0.5, 0.75), [1.5, 2.0]) is None and crossover((0.5, 0.75), [0.5, 0.7]) is None
    assert chosen(False, 2).cycles == 2 and chosen(False, None) == Settings()
