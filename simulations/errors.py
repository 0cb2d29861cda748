"""What bad input raises."""


class ConfigError(ValueError):
    """Bad input from the user: the value, the rule and the way out, in one message."""


class WeightsError(ConfigError):
    """The file of pretrained weights is not there, or not the one that the run began with."""
