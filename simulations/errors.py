"""What bad input raises."""


class ConfigError(ValueError):
    """Bad input from the user: the value, the rule and the way out, in one message."""


class Lost:
    """Mixed into an error of which resuming the run is no way out: what it names has to come back first."""
