"""Fleets of unlike devices: mixes, spreads and files."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.config.errors import ConfigError
from simulations.config.sections import FleetConfig
from simulations.fleet.mix import make_hardware, quotas, read_fleet
from simulations.fleet.profiles import FIGURES, load_profile

PI, PHONE = load_profile("raspberry-pi-4")[0], load_profile("phone")[0]
MIX = {"raspberry-pi-4": 0.5, "phone": 0.3, "microcontroller": 0.2}


def make(devices: int = 10, seed: int = 0, **settings):
    return make_hardware(FleetConfig(**settings), "raspberry-pi-4", devices, seed)


def names(fleet) -> list[str]:
    return [fleet.hardware[device].name for device in range(len(fleet.hardware))]


# -- mixes


def test_without_settings_all_are_the_experiments_profile():
    fleet = make(3)
    assert [fleet.hardware[device] for device in range(3)] == [PI] * 3
    assert fleet.assumed == {"raspberry-pi-4": load_profile("raspberry-pi-4")[1]}


def test_blocks_by_hand():
    # shares of 4 devices: 2.0, 1.2, 0.8: whole parts 2, 1, 0; the device left over goes to the largest remainder, 0.8
    assert names(make(4, mix=MIX, assign="blocks")) == ["Raspberry Pi 4"] * 2 + ["Phone (Galaxy S20 class)"] + ["ESP32-S3"]


def test_random_deals_the_same_quotas_in_another_order():
    blocks, dealt = names(make(100, mix=MIX, assign="blocks")), names(make(100, mix=MIX))
    assert sorted(blocks) == sorted(dealt) and blocks != dealt
    assert dealt == names(make(100, mix=MIX)) != names(make(100, seed=1, mix=MIX))


def test_every_device_is_equally_often_of_each_kind():
    """Over seeds: a kind with a tenth of the devices falls on each of 10 devices in about a tenth of 400 seeds."""
    mix = {"raspberry-pi-4": 9.0, "phone": 1.0}
    held = np.sum([make(seed=seed, mix=mix).hardware.kind for seed in range(400)], axis=0)
    assert held.sum() == 400 and np.abs(held - 40).max() < 5 * math.sqrt(400 * 0.1 * 0.9)


def test_assumed_speaks_only_of_profiles_that_some_device_has():
    assert list(make(10, mix={"raspberry-pi-4": 1, "phone": 0}).assumed) == ["raspberry-pi-4"]
    assert list(make(1, mix=MIX, assign="blocks").assumed) == ["raspberry-pi-4"]


def test_a_mix_may_name_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'name = "Mine"\nnetwork = "lte-2012"\n'
        + "".join(f'[{f}]\nvalue = 1\nsource = "assumption: one"\n' for f in FIGURES[:7])  # flops_per_s to radio_j_per_byte
    )
    assert names(make(2, mix={str(tmp_path / "mine.toml"): 1})) == ["Mine", "Mine"]


WEIGHTS = st.lists(st.floats(0, 1e308) | st.just(0.0), min_size=1, max_size=6).filter(any)


@given(WEIGHTS, st.integers(1, 1000))
def test_quotas_add_up_and_miss_the_share_by_less_than_one(weights, devices):
    counts = quotas(weights, devices)
    shares = np.array(weights) / max(weights)
    assert counts.sum() == devices and counts.dtype == np.int64
    assert (np.abs(counts - shares / shares.sum() * devices) < 1 + 1e-9).all()
    assert (counts[np.array(weights) == 0] == 0).all()


def test_quotas_with_equal_remainders_prefer_the_earlier_profile():
    assert quotas([1, 1, 1], 10).tolist() == [4, 3, 3] and quotas([1, 1, 1], 11).tolist() == [4, 4, 3]


# -- spreads


def test_a_spread_moves_what_belongs_together():
    hardware = make(mix=MIX, assign="blocks", compute_spread=0.5, network_spread=0.3).hardware
    plain = make(mix=MIX, assign="blocks").hardware
    ratio = {figure: hardware.column(figure) / plain.column(figure) for figure in FIGURES if (plain.column(figure) > 0).all()}
    np.testing.assert_allclose(ratio["flops_per_s"], ratio["moved_bytes_per_s"])
    np.testing.assert_allclose(ratio["down_bits_per_s"], ratio["up_bits_per_s"])
    changed = {figure for figure, factor in ratio.items() if not np.allclose(factor, 1)}
    assert changed == {"flops_per_s", "moved_bytes_per_s", "down_bits_per_s", "up_bits_per_s"}
    assert not np.allclose(ratio["flops_per_s"], ratio["up_bits_per_s"])


def test_a_spread_is_log_normal_with_median_one():
    logs = np.log(make(20_000, compute_spread=0.5).hardware.column("flops_per_s") / PI.flops_per_s)
    # standard errors: of the mean 0.5 / sqrt(20000) = 0.0035, of the deviation 0.0025
    assert abs(logs.mean()) < 0.018 and abs(logs.std() - 0.5) < 0.013


def test_the_two_spreads_are_independent():
    hardware = make(20_000, compute_spread=1.0, network_spread=1.0).hardware
    logs = [np.log(hardware.factors[figure]) for figure in ("flops_per_s", "up_bits_per_s")]
    assert abs(np.corrcoef(logs)[0, 1]) < 5 / math.sqrt(20_000)


def test_a_devices_spread_does_not_depend_on_how_many_there_are():
    few, many = (make(n, compute_spread=1.0).hardware.column("flops_per_s") for n in (5, 500))
    assert few.tolist() == many[:5].tolist() != make(5, seed=1, compute_spread=1.0).hardware.column("flops_per_s").tolist()


def test_a_device_of_a_million_is_made_alone():
    fleet = make(1_000_000, mix=MIX, compute_spread=0.5)
    assert len(fleet.hardware) == 1_000_000 and np.bincount(fleet.hardware.kind).tolist() == [500_000, 300_000, 200_000]
    assert fleet.hardware[999_999].flops_per_s == fleet.hardware.column("flops_per_s")[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": {"phone": 1.0}, "file": "fleet.csv"}, "mix and file are both given"),
        ({"mix": {"phone": -1.0}}, "mix.phone is -1.0: a weight is finite and not negative"),
        ({"mix": {"phone": math.nan}}, "mix.phone is nan"),
        ({"mix": {"phone": math.inf}}, "mix.phone is inf"),
        ({"mix": {"phone": 0.0, "jetson-nano": 0.0}}, r"weights of mix \(phone, jetson-nano\) sum to 0"),
        ({"compute_spread": -0.1}, r"compute_spread is -0.1: a sigma in \[0, 3\]"),
        ({"network_spread": math.nan}, "network_spread is nan"),
        ({"network_spread": 4.0}, "network_spread is 4.0"),
        ({"assign": "alphabetical"}, "assign is 'alphabetical': choose blocks or random"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        FleetConfig(**settings)


def test_a_profile_that_is_not_there():
    with pytest.raises(ConfigError, match="profile 'toaster' is not here"):
        make(mix={"phone": 1.0, "toaster": 0.0})


# -- files


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "fleet.csv"
        path.write_bytes(text.encode())
        return str(path)

    return write


def test_a_file_by_hand(write):
    file = write(
        "profile,flops_per_s,battery_j\n"
        "raspberry-pi-4,,\n"
        "phone,1e9,0\n"
        "\n"
        " raspberry-pi-4 , 2.5e10 , 3600 \n"
    )  # fmt: skip
    fleet = make(3, file=file)
    assert names(fleet) == ["Raspberry Pi 4", "Phone (Galaxy S20 class)", "Raspberry Pi 4"]
    assert fleet.hardware.column("flops_per_s").tolist() == [PI.flops_per_s, 1e9, 2.5e10]
    assert fleet.hardware.column("battery_j").tolist() == [0, 0, 3600]
    assert fleet.hardware.column("idle_w").tolist() == [PI.idle_w, PHONE.idle_w, PI.idle_w]
    # all phones state rate and battery, so that these are not taken from the profile, where they are assumptions
    assert {"flops_per_s", "battery_j"} < set(load_profile("phone")[1])
    assert fleet.assumed["phone"] == [f for f in load_profile("phone")[1] if f not in ("flops_per_s", "battery_j")]
    assert fleet.assumed["raspberry-pi-4"] == load_profile("raspberry-pi-4")[1]


def test_a_spread_leaves_alone_what_a_device_states(write):
    hardware = make(2, file=write("profile,flops_per_s\nphone,1e9\nphone,\n"), compute_spread=0.5).hardware
    stated, spread = hardware.column("flops_per_s")
    assert stated == 1e9 and spread != PHONE.flops_per_s
    assert hardware.column("moved_bytes_per_s")[0] != PHONE.moved_bytes_per_s


def test_a_file_as_a_spreadsheet_writes_it(write):
    """A byte order mark, blanks around cells, and rows and columns of nothing behind the table."""
    loaded, kind, own = read_fleet(write("\ufeff\r\n profile , idle_w ,,\r\nphone, 0.1,,\r\n , ,\r\n,,,\r\n"), 1)
    assert list(loaded) == ["phone"] and kind.tolist() == [0] and own["idle_w"].tolist() == [0.1]


def test_one_energy_instead_of_the_other(write):
    profile = make(1, file=write("profile,active_w,j_per_flop,radio_w,radio_j_per_byte\nphone,0,1e-9,0.8,0\n")).hardware[0]
    assert (profile.active_w, profile.j_per_flop, profile.radio_w, profile.radio_j_per_byte) == (0, 1e-9, 0.8, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: there is no column 'profile'"),
        ("kind,idle_w\nphone,1\n", "line 1: there is no column 'profile'"),
        ("profile,speed\nphone,1\n", "line 1: unknown column 'speed'; beside profile there may be flops_per_s"),
        ("profile,name\nphone,x\n", "line 1: unknown column 'name'"),
        ("profile,idle_w,idle_w\nphone,1,1\n", "line 1: there are two columns 'idle_w'"),
        ("profile,idle_w\nphone,1\nphone,low\n", "line 3: idle_w is 'low': it needs a number"),
        ("profile,idle_w\n\nphone,-1\n", "line 3: idle_w is -1: it must be finite and above 0"),
        ("profile,idle_w\nphone,0\n", "line 2: idle_w is 0: it must be finite and above 0"),
        ("profile,battery_j\nphone,-1\n", "line 2: battery_j is -1: it must be finite and not negative"),
        ("profile,idle_w\nphone,nan\n", "line 2: idle_w is nan"),
        ("profile,idle_w\nphone,inf\n", "line 2: idle_w is inf"),
        ("profile,idle_w\nphone\n", "line 2: 1 of 2 cells"),
        ("profile,idle_w\nphone,1,2\n", "line 2: 3 of 2 cells"),
        ("profile\nphone\ntoaster\n", "line 3: profile 'toaster' is not here"),
        ("profile,j_per_flop\nphone,1e-9\n", "line 2: active_w is 5 and j_per_flop 1e-09 .*set the other to 0"),
        ("profile,active_w\nphone,0\n", "line 2: active_w is 0 and j_per_flop 0"),
        ("profile,radio_w\nphone,1\n", "line 2: radio_w is 1 and radio_j_per_byte 5.2e-06"),
        ("profile\nphone\n", r"has 1 rows, stream.devices is 2: there must be one row per device"),
        ("profile\nphone\nphone\nphone\n", "has 3 rows, stream.devices is 2"),
        ('profile\n"phone\n', "cannot be read .* CSV file in UTF-8"),
        ("profile,idle_w\nphone,low\ntoaster,1\n\nphone\ntoaster,", "line 2: idle_w.*; line 3: profile .*; line 5: 1 of 2 .*; line 6: p"),
    ],
)
def test_a_file_that_is_wrong(write, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make(2, file=write(text))
    assert "fleet.csv" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"fleet.file .*none.csv cannot be read \(No such file.*; it must be a CSV file .* 'profile'"):
        make(2, file=str(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes(b"profile\ncaf\xe9\n")
    with pytest.raises(ConfigError, match=r"fleet.file .*latin.csv cannot be read \('utf-8' codec"):
        make(2, file=str(tmp_path / "latin.csv"))
