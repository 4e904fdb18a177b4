"""Cost-augmented networks F beside a test-time network A, which share more or less of it.

Each is a module of what F has to itself; what F shares with A it finds in A. None is needed to
predict.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from structured._space import Space
from structured.methods._objectives import draw_masks, network_logits, training_logits
from structured.spaces import Labels, Tags

Parameterization = Literal["separate", "shared", "stacked"]


class Augmented(nn.Module, ABC):
    """What the cost-augmented network F has to itself.

    Args:
        detach: let no gradient pass from F to what it shares with A.
    """

    def __init__(self, *, detach: bool = False) -> None:
        super().__init__()
        self.detach = detach

    @abstractmethod
    def begin(self, network: nn.Module) -> None:
        """Start from the pretrained network A."""

    @abstractmethod
    def both(
        self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of A and those of F, under new dropout, each ``[B, *event]``.

        Args:
            network: A.
            x: inputs, ``[B, ...]``.
            y: gold outputs, ``[B, *event]``, which only the stacked network looks at.
            generator: of the dropout masks.
        """


class Separate(Augmented):
    """F is a network of its own, of the same kind: nothing is shared.

    Args:
        network: A, to be copied.
        detach: without effect, as nothing is shared.
    """

    def __init__(self, network: nn.Module, *, detach: bool = False) -> None:
        super().__init__(detach=detach)
        self.network = copy.deepcopy(network)

    def begin(self, network: nn.Module) -> None:
        self.network.load_state_dict(network.state_dict())

    def both(
        self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        own = training_logits(self.network, x, generator)
        return training_logits(network, x, generator), own


class Shared(Augmented):
    """F has a last layer of its own on the body of A.

    Args:
        network: A, with its last layer under the name ``output``.
        detach: train the body for A alone.

    Raises:
        ValueError: if the network has no such layer.
    """

    def __init__(self, network: nn.Module, *, detach: bool = False) -> None:
        super().__init__(detach=detach)
        output = getattr(network, "output", None)
        if not isinstance(output, nn.Module):
            raise ValueError(
                f"parameterization: found 'shared' with {type(network).__name__}, wanted a network "
                "with its last layer as `output`; use 'separate' or 'stacked'"
            )
        self.output = copy.deepcopy(output)

    def begin(self, network: nn.Module) -> None:
        self.output.load_state_dict(network.get_submodule("output").state_dict())

    def both(
        self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        masks = draw_masks(network, x, generator)
        leaves: dict[str, Tensor] = {
            name: leaf.detach() if self.detach else leaf
            for name, leaf in network.named_parameters()
        }
        leaves |= dict(self.named_parameters())  # "output.weight" and the like
        # The body is evaluated twice: it is not known what a network does after its last layer.
        return network_logits(network, x, masks), network_logits(network, x, masks, leaves)


class Stacked(Augmented):
    """``F = relax(W [A(x); y] + b)``: one layer on what A puts out and the gold output.

    Per position for tags, with one layer for all labels for labels, per pixel for masks.

    Args:
        space: that the outputs are of.
        detach: train A for its own terms alone.
    """

    #: W begins with this much of A(x), centred: F then decides as A does, if less firmly.
    GAIN = 4.0

    def __init__(self, space: Space, *, detach: bool = False) -> None:
        super().__init__(detach=detach)
        self.space = space
        width = space.n if isinstance(space, Labels) else 1
        self.mix = nn.Linear(2 * width, width)
        if isinstance(space, Tags):
            self.mix = nn.Linear(2 * space.n_tags, space.n_tags)

    @torch.no_grad()
    def begin(self, network: nn.Module) -> None:
        width = self.mix.out_features
        self.mix.weight.zero_()[:, :width].fill_diagonal_(self.GAIN)
        self.mix.bias.fill_(-0.5 * self.GAIN)

    def both(
        self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        logits = training_logits(network, x, generator)
        point = self.space.relax(logits)
        inputs = [point.detach() if self.detach else point, y]
        if isinstance(self.space, Labels | Tags):
            return logits, self.mix(torch.cat(inputs, dim=-1))
        return logits, self.mix(torch.stack(inputs, dim=-1)).squeeze(-1)


def augmented(
    kind: Parameterization, network: nn.Module, space: Space, *, detach: bool = False
) -> Augmented:
    """Return what F has to itself; torch's own random state is left as it was."""
    if kind == "separate":
        return Separate(network, detach=detach)
    if kind == "shared":
        return Shared(network, detach=detach)
    like = next(network.parameters())
    with torch.random.fork_rng(devices=[]):
        return Stacked(space, detach=detach).to(like.device, like.dtype)
