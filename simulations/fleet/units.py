"""Units that a figure of a profile may be stated in, and how large each is in SI units.

What a figure measures is read off its name: `active_w` is a power, `down_bits_per_s` a data rate. Prefixes are decimal (a KB has 1,000
bytes); KiB, MiB and GiB are binary.
"""

# end of a figure's name -> unit -> size; the first end that fits counts, so the longer ones come first
UNITS = {
    "flops_per_s": {"FLOP/s": 1.0, "MFLOP/s": 1e6, "GFLOP/s": 1e9, "TFLOP/s": 1e12},
    "bits_per_s": {"bit/s": 1.0, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9},
    "bytes_per_s": {"B/s": 1.0, "KB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9, "MiB/s": 2.0**20, "GiB/s": 2.0**30},
    "j_per_byte": {"J/byte": 1.0, "mJ/byte": 1e-3, "uJ/byte": 1e-6, "nJ/byte": 1e-9},
    "j_per_flop": {"J/FLOP": 1.0, "nJ/FLOP": 1e-9, "pJ/FLOP": 1e-12},
    "bytes": {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "w": {"W": 1.0, "mW": 1e-3, "uW": 1e-6},
    "j": {"J": 1.0, "kJ": 1e3, "mWh": 3.6, "Wh": 3600.0},
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
}
SHARES = {"share": 1.0, "%": 0.01}


def units_of(figure: str) -> dict[str, float]:
    """The units that `figure` may be stated in, with their sizes; the first one is the SI unit."""
    return next((units for end, units in UNITS.items() if f"_{figure}".endswith(f"_{end}")), SHARES)


def to_si(figure: str, value: float, unit: str) -> float:
    """`value` of `figure` in SI units.

    Raises:
        ValueError: if the unit is not known, or is one of another quantity.
    """
    units = units_of(figure)
    if not isinstance(unit, str) or unit not in units:
        raise ValueError(f"unit {unit!r} does not fit {figure}; write one of {', '.join(units)}, or none for {next(iter(units))}")
    return value * units[unit]
