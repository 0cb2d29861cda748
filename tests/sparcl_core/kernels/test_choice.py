"""Which layers run on the kernels: by settings, by measurement, and by what was measured before."""

import json
from dataclasses import replace

import oracles
import pytest
import torch
from torch import nn

from sparcl_core.kernels import choice
from sparcl_core.kernels.build import KernelError, backend
from sparcl_core.kernels.choice import KernelConfig, choices, measure, resolve
from sparcl_core.kernels.convert import make_layer
from sparcl_core.networks.models import ModelConfig, build_model

SHAPE, MASKED = (3, 8, 8), ("conv2.weight", "fc.weight")
needs_kernels = pytest.mark.skipif(backend().library is None, reason=backend().reason)


def chosen(config: KernelConfig, dtype="float32") -> KernelConfig:
    model = build_model(ModelConfig("cnn", width=8, hidden=12, dtype=dtype), SHAPE, 5)
    return resolve(config, model, MASKED, SHAPE, 4, 0.1)


@pytest.fixture
def memos(tmp_path, monkeypatch):
    """Choices are kept in a folder of their own."""
    here = replace(backend(), path=str(tmp_path / "library.so"))
    monkeypatch.setattr(choice, "backend", lambda: here)
    return tmp_path / "choices"


@needs_kernels
def test_the_settings_decide_where_they_say_so():
    assert chosen(KernelConfig("sparse")) == KernelConfig("sparse", backend=backend().name, sparse=MASKED)
    assert chosen(KernelConfig("dense")) == KernelConfig("dense", backend=backend().name)
    assert chosen(KernelConfig("sparse"), "float64").sparse == ()  # the kernels have float32 only
    made = KernelConfig("auto", backend="elsewhere", sparse=("fc.weight",))
    assert chosen(made) is made  # a choice is made once


@needs_kernels
def test_the_fastest_is_chosen_and_kept(memos, monkeypatch):
    asked = []

    def timed(layer, shape, density, candidates):
        asked.append((type(layer), shape, density, candidates))
        is_conv = isinstance(layer, nn.Conv2d)
        return {"dense": 2.0, "sparse": 1.0 if is_conv else 3.0, "bf16": 0.5 if not is_conv else 4.0}

    monkeypatch.setattr(choice, "measure", timed)
    config = KernelConfig(allow_bf16=True)
    found = chosen(config)
    assert (found.backend, found.sparse, found.bf16) == (backend().name, ("conv2.weight",), ("fc.weight",))
    every = ("dense", "sparse", "bf16")
    assert asked == [(nn.Conv2d, (4, 8, 8, 8), 0.1, every), (nn.Linear, (4, 128), 0.1, every)]
    assert chosen(config) == found and len(asked) == 2  # from the notes of the first time
    for memo in memos.iterdir():
        memo.write_text(json.dumps({"choice": "sprase"}))
    assert chosen(config) == found and len(asked) == 4  # notes that say nothing are made again


@needs_kernels
def test_candidates_are_really_timed():
    seconds = measure(nn.Conv2d(4, 4, 3), (2, 4, 6, 6), 0.3, ("dense", "sparse", "bf16"))
    assert all(0 < value < 60 for value in seconds.values()) and len(seconds) == 3


def test_a_machine_that_cannot_do_what_was_chosen_refuses_and_the_way_out_is_one():
    made = KernelConfig(backend="avx1024", sparse=("fc.weight",))
    with pytest.raises(KernelError, match=r"chosen for the avx1024 kernels, but here they are .*kernels\.mode=dense"):
        choices(made, MASKED, torch.float32, frozenset(MASKED))
    assert choices(replace(made, mode="dense"), MASKED, torch.float32, frozenset(MASKED)) == dict.fromkeys(MASKED, "dense")
    assert choices(KernelConfig(backend="avx1024"), MASKED, torch.float32, frozenset(MASKED)) == dict.fromkeys(
        MASKED, "dense"
    )  # it asks for none


def test_choices_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="they need kernels.backend"):
        KernelConfig(sparse=("fc.weight",))
    with pytest.raises(ValueError, match="both have fc.weight"):
        KernelConfig(backend="avx2", sparse=("fc.weight",), bf16=("fc.weight",))
    with pytest.raises(ValueError, match="name fc3.weight, which is no sparse weight of this model: it has conv2.weight, fc.weight"):
        choices(KernelConfig(backend=backend().name, bf16=("fc3.weight",)), MASKED, torch.float32, frozenset(MASKED))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.Linear(8, 6)], ids=["conv", "linear"])
def test_bfloat16_is_near(layer):
    mask = torch.rand(layer.weight.shape).numpy() < 0.5
    exact, rounded = (make_layer(layer, mask, kind) for kind in ("dense", "bf16"))
    x = torch.randn(3, 4, 6, 6) if layer.weight.dim() == 4 else torch.randn(3, 8)
    assert rounded(x).dtype == torch.float32
    assert 1e-5 < oracles.relative_error(rounded(x).detach(), exact(x).detach().double()) < 2e-2


@needs_kernels
@pytest.mark.parametrize("faster", ["0", "1"])
def test_between_layers_of_another_layout_the_whole_model_decides(memos, monkeypatch, faster):
    """Each layer is faster on the kernels; whether the model is, changes of layout included, is measured once more."""
    asked = []

    def timed(model, shape, density, candidates):
        asked.append((shape, [set(choice.values()) for choice in candidates]))
        return {"0": 1.0, "1": 1.0} | {faster: 0.5}

    monkeypatch.setattr(choice, "measure", lambda layer, shape, density, candidates: {"dense": 2.0, "sparse": 1.0})
    monkeypatch.setattr(choice, "measure_whole", timed)
    model = build_model(ModelConfig("mobilenetv2", width=8), SHAPE, 5)
    masked = ("features.1.conv.0.0.weight", "features.1.conv.1.weight")  # depthwise, which the kernels cannot do, and 1x1
    for _ in range(2):
        found = resolve(KernelConfig(), model, masked, SHAPE, 64, 0.1)
        assert found.sparse == (masked[1:] if faster == "1" else ())
    assert asked == [((32, *SHAPE), [{"dense"}, {"dense", "sparse"}])]  # the second time it is remembered
    chosen(KernelConfig())
    assert len(asked) == 1  # of the cnn each layer tells for itself


@needs_kernels
@pytest.mark.parametrize("name", ["mobilenetv3-small", "vit-tiny"])
def test_whole_models_are_really_timed_and_left_alone(name):
    model = build_model(ModelConfig(name, width=16), SHAPE, 5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    masked = choice.able_layers(model, tuple(key for key, p in model.named_parameters() if p.dim() in (2, 4) and "weight" in key))
    seconds = choice.measure_whole(model, (2, *SHAPE), 0.3, tuple(dict.fromkeys(masked, way) for way in ("dense", "sparse")))
    assert all(0 < value < 60 for value in seconds.values()) and len(seconds) == 2
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@needs_kernels
def test_layers_that_the_kernels_cannot_do_run_dense_whatever_is_asked():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 6, 3, dilation=2), nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(24, 5))
    masked = ("0.weight", "1.weight", "2.weight", "4.weight")
    able = choice.able_layers(model, masked)
    assert able == {"2.weight", "4.weight"}
    assert choices(KernelConfig("sparse"), masked, torch.float32, able) == dict(
        zip(masked, ("dense", "dense", "sparse", "sparse"), strict=True)
    )
    assert resolve(KernelConfig("sparse"), model, masked, SHAPE, 4, 0.1).sparse == ("2.weight", "4.weight")
