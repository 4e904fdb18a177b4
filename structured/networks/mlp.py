"""A multilayer perceptron: the inference network of multi-label tasks, and an energy's f(x)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from structured.networks._dropout import Masks, check_masks, check_rate, draw_masks, drop
from structured.networks.scaling import InputScaling


class MLP(nn.Module):
    """Linear layers with an activation between them; returns logits.

    Args:
        inputs: the size of x, D.
        outputs: how many logits, L.
        hidden: the sizes of the hidden layers.
        dropout: the probability of dropping a hidden unit in training mode.
        input_dropout: the probability of dropping an input in training mode.
        activation: a function of a tensor, applied after each hidden layer.
        standardize: scale the inputs first, as `structured.networks.fit_inputs` sets it.

    Attributes:
        hidden: the hidden linear layers.
        output: the last linear layer.
        scaling: of the inputs, or None.

    Example:
        >>> import torch
        >>> network = MLP(5, 3, hidden=(8,), dropout=0.5)
        >>> x = torch.randn(4, 5)
        >>> masks = network.dropout_masks(x)
        >>> bool((network(x, masks) == network(x, masks)).all())
        True
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (1024,),
        *,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        check_rate("dropout", dropout)
        check_rate("input_dropout", input_dropout)
        self.sizes = (inputs, *hidden)
        self.rates = (input_dropout, *[dropout] * len(hidden))
        self.activation = activation
        self.hidden = nn.ModuleList(
            nn.Linear(size, following) for size, following in pairwise(self.sizes)
        )
        self.output = nn.Linear(self.sizes[-1], outputs)
        self.scaling = InputScaling(inputs) if standardize else None

    def forward(self, x: Tensor, dropout_masks: Masks | None = None) -> Tensor:
        """Return logits, ``[..., L]``.

        Args:
            x: inputs, ``[..., D]``.
            dropout_masks: what `dropout_masks` returned, to evaluate again under the same dropout;
                None draws new ones in training mode and drops nothing in evaluation mode.
        """
        return self.output(self.features(x, dropout_masks))

    def features(self, x: Tensor, dropout_masks: Masks | None = None) -> Tensor:
        """Return the last hidden layer, ``[..., H]``; arguments as for `forward`."""
        if dropout_masks is None and self.training:
            dropout_masks = self.dropout_masks(x)
        masks = check_masks(dropout_masks or (None,) * len(self.sizes), len(self.sizes))
        value = drop(x if self.scaling is None else self.scaling(x), masks[0])
        for layer, mask in zip(self.hidden, masks[1:], strict=True):
            value = drop(self.activation(layer(value)), mask)
        return value

    def dropout_masks(self, x: Tensor, generator: torch.Generator | None = None) -> Masks:
        """Draw the masks of one training-mode evaluation at `x`: the input's, then each layer's."""
        return draw_masks(x.shape[:-1], self.sizes, self.rates, x, generator)
