"""Looking into a model: one sample of zeros goes forward, and what its layers get and give is noted."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

Note = Callable[["nn.Module", "Tensor", "Tensor"], None]


def look_through(model: "nn.Module", input_shape: tuple[int, ...], kinds: tuple[type, ...], note: Note) -> None:
    """Run `model` once in evaluation mode, unless it has no module of these kinds; it is left as it was.

    Gradients are on: what needs one is seen, and torch's transformer layers call their linear layers, which without gradients they do not.

    Args:
        input_shape: [C, H, W].
        kinds: the classes of modules that are noted.
        note: called with module, input and output of each of them, in the order in which they run.
    """
    import torch  # late: whoever only adds counts up, a check of settings for one, should not wait for it

    def seen(module, inputs, output):
        note(module, inputs[0], output)

    handles = [module.register_forward_hook(seen) for module in model.modules() if isinstance(module, kinds)]
    if not handles:
        return
    training = model.training
    try:
        model.eval()
        with torch.enable_grad():
            model(torch.zeros(1, *input_shape, dtype=next(model.parameters()).dtype))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
