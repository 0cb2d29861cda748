"""A model: a function from the shape of an image and the number of classes to a Module."""


def pools(input_shape, num_classes: int, *, width: int = 16):
    """Two convolutions with pooling, and a linear classifier."""
    from torch import nn  # inside: settings are read before PyTorch is imported

    return nn.Sequential(
        nn.Conv2d(input_shape[0], width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )
