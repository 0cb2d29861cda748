"""FedProx (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", MLSys, arXiv:1812.06127).

    h(w) = F(w) + mu / 2 ||w - w_t||^2, so each step moves by grad F(w) + mu (w - w_t)      (equation 2)

w_t: the model that the device was sent. F is the loss of the learning method, replay included. The paper lets devices do different numbers
of epochs; here a device that is slower does as many, and is late. With mu = 0 it is FedAvg, to the bit.
"""

from sparcl_core.methods.correction import Correction


class FedProx(Correction):
    name = "fedprox"

    def prepare(self, running, received):
        """The weights of w_t, in the order and shape of the network's parameters."""
        network = running.network
        return [network.gather(name, running.state[name]) for name in network.parameters] if self.config.mu else None

    def gradients(self, running, gradients):
        if running.correction is None:
            return gradients
        import torch

        with torch.no_grad():
            away = torch._foreach_sub(list(running.network.parameters.values()), running.correction)
            torch._foreach_add_(gradients, away, alpha=self.config.mu)
        return gradients

    def step_flops(self, weights):
        return 3 * weights if self.config.mu else 0 * weights

    def arrays_bytes(self, model, active):
        """Nothing besides: a device holds w_t anyway, as its update is taken against it."""
        return 0
