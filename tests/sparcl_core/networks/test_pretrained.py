"""A run that starts from somebody's weights: what is taken, what is drawn, and every way in which a file does not fit."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_learning
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from tiny_learning import assert_same, start, tiny_method

from sparcl_core.networks.pretrained import MOST_NAMED, digest
from sparcl_core.sparsity.masks import apply_masks_

MODELS = list(tiny_learning.MODELS)
CLASSIFIER = ("classifier.weight", "classifier.bias")


def trained(name: str = "cnn", dtype: str = "float32", seed: int = 99) -> dict[str, np.ndarray]:
    """Weights that no run of ours draws, by name."""
    state, rng = start(tiny_method(name, 0.0, dtype))[1], np.random.default_rng(seed)
    return {key: rng.uniform(0.1, 1, value.shape).astype(value.dtype) for key, value in state.items()}


def begin(path, weights, name: str = "cnn", save=save_file, **settings):
    """A new run's weights and masks, from a file with `weights`."""
    save(weights, path / "given.safetensors")
    method = tiny_method(name, 0.75)
    return start(replace(method, model=replace(method.model, weights=str(path / "given.safetensors"), **settings)))[1:3]


@pytest.mark.parametrize("name", MODELS)
def test_a_run_starts_from_the_weights_of_a_file_under_the_masks_that_it_draws_anyway(tmp_path, name):
    given = trained(name)
    state, masks = begin(tmp_path, given | {"mask/conv2.weight": np.ones((8, 8, 3, 3), np.uint8)}, name)
    assert_same(masks, start(tiny_method(name, 0.75))[2])
    apply_masks_(given, masks)
    assert_same(state, given)


def test_what_the_integer_counters_of_a_batch_normalisation_say_is_not_read(tmp_path):
    given = trained("resnet18")
    state, _ = begin(tmp_path, given | {"bn1.num_batches_tracked": np.array(7)}, "resnet18")
    assert np.array_equal(state["bn1.running_mean"], given["bn1.running_mean"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_taken_in_the_models(tmp_path, dtype):
    given = {name: torch.from_numpy(value).to(dtype) for name, value in trained().items()}
    state, masks = begin(tmp_path, given, save=save_tensors)
    for name, value in state.items():
        assert value.dtype == np.float32
        assert np.array_equal(value[masks.get(name, slice(None))], given[name].float().numpy()[masks.get(name, slice(None))])


@pytest.mark.parametrize("is_there", [True, False])
def test_the_last_layer_is_drawn_where_that_is_asked_for(tmp_path, is_there):
    """For another number of classes, say: whether the file has a last layer does not matter then."""
    given = {name: value for name, value in trained().items() if is_there or name not in CLASSIFIER}
    if is_there:
        given |= {"classifier.weight": np.ones((9, 12), np.float32), "classifier.bias": np.ones(9, np.float32)}
    state, _ = begin(tmp_path, given, classifier="drawn")
    drawn = start(tiny_method("cnn", 0.75))[1]
    for name in state:
        assert (state[name] == drawn[name]).all() == (name in CLASSIFIER), name


def test_all_that_does_not_fit_is_told_at_once_with_the_way_out(tmp_path):
    given = trained()
    del given["conv1.weight"], given["norm2.bias"]
    given |= {"fc.weight": np.ones((3, 4), np.float32), "norm1.weight": np.ones(8, np.int32), "head\n.weight": np.ones(2, np.float32)}
    given["norm3.bias"][3] = np.nan
    with pytest.raises(ValueError) as refused:
        begin(tmp_path, given)
    text = str(refused.value)
    for part in (
        "given.safetensors, which does not fit: it lacks: conv1.weight, norm2.bias",
        "of another shape: fc.weight (3, 4), not (12, 32)",
        "no floating-point numbers: norm1.weight (torch.int32)",
        "NaN or infinite: norm3.bias",
        "not in this model: head .weight",
        "it must be of the model that section model describes",
        "model.classifier=drawn leaves the last layer out",
    ):
        assert part in text
    assert "\n" not in text


def test_a_file_without_a_last_layer_is_refused_unless_it_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="it lacks: classifier.weight, classifier.bias.*model.classifier=drawn leaves the last layer out"):
        begin(tmp_path, {name: value for name, value in trained().items() if name not in CLASSIFIER})


def test_another_model_is_refused_in_a_message_of_some_lines(tmp_path):
    with pytest.raises(ValueError, match=f"not in this model: .* and {300 - MOST_NAMED} more") as refused:
        begin(tmp_path, {f"layer{i}.weight": np.ones(1, np.float32) for i in range(300)})
    assert len(str(refused.value)) < 1500


def test_what_is_no_safetensors_file_is_refused(tmp_path):
    method, path = tiny_method(), tmp_path / "given.safetensors"
    method = replace(method, model=replace(method.model, weights=str(path)))
    with pytest.raises(ValueError, match="given.safetensors: it cannot be read .No such file or directory.; give a safetensors file"):
        start(method)
    for content in (b"", b"no weights", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="given.safetensors: it is no safetensors file"):
            start(method)


def test_a_file_that_was_changed_is_refused(tmp_path):
    begin(tmp_path, trained())
    sha256 = digest(tmp_path / "given.safetensors")
    begin(tmp_path, trained(), weights_sha256=sha256)
    with pytest.raises(ValueError, match=f"its SHA-256 is .*, not {sha256}, which the run began with .*put that file back"):
        begin(tmp_path, trained(seed=98), weights_sha256=sha256)


def test_the_same_file_and_seed_give_the_same_bits(tmp_path):
    for left, right in zip(begin(tmp_path, trained()), begin(tmp_path, trained()), strict=True):
        assert_same(left, right)
