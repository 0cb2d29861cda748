"""Experiments: complete, strict, and the same after a trip through a file. Messages name the key, the rule and the way out."""

import dataclasses
import tomllib
from dataclasses import replace

import pytest
import tomli_w
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from worlds import tiny

from simulations.config.errors import ConfigError
from simulations.config.experiment import SECTIONS, Experiment, dense_twin, left_on
from simulations.config.loading import available, from_tree, load, to_tree
from sparcl_core.methods.registry import OURS
from sparcl_core.sparsity import ddr, tdm
from sparcl_core.sparsity.settings import MaskConfig

KNOWN = ", ".join(map(repr, list(OURS)[:-1])) + f" or {list(OURS)[-1]!r}"


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
        ("buffer_size=3", "unknown config key 'buffer_size'; did you mean 'learner.buffer_size' or 'clock.buffer_size'?"),
        ("lr=0.1", "unknown config key 'lr'; did you mean 'learner.lr' or 'server_optimizer.lr'?"),
        ("learnr.lr=0.1", "unknown config key 'learnr'; did you mean 'learner'?"),
        ("training.buffer_share=0.1", "unknown config key 'training'; did you mean 'learner'?"),
        ("xyzzy.zebra=0.1", "unknown config key 'xyzzy'; known sections: data, stream, model, learner"),
        ("clock.buffer_share=0.1", "unknown config key 'clock.buffer_share'; did you mean 'learner.buffer_share'?"),
        ("sparcity=0.1", "unknown config key 'sparcity'; did you mean 'sparsity'?"),
        ("tdm.xyzzy=1", "unknown config key 'tdm.xyzzy'; known keys here: enabled, p_intra"),
        ("zebra=1", "unknown config key 'zebra'; known keys here: name, description, seed"),
        ("learner.lr=fast", "learner.lr is 'fast': input should be a valid number"),
        ("learner.batch_size=2.5", "learner.batch_size is 2.5: input should be a valid integer"),
        ("learner.batch_size=true", "learner.batch_size is True: input should be a valid integer"),
        ("ddr.enabled=1", "ddr.enabled is 1: input should be a valid boolean"),
        ("stream.devices='3'", "stream.devices is '3': input should be a valid integer"),
        ("learner.method=smoothed", f"learner.method is 'smoothed': input should be {KNOWN}, or package.module:name"),
        ("learner.method=derp", f"learner.method is 'derp': input should be {KNOWN}; did you mean 'derpp'?"),
        ("stream.partition=dirichelt", "stream.partition is 'dirichelt': input should be "),
        ("model.sparse=conv2", """model.sparse is 'conv2': it must be a list, such as --set 'model.sparse=["conv2"]'"""),
        ("fleet.mix=phone", "fleet.mix is 'phone': it must be a table, such as --set fleet.mix.NAME=VALUE"),
        ("learner.e_lambda=3", "unknown config key 'learner.e_lambda'; it is a setting of method ewc_on, and this is derpp; leave it out"),
        ("e_lambda=3", "unknown config key 'e_lambda'; it is a setting of method ewc_on, and this is derpp; leave it out"),
        (
            "learner.softmax_temp=3",
            "unknown config key 'learner.softmax_temp'; it is a setting of method lwf and flwf2t, and this is derpp",
        ),
        ("model.name=my_nets.py:make", "model.name is 'my_nets.py:make': take the module in the place of its file, my_nets:make"),
        (
            "model.name=./nets/my.py:make",
            "model.name is './nets/my.py:make': take the module in the place of its file, nets.my:make",
        ),
        (
            "aggregation.rule=os:getcwd",
            "aggregation.options: getcwd takes 0 arguments by position, and is given 1; aggregation.rule is 'os:getcwd': a rule is ",
        ),
        (
            "selection.policy=os:getcwd",
            "selection.options: getcwd takes 0 arguments by position, and is given 3; selection.policy is 'os:getcwd': a policy is ",
        ),
        (
            "availability.kind=os:getcwd",
            "availability.options: getcwd takes 0 arguments by position, and is given 3; availability.kind is 'os:getcwd': a model is",
        ),
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
        ("name=" + 101 * "n", "name has 101 characters: it names the run folder, so take at most 100"),
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
        ("model.sparse=['fc(']", "model: sparse has 'fc(', which is no regular expression: missing ), unterminated subpattern"),
        ("model.width=12", "model: width is 12: the cnn normalises over 8 groups"),
        ("federation.up_values=f32", "unknown config key 'federation.up_values'; "),
        ("federation.mask=own", "federation.mask is 'own': input should be 'shared' or 'local'"),
        ("federation.batchnorm=none", "federation.batchnorm is 'none': input should be 'global', 'local', 'recompute' or 'fedbn'"),
        ("wire.up=u8", "wire.up is 'u8': input should be 'f64', "),
        ("wire.importance=int4", "wire.importance is 'int4': input should be 'f64', "),
        ("wire.rounding=down", "wire.rounding is 'down': input should be 'nearest' or 'stochastic'"),
        ("wire.block=-1", "wire: block is -1: places per scale"),
        ("wire.up_share=0", "wire: up_share is 0.0: a share in (0, 1]"),
        ("aggregation.rule=medan", "aggregation.rule is 'medan': input should be 'masked-mean'"),
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


@pytest.mark.parametrize(
    ("overrides", "meant"),
    [
        (("model.name=own_models:make", "model.channels=3"), "unknown config key 'model.channels'; did you mean 'model.options.channels'?"),
        (("aggregation.rule=trimmed-mean", "aggregation.trim=0.1"), "'aggregation.trim'; did you mean 'aggregation.options.trim'?"),
        (("aggregation.rule=multi-krum", "aggregation.bizantine=1"), "did you mean 'aggregation.options.byzantine'?"),
        (("data.name=own_data:load", "data.rooms=1"), "unknown config key 'data.rooms'; did you mean 'data.options.rooms'?"),
        (("model.name=own_models:make", "model.widht=3"), "unknown config key 'model.widht'; did you mean 'model.width'?"),
    ],
)  # fmt: skip
def test_a_key_that_is_an_option_is_pointed_there(overrides, meant):
    with pytest.raises(ConfigError, match=meant.replace("?", "[?]")):
        tiny(*overrides)


def test_import_paths_that_lead_nowhere_are_told_at_once(tmp_path, monkeypatch):
    (tmp_path / "half_written.py").write_text("import os\n\ndef make(:\n")
    (tmp_path / "lacks_things.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    paths = {
        "learner.method": "nowhere.methods:Mine", "aggregation.rule": "nowhere.rules:mine", "selection.policy": "lacks_things:choose",
        "availability.kind": "nowhere:kind", "model.name": "half_written:make", "data.name": "nowhere.data:load",
        "masks.scheme": "nowhere:S",
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        tiny(*(f"{key}={path}" for key, path in paths.items()))
    message = str(caught.value)
    for key, path in paths.items():
        assert message.count(f"{key} is {path!r}, but {path.partition(':')[0]} cannot be imported") == 1, key
    assert f"see {tmp_path / 'half_written.py'}, line 3" in message
    assert "it needs no_such_package, which is not installed here" in message and message.count("(PYTHONPATH)") == 5


NEW_SETTINGS = {
    "wire.up": "f16", "wire.down": "bf16", "wire.rounding": "nearest", "wire.block": 64, "wire.up_share": 0.25, "wire.importance": "votes",
    "aggregation.rule": "trimmed-mean", "aggregation.options": {"trim": 0.3},
    "aggregation.unheld": "zero", "aggregation.min_votes": 2, "aggregation.shrinkage": 0.1,
    "aggregation.row_voting": False, "aggregation.stale": "normalise", "aggregation.clip": 3.0, "aggregation.probation": 4,
    "server_optimizer.name": "adam", "server_optimizer.lr": 1.0, "server_optimizer.momentum": 0.5,
    "server_optimizer.beta1": 0.8, "server_optimizer.beta2": 0.9, "server_optimizer.tau": 0.01, "federation.mask": "local",
    "federation.batchnorm": "recompute",
}  # fmt: skip


def test_every_setting_of_wire_aggregation_and_server_is_reachable():
    """All at once, `adam` with a learning rate of 1 among them: unwise, but it is the user's choice."""
    flat = NEW_SETTINGS | {"aggregation.options": "{trim = 0.3}"}
    spelled = [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in flat.items()]
    experiment = tiny(*spelled)
    for key, value in NEW_SETTINGS.items():
        section, name = key.split(".")
        assert getattr(getattr(experiment, section), name) == value, key
    for section in ("wire", "aggregation", "server_optimizer"):
        assert {key.split(".")[1] for key in NEW_SETTINGS if key.startswith(f"{section}.")} == vars(getattr(experiment, section)).keys()
    assert from_tree(tomllib.loads(tomli_w.dumps(to_tree(experiment)))) == experiment


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("tdm.importance=two-term", "tdm: gradient is 'last-step', but importance 'two-term'"),
        ("federation.mask=local", "tdm.gradient is 'last-step', but federation.mask is 'local': such masks change before a round"),
    ],
)
def test_the_gradient_of_the_last_step_goes_with_one_merged_term_and_shared_masks(other, message):
    with pytest.raises(ConfigError) as caught:
        tiny("tdm.gradient=last-step", other)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["masks.scheme=rigl2"],
            "masks.scheme is 'rigl2': input should be 'tdm', 'set', 'rigl', 'packnet' or 'static'; did you mean 'rigl'?",
        ),
        (
            ["masks.scheme=math:pi"],
            "masks.scheme is 'math:pi', which is no scheme: a class derived from",
        ),
        (["masks.initial=snap"], "masks.initial is 'snap': input should be 'random', 'magnitude' or 'snip'"),
        (["masks.densities=global"], "masks: densities is 'global', but initial 'random' ranks nothing: take initial=snip or magnitude"),
        (
            ["masks.densities=global", "masks.initial=snip"],
            "masks.densities is 'global', but masks.scheme 'tdm': .*or masks.scheme=",
        ),
        (["masks.exchange=1.0"], "masks: exchange is 1.0: a share of the active weights, in (0, 1)"),
        (["masks.until=0.0"], "masks: until is 0.0: a share of a task's epochs"),
        (["masks.batches=-1"], "masks: stage_epochs is 0, batches -1: neither may be negative"),
        (["masks.scheme=rigl", "masks.stage_epochs=3"], "federation.local_epochs is 1: with rounds of that length masks would never adapt"),
        (["masks.scheme=set", "federation.rounds_per_task=1"], "federation.local_epochs is 1: .*, or set masks.scheme=static"),
        (
            ["budget.memory=fit", "masks.densities=erk"],
            "budget.memory is 'fit', but masks.densities 'erk': .*=uniform",
        ),
    ],
)
def test_masks_that_cannot_be(settings, message):
    with pytest.raises(ConfigError) as caught:
        tiny(*settings)
    start, _, end = message.partition(".*")
    assert str(caught.value).startswith(start) and str(caught.value).count(end)


def test_snip_and_a_file_of_weights_do_not_go_together():
    with pytest.raises(ValueError, match="masks.initial is 'snip', but model.weights names a file: devices draw the dense network"):
        replace(tiny("masks.initial=snip"), model=replace(tiny().model, weights="somewhere.safetensors"))


def test_what_tdm_asks_for_does_not_bind_other_schemes():
    """Four stages, shares below the density, and the last step's gradient with a shared mask are rules of TDM alone."""
    for scheme in ("static", "rigl"):
        made = tiny(
            f"masks.scheme={scheme}", "masks.stage_epochs=1", "tdm.p_intra=0.5", "federation.rounds_per_task=3", "tdm.gradient=last-step",
            "federation.mask=local",
        )  # fmt: skip
        assert made.masks.scheme == scheme
    assert dense_twin(made).masks == MaskConfig()


def test_several_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        tiny("learner.lrr=0.1", "seed=x")
    assert "learner.lrr" in str(caught.value) and "seed is 'x'" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (("learner.lrr=1", "learner.method=derp", "clock.mode=sync", "wire.block=-1"), ("'learner.lr'", "'derpp'?", "wire: block is -1")),
        (("seed=-1", "target=2", "evaluate_every=-1"), ("seed is -1", "target is 2", "evaluate_every is -1")),
        (
            ("stream.online=true", "federation.local_epochs=2", "budget.memory=fit", "federation.mask=local"),
            ("ddr.enabled=false", "single pass", "mask=shared"),
        ),
        (("learner.lr", "=3", "seed.first=1"), ("--set 'learner.lr'", "--set '=3'", "--set 'seed.first=1'")),
    ],
)
def test_all_mistakes_of_a_kind_are_told_at_once(overrides, messages):
    with pytest.raises(ConfigError) as caught:
        tiny(*(["seed=0"] if overrides[-1].startswith("seed.") else []), *overrides)
    for message in messages:
        assert message in str(caught.value)


def test_a_misspelt_section_of_a_file_is_a_section(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[learnr]\nlr = 0.1\nbatch_size = 4\n")
    with pytest.raises(ConfigError, match="unknown config key 'learnr'; did you mean 'learner'[?]$"):
        load(str(path))


def test_a_misspelt_experiment_is_recognised(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="experiment 'split-digit' is not here; did you mean 'split-digits'[?] there are "):
        load("split-digit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("seed = 3")
    for name in ("mine", str(tmp_path / "mine")):
        with pytest.raises(ConfigError, match="for the file say .*mine.toml"):
            load(name)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        (tmp_path / "folder.toml").mkdir()
        load("folder.toml")


def test_a_byte_order_mark_and_line_ends_of_windows_change_nothing(tmp_path):
    path, text = tmp_path / "mine.toml", 'description = """a\nb"""\nseed = 3\n[learner]\nlr = 0.5\n'
    path.write_bytes(text.encode())
    plain = load(str(path))
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert load(str(path)) == plain


DEEP = {
    "lists": "x = " + 100_000 * "[",
    "closed lists": "x = " + 300 * "[" + 300 * "]",
    "inline tables": "x = " + 5000 * "{a = " + "1" + 5000 * "}",
    "dotted keys": f"x{5000 * '.a'} = 1",
    "tables": f"[x{5000 * '.a'}]",
    "digits": f"seed = {5000 * '1'}",
    "hexadecimal digits": f"seed = 0x{5000 * 'f'}",
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP)
def test_a_file_that_is_deep_or_long_is_one_message(tmp_path, text):
    path = tmp_path / "deep.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert len(str(caught.value)) < 400
    key, sign, value = text.partition(" = ")
    with pytest.raises(ConfigError) as caught:
        tiny(f"{key}={value}" if sign else f"{key[1:-1]}=1")
    assert len(str(caught.value)) < 1000


def test_nothing_behind_a_value_is_dropped():
    """A line end would begin another setting, which nobody would see."""
    assert tiny("description='a'\nseed = 7").description == "'a'\nseed = 7"
    with pytest.raises(ConfigError, match="a byte that is not UTF-8"):
        tiny("description=\udcff")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("federation.local_epochs=70000", "federation.local_epochs is 70,000: at most 65,535"),
        ("stream.devices=1000000000", "stream.devices is 1,000,000,000: at most 10,000,000"),
        ("federation.rounds_per_task=10000000", "federation.rounds_per_task is 10,000,000: at most 1,000,000"),
        ("stream.cycles=65535", "stream.tasks x stream.cycles is 131,070: a device's stream has at most 65,535 steps"),
        ("model.hidden=2147483647", "model.width is 8 and model.hidden 2,147,483,647: that is 17,179,869,752 weights"),
        ("model.width=800000", "weights and more of a cnn, and 268,435,456 is the most"),
        ("seed=100000000000000000000000", "seed is 100,000,000,000,000,000,000,000: at most 9,223,372,036,854,775,807"),
        (f"tdm.batches={10**40}", "tdm.batches is above 2^132: at most 2,147,483,647"),
        ("stream.alpha=1e300", "stream.alpha is 1e+300: at most 1e+09"),
        ("stream.alpha=1e-300", "stream.alpha is 1e-300: at least 1e-06"),
        ("clock.start_hour=1e308", "clock.start_hour is 1e+308: at most 1e+07"),
    ],
)
def test_what_is_too_large_is_said_before_anything_is_made(override, message):
    with pytest.raises(ConfigError) as caught:
        tiny(override)
    assert message in str(caught.value)


def test_rounds_and_devices_are_bounded_together():
    many = ("stream.partition=drawn", "stream.samples=5", "stream.devices=1000000")
    with pytest.raises(ConfigError, match="1,000 rounds of 1,000,000 devices: .* at most 100,000,000; set federation.cohort_size"):
        tiny(*many, "federation.rounds=1000")
    assert tiny(*many, "federation.rounds=1000", "federation.cohort_size=100").stream.devices == 1_000_000
    with pytest.raises(ConfigError, match="stream.devices x stream.tasks x stream.cycles is 2,000,000,000"):
        tiny(*many, "stream.cycles=1000", "federation.cohort_size=100")


NUMBERS = [
    (key, default)
    for section in (*SECTIONS.values(), Experiment)
    for key, default in (
        (f"{prefix}{part.name}", part.default)
        for prefix in [next((f"{f.name}." for f in dataclasses.fields(Experiment) if f.type is section), "")]
        for part in dataclasses.fields(section)
    )
    if isinstance(default, int | float) or default is None
]
INTEGERS = st.integers(-3, 70_000) | st.sampled_from([2**15, 2**16, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, 10**400, -(10**400)])
FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1) | st.sampled_from([5e-324, 1e-300, 1e300, 1.7e308])


@given(st.dictionaries(st.sampled_from([key for key, _ in NUMBERS]), INTEGERS | FLOATS | st.booleans(), max_size=4))
@settings(deadline=5000, max_examples=300)
def test_any_numbers_make_an_experiment_or_one_message(values):
    """Never anything else, and never for long. What is made survives a file."""
    tree = to_tree(tiny())
    for key, value in values.items():
        *parents, last = key.split(".")
        section = tree
        for parent in parents:
            section = section[parent]
        section[last] = value
    try:
        made = from_tree(tree)
    except ConfigError as error:
        assert str(error)
    else:
        assert from_tree(tomllib.loads(tomli_w.dumps(to_tree(made)))) == made


# -- tasks that are shorter than the file's


@pytest.mark.parametrize("name", available())
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_stages_follow_a_task_that_is_made_shorter(name, data):
    """A task that is long enough for as many stages of an epoch has as many as before, and no stage is longer than it was."""
    full = load(name)
    before, rounds = full.federation.task_epochs, full.federation.rounds_per_task
    length = tdm.stage_length(full.tdm, before)
    stages = tdm.num_stages(before, length)
    shorter = data.draw(st.integers(1, rounds))
    epochs = shorter * full.federation.local_epochs
    assume(epochs >= max(4, stages) and stages >= 4)
    made = load(name, [f"federation.rounds_per_task={shorter}"])
    assert tdm.num_stages(epochs, tdm.stage_length(made.tdm, epochs)) >= stages
    if ddr.stage_length(full.ddr, before) * epochs >= before:  # else a removal would come more often than once an epoch
        assert ddr.num_stages(made.ddr, epochs) >= ddr.num_stages(full.ddr, before)
    assert made.tdm.stage_epochs <= length and (shorter < rounds or made == full)


def test_stages_stay_where_they_were_set_or_tasks_grow():
    assert load("split-digits", ["federation.rounds_per_task=4"]).tdm.stage_epochs == 2
    assert load("split-digits", ["federation.rounds_per_task=20"]).tdm.stage_epochs == 5
    assert load("split-digits", ["federation.rounds_per_task=5", "tdm.stage_epochs=1"]).tdm.stage_epochs == 1
    with pytest.raises(ConfigError, match="TDM needs at least 4"):
        load("split-digits", ["federation.rounds_per_task=4", "tdm.stage_epochs=5"])


def test_a_date_is_text():
    """TOML knows dates, experiments do not: 2024-01-01 is a fine description and no number."""
    assert tiny("description=2024-01-01").description == "2024-01-01"
    with pytest.raises(ConfigError, match="seed is '2024-01-01'"):
        tiny("seed=2024-01-01")


def test_files_that_are_not_there_or_no_toml(tmp_path):
    with pytest.raises(ConfigError, match="experiment 'nope' is not here; there are .*split-digits"):
        load("nope")
    with pytest.raises(ConfigError, match=r"there is no file '.*nope\.toml'"):
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
    own = {key: getattr(sparse, key) for key in ("name", "sparsity", "masks", "tdm", "ddr", "dgm", "wire", "federation")}
    assert replace(dense, **own) == sparse
    assert replace(dense.federation, mask="local") == sparse.federation


def test_what_sparsity_0_leaves_on_is_named():
    assert left_on(load("split-digits")) == []
    assert left_on(load("split-digits", ["sparsity=0"])) == ["data removal (ddr)", "int6 updates up and int8 down (wire)"]
    assert left_on(load("split-digits", ["sparsity=0", "ddr.enabled=false"])) == ["int6 updates up and int8 down (wire)"]
    assert left_on(dense_twin(load("split-digits"))) == []
