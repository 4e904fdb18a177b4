"""Start an energy's local term from a pretrained inference network."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import nn


class WithUnaries(Protocol):
    """An energy whose local term is ``sum_i y_i u_i(x)`` with u a network."""

    @property
    def unaries(self) -> nn.Module:
        """The network u: what `structured.networks` offers, with a last layer ``output``."""
        ...


def unaries_from_network(energy: WithUnaries, network: nn.Module) -> None:
    """Set the local term to minus the network's logits, in place: ``u(x) = -A(x)``.

    The hidden layers are copied and the last one is negated (b_i is minus the output weights), as
    SPEN and InfNet start: the energy is then least where the network's own probabilities are
    largest, before the global term has learned anything.

    Args:
        energy: an energy with a local term.
        network: a trained network of the same class, sizes and activation as ``energy.unaries``.
            Its dropout does not count.

    Raises:
        ValueError: if the two networks differ in class, sizes or activation.

    Example:
        >>> import torch
        >>> from structured.energies import MultiLabelEnergy
        >>> from structured.networks import MLP
        >>> energy = MultiLabelEnergy(4, 3, hidden=(8,), activation=torch.relu)
        >>> network = MLP(4, 3, hidden=(8,), dropout=0.5)
        >>> unaries_from_network(energy, network)
        >>> x = torch.randn(2, 4)
        >>> bool(torch.allclose(energy.unaries(x), -network.eval()(x)))
        True
    """
    unaries = energy.unaries
    wanted = {name: tuple(value.shape) for name, value in unaries.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if type(network) is not type(unaries) or wanted != found:
        raise ValueError(
            f"network: found {type(network).__name__} with {found}, wanted "
            f"{type(unaries).__name__} with {wanted}; give energy and network the same sizes"
        )
    for mine, its in zip(unaries.modules(), network.modules(), strict=True):
        if getattr(mine, "activation", None) is not getattr(its, "activation", None):
            raise ValueError(
                f"network: found activation {getattr(its, 'activation', None)}, wanted "
                f"{getattr(mine, 'activation', None)}; give energy and network the same activation"
            )
    unaries.load_state_dict(network.state_dict())
    with torch.no_grad():
        for parameter in cast(nn.Module, unaries.output).parameters():
            parameter.neg_()
