"""SCAFFOLD (Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML, arXiv:1910.06378).

    y <- y - eta (grad F(y) - c_i + c)                      each step, from the model x that the device was sent     (algorithm 1)
    c_i+ = c_i - c + (x - y) / (K eta)                      behind K steps, option II
    c   <- c + |S| / N mean_S (c_i+ - c_i)                  at the server, of the devices S of a round out of N

F is the loss of the learning method, replay included. A device keeps c_i over its active weights, and sends how it has moved; the server
sends c. So both ways carry about twice of what FedAvg sends.

Differences: the mean of the models is weighted by samples, as FedAvg's, that of the control variates is not. They are lossless on the wire
whatever the form of the updates. Of a weight that a mask has dropped, c and c_i are forgotten; they begin at 0 where one is grown. A device
whose report does not come in, or is not used, has moved its c_i all the same, as it does not know.
"""

import numpy as np

from sparcl_core.methods.correction import Correction
from sparcl_core.sparsity.packed import pack, unpack

OWN = "own/"  # c_i, packed over the masks of the session that it is of


class Scaffold(Correction):
    name = "scaffold"
    all_gradients = in_order = needs_shared_masks = True

    def shapes_up(self, model, classifier):
        return self.shapes_down(model, classifier)

    def shapes_down(self, model, classifier):
        return {name: shape for name, shape in model.shapes.items() if name not in model.statistics}

    def prepare(self, running, received):
        """c - c_i, in the order and shape of the network's parameters, and c_i by name."""
        own = self._own(running)
        shift = {name: (received[name] - own[name] if received else -own[name]) for name in own}
        return [running.network.gather(name, value) for name, value in shift.items()], own

    def gradients(self, running, gradients):
        import torch

        torch._foreach_add_(gradients, running.correction[0])
        return gradients

    def end_session(self, running):
        return pack(self._moved(running), running.masks, OWN)

    def upload(self, running):
        own = running.correction[1]
        return {name: value - own[name] for name, value in self._moved(running).items()}

    def combine(self, kept, uploads, fleet):
        return {name: value + sum(one.arrays[name] for one in uploads) / fleet for name, value in kept.items()}

    def step_flops(self, weights):
        return weights

    def session_flops(self, weights):
        """A difference in `prepare`; three operations for c_i+ and one for what is sent."""
        return 5 * weights

    def arrays_bytes(self, model, active):
        """c_i, and c as it came."""
        return 2 * model.packed_bytes(active)

    def _own(self, running):
        """c_i by name, as far as the masks of now go; zeros before the first session."""
        network = running.network
        shapes = {name: network.layout.shapes[name] for name in network.parameters}
        if not running.memory.corrected:
            return {name: np.zeros(shape, running.state[name].dtype) for name, shape in shapes.items()}
        own, _ = unpack(running.memory.corrected, shapes, OWN)
        return {name: value * running.masks[name] if name in running.masks else value for name, value in own.items()}

    def _moved(self, running):
        """c_i+ by name: c_i - c + (x - y) / (K eta)."""
        network, (shift, own) = running.network, running.correction
        if not running.steps:
            return own
        moved = {}
        for place, (name, parameter) in enumerate(network.parameters.items()):
            change = (network.gather(name, running.state[name]) - parameter.detach()) / (running.steps * self.lr) - shift[place]
            moved[name] = network.spread(name, change, own[name].dtype) if name in network.sparse else change.numpy()
        return moved
