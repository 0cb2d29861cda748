"""`sparcl calibrate`: the fit finds figures that are known, the profile loads again, bad input is one message. No test reads a speed."""

import math
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from simulations.__main__ import app
from simulations.calibration import fit as calibration
from simulations.calibration import timed_sessions
from simulations.calibration.fit import Calibration, Figure, calibrate, default_name, fit, memory_bytes, predicted, table, write
from simulations.calibration.timed_sessions import BACKBONES, Measured, Point, PointSessions, grid, measure
from simulations.config.errors import ConfigError
from simulations.fleet.profiles import load_profile, new_profile
from sparcl_core.costs.device import Cost, DeviceProfile, compute_cost
from sparcl_core.costs.flops import Flops
from sparcl_core.kernels import build
from sparcl_core.networks.models import ModelConfig

RATE = 2e10
TINY = (ModelConfig("cnn", width=8, hidden=16), (1, 8, 8))
KNOWN = DeviceProfile(
    "known", flops_per_s=RATE, efficiency=0.8, sparse_efficiency=0.4, memory_bytes=1e9, active_w=5.0, idle_w=1.0, radio_j_per_byte=0.0,
    down_bits_per_s=1e6, up_bits_per_s=1e6, latency_s=0.1, moved_bytes_per_s=1.5e9, step_s=0.002, layer_s=0.0003,
)  # fmt: skip


def session(sparsity: float, batch: int, layers: int = 4, forward: int = 10**7, seconds: float = 1.0) -> Measured:
    """A session of 10 steps of a network whose maskable layers have nine tenths of its FLOPs."""
    samples, train = 10 * batch, 30 * batch * forward
    sparse = round(0.9 * (1 - sparsity) * train) if sparsity else 0
    dense = train - round(0.9 * train) if sparsity else train
    flops = Flops(train_sparse=sparse, train_dense=dense, samples=samples, steps=10)
    return Measured(Point(*TINY, "sgd", sparsity, batch, 10), flops, forward // 100, layers, seconds)


def synthetic(profile: DeviceProfile) -> list[Measured]:
    """Sessions that take exactly what the cost model says."""
    points = [session(s, b, layers, f) for s in (0, 0.5, 0.8, 0.95) for b in (4, 16, 64) for layers, f in ((4, 10**6), (20, 10**8))]
    return [replace(one, seconds=predicted(profile, one)) for one in points]


def test_a_prediction_by_hand():
    # 10 steps of 2 samples, 3 passes of 1e7 FLOPs each: 60e7, of which 0.9 may be sparse, and are by half
    one = session(0.5, 2)
    assert (one.flops.train_sparse, one.flops.train_dense) == (270_000_000, 60_000_000)
    by_hand = 27e7 / (RATE * 0.4) + 6e7 / (RATE * 0.8) + 20 * 1e5 / 1.5e9 + 10 * (0.002 + 4 * 0.0003)
    assert math.isclose(predicted(KNOWN, one), by_hand)


def test_layers_that_are_called_cost_seconds_and_joules_where_the_profile_says_so():
    flops = Flops(samples=5, steps=10)
    found = compute_cost(KNOWN, flops, layer_passes=7)
    assert math.isclose(found.seconds, 10 * (0.002 + 7 * 0.0003)) and math.isclose(found.joules, 5 * found.seconds)
    assert compute_cost(replace(KNOWN, step_s=0.0, layer_s=0.0), flops, layer_passes=7) == Cost(flops=flops)


@given(
    efficiency=st.floats(0.1, 1), sparse=st.floats(0.02, 1), moved=st.floats(1e8, 1e11), step_s=st.floats(1e-5, 0.01),
    layer_s=st.floats(1e-6, 1e-3),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_known_figures_are_recovered(efficiency, sparse, moved, step_s, layer_s):
    known = {"efficiency": efficiency, "sparse_efficiency": sparse, "moved_bytes_per_s": moved, "step_s": step_s, "layer_s": layer_s}
    found = fit(synthetic(replace(KNOWN, **known)), RATE)
    for key, value in known.items():
        assert math.isclose(getattr(found, key), value, rel_tol=1e-3), key


def test_what_costs_nothing_is_found_to_cost_nothing():
    free = replace(KNOWN, step_s=0.0, layer_s=0.0, moved_bytes_per_s=math.inf)
    found = fit(synthetic(free), RATE)
    assert found.moved_bytes_per_s > 1e15 and found.step_s < 1e-9 and found.layer_s < 1e-9
    assert found.efficiency == pytest.approx(0.8) and found.sparse_efficiency == pytest.approx(0.4)


def test_relative_errors_count():
    # every session twice, once three times slower: (x - 1)^2 + (x / 3 - 1)^2 is least at x = (1 + 1/3) / (1 + 1/9) = 1.2
    once = synthetic(KNOWN)
    found = fit([*once, *(replace(one, seconds=3 * one.seconds) for one in once)], RATE)
    assert found.sparse_efficiency == pytest.approx(0.4 / 1.2) and found.step_s == pytest.approx(1.2 * 0.002)


@pytest.mark.parametrize(("sparsities", "missing"), [((0.0,), "sparse FLOPs"), ((), "sparse FLOPs")])
def test_sessions_that_do_not_determine_the_figures(sparsities, missing):
    with pytest.raises(ValueError, match=f"no session has {missing}"):
        fit([session(s, 4) for s in sparsities], RATE)


def test_seconds_that_do_not_depend_on_the_work():
    with pytest.raises(ValueError, match="hardly grow with their FLOPs.* calibrate without --quick"):
        fit([session(s, 4, seconds=1.0) for s in (0, 0.5, 0.9)], RATE)


def test_the_grid_leaves_out_what_the_check_holds_out():
    points = grid(["cnn", "resnet18", "cnn"])
    assert {point.sparsity for point in points} == {0.0, 0.6, 0.8, 0.92, 0.97} and len(set(points)) == len(points) == 35
    assert set(grid(["cnn", "resnet18"], quick=True)) < set(points)
    assert {point.model.name for point in grid(["mlp"])} == {"mlp"}
    with pytest.raises(ValueError, match="model is 'vgg': choose from mlp, cnn, resnet18"):
        grid(["vgg"])


@pytest.mark.parametrize(("sparsity", "method", "passes"), [(0.0, "sgd", 1), (0.8, "derpp", 3)])
def test_a_session_does_what_it_says(sparsity, method, passes):
    point = Point(*TINY, method, sparsity, batch=4, steps=3)
    sessions = PointSessions(point)
    seconds = sessions.run()
    assert seconds > 0 and (sessions.flops.steps, sessions.flops.samples) == (3, 12 * passes)
    assert (sessions.flops.train_sparse > 0) == (sparsity > 0)
    assert sessions.layer_passes == 4  # two convolutions, two linear layers; replay shares the forward pass
    first = sessions.flops
    sessions.run()
    assert sessions.flops == first


@pytest.fixture
def tiny(monkeypatch):
    """A calibration of two sessions whose seconds are those of KNOWN, on a machine without a meter; gives sysfs."""
    monkeypatch.setitem(BACKBONES, "cnn", TINY)
    monkeypatch.setitem(timed_sessions.SESSIONS, "cnn", (("sgd", 4, 2), ("sgd", 8, 2)))
    monkeypatch.setattr(calibration, "product_rate", lambda: RATE)
    true = measure
    monkeypatch.setattr(
        calibration, "measure",
        lambda *args: tuple(replace(one, seconds=predicted(KNOWN, one)) for one in true(*args)),
    )  # fmt: skip
    monkeypatch.setattr(calibration, "POWER_S", 0.01)
    if build.backend().library is None:
        pytest.skip(build.backend().reason)
    return Path("nowhere")


def test_what_is_written_loads_again(tiny, tmp_path):
    told = []
    found = calibrate(["cnn"], True, name="Toy", given={"idle_w": 0.5, "latency_s": 0.02}, root=tiny, observe=told.append)
    with new_profile(tmp_path / "toy.toml") as file:
        write(file, found)
    profile, assumed = load_profile(str(tmp_path / "toy.toml"))
    assert profile == found.profile and profile.name == "Toy"
    assert assumed == ["active_w", "radio_j_per_byte", "down_bits_per_s", "up_bits_per_s"]
    assert (profile.flops_per_s, profile.idle_w, profile.latency_s) == (RATE, 0.5, 0.02)
    assert profile.efficiency == pytest.approx(0.8, rel=0.05) and 0 < profile.memory_bytes == pytest.approx(memory_bytes(), rel=0.5)
    figure = found.figures["sparse_efficiency"]
    assert figure.source.startswith("measured: sparcl calibrate, ") and figure.date == date.today().isoformat()
    assert ", one thread, torch " in figure.source and figure.source.endswith(f", kernels {build.backend().name}")
    assert found.no_power == "no battery; no INA3221 rails; no RAPL counters" and "turn 3/3" in told


def test_power_that_the_machine_shows_is_measured(tiny, tmp_path):
    folder = tmp_path / "class/power_supply/BAT0"
    folder.mkdir(parents=True)
    files = {"type": "Battery", "status": "Discharging", "power_now": 3_000_000, "energy_full": 10_000_000}
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    found = calibrate(["cnn"], True, root=tmp_path)
    assert (found.profile.idle_w, found.profile.active_w, found.profile.battery_j) == (3.0, 3.0, 36_000.0)
    assert found.figures["idle_w"].source.endswith("battery, whole device") and found.no_power == ""


def test_the_table_has_80_columns():
    lines = table(Calibration(KNOWN, {}, tuple(synthetic(KNOWN)), "")).splitlines()
    assert len(lines) == 25 and {len(line) for line in lines} <= set(range(81)) and lines[1].endswith("+0.0%")


def test_figures_that_make_no_sense(tiny):
    with pytest.raises(ConfigError, match="idle_w is -1: it needs a finite number above 0"):
        calibrate(["cnn"], True, given={"idle_w": -1.0})


def test_without_kernels_there_is_nothing_to_measure(monkeypatch):
    monkeypatch.setattr(calibration, "backend", lambda: build.Backend(None, "dense", "no C compiler found", "", "", 0.0))
    with pytest.raises(ConfigError, match="no sparse kernels here, .* no C compiler found"):
        calibrate(["cnn"], True)


def test_a_file_of_a_calibration_that_failed_is_gone(tmp_path):
    with pytest.raises(KeyError), new_profile(tmp_path / "a.toml"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_calibration_that_fails_deletes_no_file_of_somebody_else(tmp_path):
    with pytest.raises(KeyError), new_profile(tmp_path / "a.toml"):
        (tmp_path / "a.toml").unlink()
        (tmp_path / "a.toml").write_text("somebody else's")
        raise KeyError
    assert (tmp_path / "a.toml").read_text() == "somebody else's"


def test_the_default_file_is_named_after_the_processor(monkeypatch):
    monkeypatch.setattr(calibration, "machine", lambda: "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz")
    assert default_name() == f"intel-xeon-e5-2680-v4-{build.backend().name}.toml"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("missing/a.toml", "cannot write {}: No such file or directory; take another --out"),
        ("there.toml", "{} is there already: remove it, or take another --out"),
        ("a.json", "a profile is a TOML file"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_message_before_anything_is_measured(tmp_path, monkeypatch, out, message):
    monkeypatch.setattr(calibration, "calibrate", lambda *args, **kwargs: pytest.fail("measured"))
    (tmp_path / "there.toml").write_text("mine")
    result = CliRunner().invoke(app, ["calibrate", "--out", str(tmp_path / out)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and message.format(tmp_path / out) in result.stderr
    assert len(result.stderr.splitlines()) == 1 and (tmp_path / "there.toml").read_text() == "mine"


def test_the_command_prints_the_table_and_what_is_assumed(tmp_path, monkeypatch):
    figures = {"idle_w": Figure(1.0, "measured: x", "2026-01-01"), "active_w": Figure(5.0, "assumption: placeholder")}
    asked = []

    def found(models, quick, name, given, observe):
        asked.extend([models, quick, name, given])
        return Calibration(KNOWN, figures, tuple(synthetic(KNOWN)), "no battery")

    monkeypatch.setattr(calibration, "calibrate", found)
    options = ["--model", "mlp", "--quick", "--name", "Toy", "--down-mbit", "8", "--latency-ms", "30"]
    result = CliRunner().invoke(app, ["calibrate", "--out", str(tmp_path / "a.toml"), *options])
    assert result.exit_code == 0, result.output
    assert asked == [["mlp"], True, "Toy", {"down_bits_per_s": 8e6, "latency_s": 0.03}]
    assert "measured ms" in result.stdout and "so assumed: active_w\n" in result.stdout and "no power was read: no battery" in result.stdout
    assert "[active_w]" in (tmp_path / "a.toml").read_text()
