"""Device profiles: every figure has a source, and what is assumed says so."""

import tomllib

import pytest

from simulations import profiles
from simulations.config import ConfigError
from simulations.profiles import FOLDER, load_profile

NAMES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_source(name):
    profile, assumed = load_profile(name)
    tree = tomllib.loads((FOLDER / f"{name}.toml").read_text())
    for key, entry in tree.items():
        if key == "name":
            assert profile.name == entry
        else:
            assert getattr(profile, key) == entry["value"]
            assert len(entry["source"]) > 10
            assert (key in assumed) == ("assumption" in entry["source"])
    assert 0 < profile.sparse_efficiency <= profile.efficiency <= 1
    assert profile.idle_w < profile.active_w


def test_a_profile_that_is_not_there():
    with pytest.raises(ConfigError, match="profile 'toaster' is not here; there are .*raspberry-pi-4"):
        load_profile("toaster")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the Raspberry Pi's profile with one thing replaced; returns its new name."""
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    text = (FOLDER / "raspberry-pi-4.toml").read_text()

    def write(old: str, new: str) -> str:
        assert old in text
        (tmp_path / "changed.toml").write_text(text.replace(old, new, 1))
        return "changed"

    return write


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("value = 11.889e9", "value = 0", "flops_per_s is 0: it needs a number above 0"),
        ("value = 7.2", "value = -7.2", "active_w is -7.2"),
        ("value = 7.2", "value = '7 W'", "active_w is '7 W'"),
        ("value = 7.2\n", "", "active_w is None"),
        ("[latency_s]", "[latency]", "unknown figure 'latency'"),
        ('source = "about, whole board: iiab/iiab issue 4050"', 'source = ""', "idle_w has no source with a date"),
        ('source = "product data"', "", "no source"),
    ],
)
def test_a_figure_that_is_wrong_is_named(write, old, new, message):
    if old == 'source = "product data"':
        old, new = 'source = "largest version sold: product data"\ndate = "read 2026-11"', 'source = "hearsay"'
        message = "memory_bytes has no source with a date"
    with pytest.raises(ConfigError, match=message):
        load_profile(write(old, new))


def test_radio_energy_may_be_zero(write):
    assert load_profile(write("value = 5.2e-6", "value = 0"))[0].radio_j_per_byte == 0
