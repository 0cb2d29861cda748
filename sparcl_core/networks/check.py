"""A model that is not of ours, tried before anything starts: two samples forward and backward, as a device's step would take them.

What can be neither sent nor repeated is refused: a state beside parameters and BatchNorm's statistics that training changes, random numbers
in evaluation, weights that torch's generator does not determine.
"""

import torch
from torch import Tensor, nn

from sparcl_core.config import MethodConfig, ModelConfig
from sparcl_core.foreign import printable
from sparcl_core.inputs import InputSpec
from sparcl_core.kernels.choice import able_layers, choices
from sparcl_core.kernels.convert import convert
from sparcl_core.networks.models import DTYPES, build_model, load_state_, read_state, smallest_batch
from sparcl_core.networks.own import named
from sparcl_core.networks.sparse_rule import sparse_names
from sparcl_core.seeding import generator
from sparcl_core.sparsity.masks import initial_masks

SAMPLES = 3


def check_model(method: MethodConfig, inputs: InputSpec) -> None:
    """Try the model of `method` on images such as `inputs` says.

    Raises:
        ValueError: if it cannot be trained here, with the reason and the way out; also if a pattern of `model.sparse` matches nothing.
    """
    with torch.random.fork_rng(devices=[]):
        tried = _Trial(method.model, inputs)
        tried.weights()
        tried.evaluation()
        tried.training()
        tried.alone()
        if method.is_sparse:
            tried.sparse(method)


class _Trial:
    """The model and the images that it is tried on."""

    def __init__(self, config: ModelConfig, inputs: InputSpec):
        self.config, self.inputs = config, inputs
        self.model = build_model(config, inputs.shape, inputs.num_classes)
        drawn = generator(0, "model", "trial").standard_normal((SAMPLES, *inputs.shape))
        self.x = torch.from_numpy(drawn).to(DTYPES[config.dtype])
        self.state = read_state(self.model)
        self.shown = "x".join(map(str, inputs.shape))

    def weights(self) -> None:
        """Made again, it begins with the same weights."""
        again = read_state(build_model(self.config, self.inputs.shape, self.inputs.num_classes))
        other = [name for name, value in self.state.items() if name not in again or value.tobytes() != again[name].tobytes()]
        if other or again.keys() - self.state.keys():
            rule = "weights are drawn from torch's generator alone, which is set before, so that a run can be repeated"
            raise self.wrong(f"{(other or sorted(again))[0]} is another one whenever the model is made: {rule}")

    def evaluation(self) -> None:
        """The same logits for a sample, whoever stands beside it, and no random numbers."""
        self.model.eval()
        before = torch.get_rng_state()
        with torch.no_grad():
            together, one = self.logits(self.x), self.logits(self.x[:1])
        if not torch.equal(torch.get_rng_state(), before):
            raise self.wrong("in evaluation mode it draws random numbers, and accuracy could not be repeated; draw only if self.training")
        if not torch.allclose(together[:1], one, rtol=1e-3, atol=1e-3):
            raise self.wrong("in evaluation mode its logits of a sample depend on the others of a batch")

    def training(self) -> None:
        """Every parameter is trained, and nothing else changes but BatchNorm's statistics."""
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        logits, gradients = self.step()
        for (name, _), gradient in zip(self.model.named_parameters(), gradients, strict=True):
            if gradient is None:
                raise self.wrong(f"parameter {name} takes no part in its logits: leave it out of the model")
            if not gradient.isfinite().all():
                raise self.wrong(f"the gradient of {name} is not finite on random images of {self.shown}")
        norms = {id(b) for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for b in m.buffers(recurse=False)}
        for name, buffer in self.model.named_buffers():
            if id(buffer) not in norms and not torch.equal(buffer, before[name]):
                raise self.wrong(
                    f"buffer {name} changes in training, but of buffers only statistics of BatchNorm are kept, sent and averaged"
                )
        after = read_state(self.model)
        load_state_(self.model, self.state)
        again, _ = self.step()
        same = all(value.tobytes() == after[name].tobytes() for name, value in read_state(self.model).items())
        if not same or not torch.equal(logits, again):
            raise self.wrong(
                "loaded with the same weights it trains otherwise: it keeps something beside parameters and statistics of BatchNorm (an "
                "attribute, a count of its calls, momentum=None of BatchNorm), and the next device would begin with it"
            )
        load_state_(self.model, self.state)

    def alone(self) -> None:
        """A single sample can be a batch, but for BatchNorm (`smallest_batch`)."""
        if smallest_batch(self.model, self.inputs.shape) == 1:
            self.model.train()
            self.logits(self.x[:1])
            load_state_(self.model, self.state)

    def sparse(self, method: MethodConfig) -> None:
        """It runs with sparse layers in the place of its own."""
        masked = sparse_names(self.model, self.config, self.inputs.shape)
        if not masked:
            raise ValueError(
                f"sparsity is {method.sparsity}, but {self.config.name} has no hidden convolution or linear layer that could be sparse: "
                f"name others in model.sparse, or set sparsity=0"
            )
        masks = initial_masks({name: self.state[name].shape for name in masked}, method.sparsity, 0)
        convert(self.model, masks, choices(method.kernels, masked, DTYPES[self.config.dtype], able_layers(self.model, masked)))
        try:
            self.model.eval()
            with torch.no_grad():
                self.logits(self.x)
            self.step()
        except ValueError as error:
            names = printable(", ".join(masked))
            raise ValueError(f"{error}; before, it did without sparse layers, which model.sparse chooses: {names}") from error

    def step(self) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Logits and gradients of a step in training mode, torch's generator set."""
        torch.manual_seed(0)
        logits = self.logits(self.x, training=True)
        weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
        return logits.detach(), torch.autograd.grad((logits * weights).sum(), list(self.model.parameters()), allow_unused=True)

    def logits(self, x: Tensor, training: bool | None = None) -> Tensor:
        if training is not None:
            self.model.train(training)
        mode = "training" if self.model.training else "evaluation"
        try:
            out = self.model(x.clone())
        except Exception as error:  # whatever somebody else's code does
            what = f"{type(error).__name__}: {printable(error)}"
            raise self.wrong(f"its forward pass fails in {mode} mode on {len(x)} images of {self.shown}: {what}") from error
        wanted = (len(x), self.inputs.num_classes)
        if not isinstance(out, Tensor):
            raise self.wrong(f"in {mode} mode it returns a {type(out).__name__}: it must return logits, one tensor {list(wanted)}")
        if tuple(out.shape) != wanted:
            raise self.wrong(
                f"for {len(x)} images it returns {list(out.shape)}, and this data has {wanted[1]} classes: it must return {list(wanted)}; "
                f"make its last layer of num_classes, with which it is called"
            )
        if out.dtype != x.dtype:
            raise self.wrong(f"its logits are {out.dtype}, and model.dtype is {self.config.dtype}")
        if not out.isfinite().all():
            raise self.wrong(f"its logits are not finite on random images of {self.shown}, with the weights that it begins with")
        return out

    def wrong(self, what: str) -> ValueError:
        return ValueError(f"{named(self.config)}: {what}")
