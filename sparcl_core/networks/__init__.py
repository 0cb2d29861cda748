"""Networks: the backbones, one under masks with what a step needs of it, and weights from a file. May import `kernels` and `costs`."""
