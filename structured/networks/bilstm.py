"""A bidirectional LSTM tagger whose outputs do not depend on padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from structured.networks._dropout import Masks, check_masks, check_rate, draw_masks, drop


class BiLSTMTagger(nn.Module):
    """Layers of a forward and a backward LSTM, then one linear layer a position; returns logits.

    The backward LSTM reads each sequence from its own last real token, by reversing it within its
    length. Packed sequences do the same but compose with neither `torch.func` nor second
    derivatives on every device. cuDNN's recurrent kernels have no second derivatives either: there,
    differentiate twice under ``torch.backends.cudnn.flags(enabled=False)``.

    Args:
        features: the size of a token's vector, D.
        tags: the number of tags, K.
        hidden: units of each direction.
        layers: how many bidirectional layers.
        dropout: the probability of dropping an entry of each layer's input and of the last layer's
            output, in training mode.

    Example:
        >>> import torch
        >>> BiLSTMTagger(4, 3, hidden=5)(torch.randn(2, 6, 4)).shape
        torch.Size([2, 6, 3])
    """

    def __init__(
        self,
        features: int,
        tags: int,
        hidden: int = 100,
        *,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_rate("dropout", dropout)
        if layers < 1:
            raise ValueError(f"layers: found {layers}, wanted at least 1")
        self.sizes = (features, *[2 * hidden] * layers)
        self.dropout = dropout
        self.ahead = nn.ModuleList(
            nn.LSTM(size, hidden, batch_first=True) for size in self.sizes[:-1]
        )
        self.back = nn.ModuleList(
            nn.LSTM(size, hidden, batch_first=True) for size in self.sizes[:-1]
        )
        self.output = nn.Linear(2 * hidden, tags)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, dropout_masks: Masks | None = None
    ) -> Tensor:
        """Return logits, ``[B, T, K]``.

        Args:
            x: token vectors, ``[B, T, D]``.
            mask: which positions are real, boolean ``[B, T]``: each sequence's first ones. None
                when all are.
            dropout_masks: what `dropout_masks` returned, to evaluate again under the same dropout;
                None draws new ones in training mode and drops nothing in evaluation mode.

        Raises:
            ValueError: if a padded position comes before a real one.
        """
        return self.output(self.features(x, mask, dropout_masks))

    def features(
        self, x: Tensor, mask: Tensor | None = None, dropout_masks: Masks | None = None
    ) -> Tensor:
        """Return the states b_t of both directions, ``[B, T, 2 hidden]``."""
        if dropout_masks is None and self.training:
            dropout_masks = self.dropout_masks(x)
        masks = check_masks(dropout_masks or (None,) * len(self.sizes), len(self.sizes))
        reversal = _reversal(x, mask)
        value = drop(x, masks[0])
        for ahead, back, dropped in zip(self.ahead, self.back, masks[1:], strict=True):
            forward_states = ahead(value)[0]
            backward_states = _reorder(back(_reorder(value, reversal))[0], reversal)
            value = drop(torch.cat([forward_states, backward_states], dim=-1), dropped)
        return value

    def dropout_masks(self, x: Tensor, generator: torch.Generator | None = None) -> Masks:
        """Draw the masks of one training-mode evaluation at `x`."""
        rates = (self.dropout,) * len(self.sizes)
        return draw_masks(x.shape[:-1], self.sizes, rates, x, generator)


def _reversal(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return for each position the one it changes places with, ``[B, T]``; padding stays."""
    place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    if mask is None:
        return place.flip(-1)
    if mask.shape != x.shape[:2] or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError(
            f"mask: found shape {tuple(mask.shape)} for inputs of shape {tuple(x.shape)}, wanted "
            f"{tuple(x.shape[:2])} with the real positions first; pad at the end"
        )
    return torch.where(mask, mask.sum(dim=-1, keepdim=True) - 1 - place, place)


def _reorder(value: Tensor, place: Tensor) -> Tensor:
    return value.gather(1, place[..., None].expand(-1, -1, value.shape[-1]))
