"""Device profiles: every figure has a source, what is assumed says so, and units come out as SI."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.config.errors import ConfigError
from simulations.fleet import profiles
from simulations.fleet.profiles import FIGURES, MAY_BE_ZERO, NETWORK_FIGURES, NETWORKS, PROFILES, available, load_profile, networks
from simulations.fleet.units import to_si, units_of
from sparcl_core.costs.device import DeviceProfile

SHIPPED = [
    "jetson-nano", "jetson-orin-nano", "microcontroller", "phone",
    "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2w", "solar-camera",
]  # fmt: skip

# a whole profile, in hand-picked units
TEXT = """
name = "Toy"
[flops_per_s]
value = 2
unit = "GFLOP/s"
source = "a data sheet"
date = 2026-11-01
[efficiency]
value = 50
unit = "%"
source = "assumption: a guess"
[sparse_efficiency]
value = 0.1
source = "assumption: a guess"
[memory_bytes]
value = 2
unit = "GiB"
source = "a data sheet"
date = "2026-11"
[active_w]
value = 1500
unit = "mW"
source = "a data sheet"
date = "2026-11"
[idle_w]
value = 0.5
source = "a data sheet"
date = "2026-11"
[radio_j_per_byte]
value = 5.2
unit = "uJ/byte"
source = "a data sheet"
date = "2026-11"
[down_bits_per_s]
value = 8
unit = "Mbit/s"
source = "a data sheet"
date = "2026-11"
[up_bits_per_s]
value = 500
unit = "kbit/s"
source = "a data sheet"
date = "2026-11"
[latency_s]
value = 40
unit = "ms"
source = "a data sheet"
date = "2026-11"
[battery_j]
value = 2
unit = "Wh"
source = "assumption: two cells"
"""
TOY = DeviceProfile(
    "Toy", flops_per_s=2e9, efficiency=0.5, sparse_efficiency=0.1, memory_bytes=2 * 1024**3, active_w=1.5, idle_w=0.5,
    radio_j_per_byte=5.2e-6, down_bits_per_s=8e6, up_bits_per_s=5e5, latency_s=0.04, battery_j=7200.0,
)  # fmt: skip
LATENCY = '[latency_s]\nvalue = 40\nunit = "ms"\nsource = "a data sheet"\ndate = "2026-11"\n'
RADIO = '[radio_j_per_byte]\nvalue = 5.2\nunit = "uJ/byte"\nsource = "a data sheet"\ndate = "2026-11"\n'
ACTIVE = '[active_w]\nvalue = 1500\nunit = "mW"\nsource = "a data sheet"\ndate = "2026-11"\n'


@pytest.fixture
def load(tmp_path):
    """Loads `TEXT` with one thing replaced."""

    def load(old: str = "", new: str = "", text: str = TEXT):
        assert old in text
        path = tmp_path / "toy.toml"
        path.write_text(text.replace(old, new, 1) if old else text)
        return load_profile(str(path))

    return load


# -- what comes with the project


def trees():
    return [
        (path.name, tomllib.loads(path.read_text())) for folder in (PROFILES.folder, NETWORKS) for path in sorted(folder.glob("*.toml"))
    ]


@pytest.mark.parametrize(("name", "tree"), trees(), ids=[name for name, _ in trees()])
def test_every_figure_has_a_source(name, tree):
    for figure, entry in tree.items():
        if figure not in ("name", "network"):
            assert len(entry["source"]) > 10 and ("date" in entry) != ("assumption" in entry["source"]), (name, figure)


@pytest.mark.parametrize("name", available())
def test_what_is_assumed_is_what_the_files_call_so(name):
    profile, assumed = load_profile(name)
    tree = tomllib.loads((PROFILES.folder / f"{name}.toml").read_text())
    network = tomllib.loads((NETWORKS / f"{tree['network']}.toml").read_text()) if "network" in tree else {}
    figures = {**network, **tree}  # a device's own go before those of the network
    assert profile.name == tree["name"]
    assert assumed == [figure for figure in FIGURES if "assumption" in figures.get(figure, {}).get("source", "")]


@pytest.mark.parametrize("name", SHIPPED)
def test_figures_make_sense_together(name):
    profile, _ = load_profile(name)
    assert 0 < profile.sparse_efficiency <= profile.efficiency <= 1
    assert 0 < profile.idle_w < profile.active_w and profile.up_bits_per_s <= profile.down_bits_per_s
    assert 0 < profile.moved_bytes_per_s < 1e11 and 0 < profile.step_s < 0.1 and (profile.radio_w > 0) != (profile.radio_j_per_byte > 0)
    assert (profile.battery_j > 0) == (profile.charge_w > 0)


def test_networks_can_all_be_named(load):
    for name in networks():
        profile, _ = load('name = "Toy"', f'name = "Toy"\nnetwork = "{name}"')
        assert profile.down_bits_per_s == 8e6  # the device's own


def test_the_raspberry_pi_4_keeps_its_figures():
    """Published results were priced with them."""
    profile, assumed = load_profile("raspberry-pi-4")
    assert profile == DeviceProfile(
        "Raspberry Pi 4", 11.889e9, 0.5, 0.1, 8.0e9, 7.2, 2.5, 5.2e-6, 35.96e6, 11.22e6, 0.04, moved_bytes_per_s=1.0e9, step_s=0.002
    )
    assert assumed == ["efficiency", "sparse_efficiency", "radio_j_per_byte", "moved_bytes_per_s", "step_s"]


# -- one file


def test_units_by_hand(load):
    assert load() == (TOY, ["efficiency", "sparse_efficiency", "battery_j"])


def test_a_profile_from_a_network(load):
    """Without latency of its own it has that of the network, 21 ms; and what the network assumes is assumed."""
    profile, _ = load(LATENCY, "", TEXT.replace('"Toy"', '"Toy"\nnetwork = "fixed-2020"'))
    assert (profile.latency_s, profile.down_bits_per_s) == (0.021, 8e6)
    profile, assumed = load(LATENCY, "", TEXT.replace('"Toy"', '"Toy"\nnetwork = "wifi-home"'))
    assert (profile.latency_s, profile.jitter_s) == (0.025, 0.005) and {"latency_s", "jitter_s"} < set(assumed)
    assert "up_bits_per_s" not in assumed


def test_energy_per_flop_and_power_of_the_radio(load):
    text = TEXT.replace(RADIO, RADIO.replace("radio_j_per_byte", "radio_w").replace("uJ/byte", "W"))
    text = text.replace(ACTIVE, ACTIVE.replace("active_w", "j_per_flop").replace("mW", "pJ/FLOP"))
    profile, _ = load(text=text)
    assert (profile.active_w, profile.radio_j_per_byte, profile.radio_w) == (0, 0, 5.2)
    assert profile.j_per_flop == pytest.approx(1.5e-9)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ACTIVE, "", "states neither of active_w and j_per_flop"),
        (ACTIVE, ACTIVE + ACTIVE.replace("active_w", "j_per_flop").replace("mW", "pJ/FLOP"), "states both of active_w and j_per_flop"),
        (RADIO, "", "states neither of radio_w and radio_j_per_byte"),
        (
            RADIO,
            RADIO + RADIO.replace("radio_j_per_byte", "radio_w").replace("uJ/byte", "W"),
            "states both of radio_w and radio_j_per_byte",
        ),
        (LATENCY, "", r"latency_s is missing; .*or name a network: fixed-2020"),
        ("value = 0.5\n", "", "idle_w is None: it needs a number above 0"),
        ("value = 1500", "value = -1500", "active_w is -1500"),
        ("value = 1500", "value = 0", "active_w is 0: it needs a number above 0"),
        ("value = 1500", "value = '7 W'", "active_w is '7 W'"),
        ("value = 1500", "value = true", "active_w is True"),
        ("value = 1500", "value = nan", "active_w is nan"),
        ("value = 1500", "value = inf", "active_w is inf"),
        ("value = 1500", f"value = 1{'0' * 400}", "active_w is 10*[.]{3}: .*not inf"),
        ("value = 2\nunit", "value = -2\nunit", "flops_per_s is -2"),
        ("value = 2\nunit = 'Wh'".replace("'", '"'), "value = -1", "battery_j is -1: it needs a number not negative"),
        ("[latency_s]", "[latency]", "unknown figure 'latency'; did you mean 'latency_s'.*latency_s is missing"),
        ("[idle_w]\nvalue", "[idle_w]\nunits = 'W'\nvalue", "idle_w has an unknown key 'units'; a figure has value, unit, source, date"),
        ('name = "Toy"', 'name = "Toy"\nstep_s = 0.1', r"step_s is 0.1: a figure is a table \[step_s\]"),
        ('name = "Toy"', "", "name is None"),
        ('name = "Toy"', "name = 3", "name is 3"),
        ('name = "Toy"', 'name = "Toy"\nnetwork = "pigeon"', "network 'pigeon' is not here; there are fixed-2020"),
        ('name = "Toy"', 'name = "Toy"\nnetwork = ["lte-2012"]', "network .'lte-2012'. is not here"),
        ("date = 2026-11-01", "", "flops_per_s has no source with a date"),
        ('source = "a data sheet"\ndate = 2026-11-01', "", "flops_per_s has no source"),
        ('source = "assumption: two cells"', 'source = ""', "battery_j has no source"),
        ('source = "assumption: two cells"', "source = 7", "battery_j has no source"),
        ('unit = "Wh"', 'unit = "W"', "unit 'W' does not fit battery_j; write one of J, kJ, mWh, Wh, or none for J"),
        ('unit = "Mbit/s"', 'unit = "MB/s"', "unit 'MB/s' does not fit down_bits_per_s; write one of bit/s, kbit/s"),
        ('unit = "Wh"', 'unit = "furlong"', "unit 'furlong'"),
        ('unit = "Wh"', "unit = ['J']", "unit .'J'. does not fit"),
        ("value = 0.5", "value = ", "is no TOML: .*line 26"),
    ],
)
def test_what_is_wrong_is_named(load, old, new, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(old, new)
    assert "toy.toml" in str(caught.value)


@pytest.mark.parametrize("figure", sorted(MAY_BE_ZERO - {"radio_w"}))
def test_zero_where_it_means_something(load, figure):
    zero = f'[{figure}]\nvalue = 0\nsource = "assumption: none"\n'
    profile, _ = load(text=TEXT.replace(RADIO, zero) if figure == "radio_j_per_byte" else TEXT[: TEXT.index("[battery_j]")] + zero)
    assert getattr(profile, figure) == 0


def test_a_network_knows_only_what_a_network_has(tmp_path, monkeypatch, load):
    monkeypatch.setattr(profiles, "NETWORKS", tmp_path)
    (tmp_path / "odd.toml").write_text('name = "Odd"\n[idle_w]\nvalue = 1\nsource = "assumption: odd"\n')
    with pytest.raises(ConfigError, match="odd.toml: unknown figure 'idle_w'; here it may have down_bits_per_s"):
        load('name = "Toy"', 'name = "Toy"\nnetwork = "odd"')


@pytest.mark.parametrize("name", ["toaster", "networks/mobile-2020", "../profiles/phone", ""])
def test_a_profile_that_is_not_there(name):
    with pytest.raises(ConfigError, match=f"profile '{name}' is not here; there are .*raspberry-pi-4.*or give a .toml file"):
        load_profile(name)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none.toml' cannot be read: No such file"):
        load_profile(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(ConfigError, match=r"latin.toml is no TOML"):
        load_profile(str(tmp_path / "latin.toml"))


# -- units


def test_every_figure_has_units_of_its_own_quantity():
    expected = {
        "flops_per_s": "FLOP/s", "efficiency": "share", "sparse_efficiency": "share", "memory_bytes": "B", "active_w": "W", "idle_w": "W",
        "radio_j_per_byte": "J/byte", "down_bits_per_s": "bit/s", "up_bits_per_s": "bit/s", "latency_s": "s", "moved_bytes_per_s": "B/s",
        "step_s": "s", "j_per_flop": "J/FLOP", "radio_w": "W", "jitter_s": "s", "battery_j": "J", "charge_w": "W",
    }  # fmt: skip
    assert {figure: next(iter(units_of(figure))) for figure in expected} == expected
    assert set(NETWORK_FIGURES) < set(FIGURES)


@given(st.sampled_from(FIGURES), st.floats(1e-6, 1e12), st.data())
def test_a_value_means_the_same_in_every_unit(figure, value, data):
    unit = data.draw(st.sampled_from(sorted(units_of(figure))))
    assert to_si(figure, value / units_of(figure)[unit], unit) == pytest.approx(value, rel=1e-15)
    assert to_si(figure, value, next(iter(units_of(figure)))) == value


def test_all_that_is_wrong_in_a_file_is_told_at_once(tmp_path):
    text = TEXT.replace(LATENCY, "").replace(RADIO, "").replace("value = 0.1", "value = -1").replace('unit = "GiB"', 'unit = "stone"')
    text = text.replace('name = "Toy"', "").replace("[battery_j]", "[batery_j]")
    path = tmp_path / "toy.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_profile(str(path))
    parts = (
        "name is None", "sparse_efficiency is -1", "unit 'stone' does not fit memory_bytes", "'batery_j'; did you mean 'battery_j'?",
        "latency_s is missing", "neither of radio_w and radio_j_per_byte",
    )  # fmt: skip
    assert str(caught.value).startswith("toy.toml: ") and all(part in str(caught.value) for part in parts)
    with pytest.raises(ConfigError, match="active_w has no source with a date; .*; active_w is 'x'"):
        path.write_text(TEXT.replace(ACTIVE, "[active_w]\nvalue = 'x'\n"))
        load_profile(str(path))


def test_a_byte_order_mark_changes_nothing(tmp_path):
    path = tmp_path / "toy.toml"
    path.write_text(TEXT, encoding="utf-8-sig")
    assert load_profile(str(path))[0] == TOY


def test_a_misspelt_profile_or_network_is_recognised(tmp_path):
    with pytest.raises(ConfigError, match="profile 'rasberry-pi-4' is not here; did you mean 'raspberry-pi-4'"):
        load_profile("rasberry-pi-4")
    path = tmp_path / "toy.toml"
    path.write_text(TEXT.replace('name = "Toy"', 'name = "Toy"\nnetwork = "wifi-hme"').replace(LATENCY, ""))
    with pytest.raises(ConfigError, match="network 'wifi-hme' is not here; did you mean 'wifi-home'[?] there are [^;]*$"):
        load_profile(str(path))
