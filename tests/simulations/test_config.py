"""Experiments: complete, strict, and the same after a trip through a file. Messages name the key, the rule and the way out."""

import tomllib
from dataclasses import replace

import pytest
import tomli_w
from worlds import tiny

from simulations.config import ConfigError, available, dense_twin, from_tree, load, to_tree


@pytest.mark.parametrize("name", available())
def test_every_experiment_loads_and_survives_its_own_file(name, tmp_path):
    experiment = load(name)
    assert experiment.name == name and experiment.description
    path = tmp_path / "again.toml"
    path.write_bytes(tomli_w.dumps(to_tree(experiment)).encode())
    assert load(str(path)) == experiment


def test_every_setting_survives_a_file():
    """Also those that TOML cannot say (None) and tuples, which it calls arrays."""
    experiment = tiny("model.sparse=['conv2.weight']", "dgm.sparsity=0.95", "data.fold=3", "tdm.p_intra=0.02", "learner.augment=crop")
    again = from_tree(tomllib.loads(tomli_w.dumps(to_tree(experiment))))
    assert again == experiment
    assert (again.model.sparse, again.dgm.sparsity, again.data.fold) == (("conv2.weight",), 0.95, 3)


def test_overrides_apply_in_order_and_are_toml():
    experiment = tiny("seed=1", "learner.lr = 0.5", "model.name=mlp", "ddr.enabled=false", "seed=2")
    assert (experiment.seed, experiment.learner.lr, experiment.model.name, experiment.ddr.enabled) == (2, 0.5, "mlp", False)
    assert tiny("learner.lr=1").learner.lr == 1  # an integer is a number too
    assert tiny("description=a = b").description == "a = b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lrr=0.1", "unknown config key 'learner.lrr'; did you mean 'learner.lr'?"),
        ("buffer_size=3", "unknown config key 'buffer_size'; did you mean 'clock.buffer_size'?"),
        ("learnr.lr=0.1", "unknown config key 'learnr'; did you mean 'learner"),
        ("tdm.xyzzy=1", "unknown config key 'tdm.xyzzy'; known keys here: enabled, p_intra"),
        ("zebra=1", "unknown config key 'zebra'; known keys here: name, description, seed"),
        ("learner.lr=fast", "learner.lr is 'fast': input should be a valid number"),
        ("learner.batch_size=2.5", "learner.batch_size is 2.5: input should be a valid integer"),
        ("learner.batch_size=true", "learner.batch_size is True: input should be a valid integer"),
        ("ddr.enabled=1", "ddr.enabled is 1: input should be a valid boolean"),
        ("stream.devices='3'", "stream.devices is '3': input should be a valid integer"),
        ("learner.method=ewc", "learner.method is 'ewc': input should be 'sgd', 'er', 'der' or 'derpp'"),
        ("model.sparse=conv2", "model.sparse is 'conv2': input should be a valid array"),
        ("learner=3", "learner is 3: input should be an object"),
        ("learner.lr=inf", "learner.lr is inf: input should be a finite number"),
        ("tdm.alpha=nan", "tdm.alpha is nan: input should be a finite number"),
        ("name.first=x", "--set 'name.first=x': name is a value, not a section"),
        ("learner.lr", "--set 'learner.lr': write key=value"),
        ("=3", "--set '=3': write key=value"),
        ("sparsity=1.0", "sparsity is 1.0: it must be in [0, 1); 0 trains the dense network"),
        ("sparsity=-0.1", "sparsity is -0.1: it must be in [0, 1)"),
        ("dgm.sparsity=0.5", "dgm.sparsity is 0.5: gradient sparsity must be in [sparsity, 1) = [0.9, 1); try 0.92"),
        ("tdm.p_intra=0.1", "tdm.p_intra is 0.1: it must be below the density 1 - sparsity = 0.1; try 0.01"),
        ("tdm.p_inter=0.2", "tdm.p_inter is 0.2: it must be below the density 1 - sparsity = 0.1; try 0.01"),
        ("federation.rounds_per_task=3", "a task of 3 epochs has 3 stages of 1 epochs: TDM needs at least 4; lower tdm.stage_epochs"),
        ("seed=-1", "seed is -1: it must not be negative"),
        ("evaluate_every=-1", "evaluate_every is -1"),
        ("name=a/b", "name is 'a/b': it names the run folder"),
        ("name=..", "name is '..': it names the run folder"),
        ("name=", "name is '': it names the run folder"),
        ("data.name=parquet", "data: name is 'parquet', but path is empty: set data.path"),
        ("data.folds=1", "data: folds is 1: at least 2"),
        ("data.fold=5", "data: fold is 5: folds are numbered 0 to 4"),
        ("data.validation=1.0", "data: validation is 1.0: a share in [0, 1)"),
        ("data.train_limit=-1", "data: train_limit is -1"),
        ("stream.tasks=0", "stream: tasks is 0"),
        ("stream.partition=drawn", "stream: samples is 0: with partition 'drawn' every device draws so many of each task, at least 1"),
        ("stream.samples=5", "stream: samples is 5: partition 'dirichlet' cuts up all data, only 'drawn' draws a number of samples; leave"),
        ("stream.samples=-5", "stream: samples is -5: partition 'dirichlet' cuts up all data"),
        ("stream.alpha=0.0", "stream: alpha is 0.0: the concentration"),
        ("learner.lr=0.0", "learner: lr is 0.0: the learning rate must be above 0"),
        ("model.width=12", "model: width is 12: the cnn normalises over 8 groups"),
        ("federation.up_values=f32", "unknown config key 'federation.up_values'; "),
        ("federation.mask=own", "federation.mask is 'own': input should be 'shared' or 'local'"),
        ("federation.batchnorm=none", "federation.batchnorm is 'none': input should be 'global', 'local' or 'recompute'"),
        ("wire.up=u8", "wire.up is 'u8': input should be 'f64', "),
        ("wire.importance=int4", "wire.importance is 'int4': input should be 'f64', "),
        ("wire.rounding=down", "wire.rounding is 'down': input should be 'nearest' or 'stochastic'"),
        ("wire.block=-1", "wire: block is -1: places per scale"),
        ("wire.up_share=0", "wire: up_share is 0.0: a share in (0, 1]"),
        ("aggregation.rule=median", "aggregation.rule is 'median': input should be 'masked-mean'"),
        ("aggregation.unheld=drop", "aggregation.unheld is 'drop': input should be 'keep' or 'zero'"),
        ("aggregation.min_votes=0", "aggregation: min_votes is 0: at least 1"),
        ("aggregation.shrinkage=-1", "aggregation: shrinkage is -1.0: finite and not negative"),
        ("server_optimizer.name=yogi", "server_optimizer.name is 'yogi': input should be 'sgd', 'momentum' or 'adam'"),
        ("server_optimizer.lr=0", "server_optimizer: lr is 0.0: finite and above 0"),
        ("server_optimizer.beta2=1", "server_optimizer: beta2 is 1.0: a share in [0, 1)"),
        ("server_optimizer.tau=0", "server_optimizer: tau is 0.0: finite and above 0"),
    ],
)
def test_a_setting_that_is_wrong_is_named(override, message):
    with pytest.raises(ConfigError) as caught:
        tiny(override)
    assert str(caught.value).startswith(message)


NEW_SETTINGS = {
    "wire.up": "f16", "wire.down": "bf16", "wire.rounding": "nearest", "wire.block": 64, "wire.up_share": 0.25, "wire.importance": "votes",
    "aggregation.rule": "count-mean", "aggregation.unheld": "zero", "aggregation.min_votes": 2, "aggregation.shrinkage": 0.1,
    "aggregation.row_voting": False, "aggregation.stale": "normalise", "aggregation.clip": 3.0, "aggregation.probation": 4,
    "server_optimizer.name": "adam", "server_optimizer.lr": 1.0, "server_optimizer.momentum": 0.5,
    "server_optimizer.beta1": 0.8, "server_optimizer.beta2": 0.9, "server_optimizer.tau": 0.01, "federation.mask": "local",
    "federation.batchnorm": "recompute",
}  # fmt: skip


def test_every_setting_of_wire_aggregation_and_server_is_reachable():
    """All at once, `adam` with a learning rate of 1 among them: unwise, but it is the user's choice."""
    spelled = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in NEW_SETTINGS.items()]
    experiment = tiny(*spelled)
    for key, value in NEW_SETTINGS.items():
        section, name = key.split(".")
        assert getattr(getattr(experiment, section), name) == value, key
    for section in ("wire", "aggregation", "server_optimizer"):
        assert {key.split(".")[1] for key in NEW_SETTINGS if key.startswith(f"{section}.")} == vars(getattr(experiment, section)).keys()
    assert from_tree(tomllib.loads(tomli_w.dumps(to_tree(experiment)))) == experiment


def test_several_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        tiny("learner.lrr=0.1", "seed=x")
    assert "learner.lrr" in str(caught.value) and "seed is 'x'" in str(caught.value)


def test_a_date_is_text():
    """TOML knows dates, experiments do not: 2024-01-01 is a fine description and no number."""
    assert tiny("description=2024-01-01").description == "2024-01-01"
    with pytest.raises(ConfigError, match="seed is '2024-01-01'"):
        tiny("seed=2024-01-01")


def test_files_that_are_not_there_or_no_toml(tmp_path):
    with pytest.raises(ConfigError, match="experiment 'nope' is not here; there are .*split-digits"):
        load("nope")
    with pytest.raises(ConfigError, match=r"nope\.toml' is not here"):
        load(str(tmp_path / "nope.toml"))
    path = tmp_path / "broken.toml"
    path.write_text("seed = = 3")
    with pytest.raises(ConfigError, match=r"broken\.toml is no TOML"):
        load(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"broken\.toml is no TOML"):
        load(str(path))


def test_a_dense_twin_differs_in_sparsity_only():
    """And in its wire, which is fp32 both ways: what is saved is saved against that."""
    sparse = tiny("dgm.sparsity=0.95", "federation.mask=local", "server_optimizer.name=momentum", "aggregation.rule=count-mean")
    dense = dense_twin(sparse)
    assert (dense.sparsity, dense.tdm.enabled, dense.ddr.enabled, dense.dgm.enabled) == (0, False, False, False)
    assert (dense.wire.up, dense.wire.down, dense.wire.up_share, dense.federation.mask) == ("f32", "f32", 1, "shared")
    own = {key: getattr(sparse, key) for key in ("name", "sparsity", "tdm", "ddr", "dgm", "wire", "federation")}
    assert replace(dense, **own) == sparse
    assert replace(dense.federation, mask="local") == sparse.federation
