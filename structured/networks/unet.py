"""A small U-Net for binary masks (Ronneberger, Fischer & Brox 2015)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class UNet(nn.Module):
    """Convolutions at halving resolutions and back, joined level by level; returns logits.

    Group normalisation, not batch normalisation: an example's logits depend on that example alone,
    and evaluating the network changes none of its state, so losses can be differentiated twice.

    Args:
        channels: of the image, C.
        width: channels at full resolution, doubled at each level; a multiple of 4.
        depth: how often the resolution is halved.
        activation: a function of a tensor.

    Example:
        >>> import torch
        >>> UNet(3, width=4, depth=2)(torch.randn(2, 3, 8, 12)).shape
        torch.Size([2, 8, 12])
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 16,
        depth: int = 3,
        activation: Callable[[Tensor], Tensor] = functional.silu,
    ) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"width: found {width}, wanted a positive multiple of 4")
        if depth < 1:
            raise ValueError(f"depth: found {depth}, wanted at least 1")
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _Block(size, following, activation)
            for size, following in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _Block(size + following, size, activation) for size, following in pairwise(widths)
        )
        self.output = nn.Conv2d(width, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, ``[B, H, W]``.

        Args:
            x: images, ``[B, C, H, W]``, with H and W multiples of ``2 ** depth``.

        Raises:
            ValueError: if they are not.
        """
        unit = 2 ** len(self.up)
        if x.ndim != 4 or x.shape[-2] % unit or x.shape[-1] % unit:
            raise ValueError(
                f"x: found shape {tuple(x.shape)}, wanted [B, C, H, W] with H and W multiples of "
                f"{unit}; pad the images or lower `depth`"
            )
        levels = [self.down[0](x)]
        for block in self.down[1:]:
            levels.append(block(functional.avg_pool2d(levels[-1], 2)))
        value = levels.pop()
        for block, level in zip(reversed(self.up), reversed(levels), strict=True):
            finer = functional.interpolate(value, scale_factor=2.0, mode="nearest")
            value = block(torch.cat([level, finer], dim=1))
        return self.output(value).squeeze(1)


class _Block(nn.Module):
    def __init__(self, channels: int, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, kernel_size=3, padding=1)
        self.first_norm = nn.GroupNorm(4, width)
        self.second = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.second_norm = nn.GroupNorm(4, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        value = self.activation(self.first_norm(self.first(x)))
        return self.activation(self.second_norm(self.second(value)))
