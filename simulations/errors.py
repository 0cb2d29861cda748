"""What bad input raises."""


class ConfigError(ValueError):
    """Bad input from the user: the value, the rule and the way out, in one message."""
