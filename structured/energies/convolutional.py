"""An energy of images and their masks, made of convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from structured.networks import UNet


class ConvolutionalEnergy(nn.Module):
    """``E(x, y) = mean_p [y_p u_p(x) + c'softplus(C2 * softplus(C1 * y + D * x))_p]``; low is good.

    The multi-label energy with its sums over labels made convolutions (``*``): a local term from a
    U-Net u of the image, and a global term in which neighbouring pixels of the mask, and the
    image's edges, meet. A mean over pixels keeps energies of order one at every resolution.

    Args:
        channels: of the image, C.
        width: of the U-Net.
        depth: of the U-Net.
        global_size: channels of the two layers of the global term.
        kernel: of its convolutions, odd.

    Attributes:
        unaries: the network ``x -> u(x)``.

    Example:
        >>> import torch
        >>> energy = ConvolutionalEnergy(3, width=4, depth=1)
        >>> energy(torch.randn(2, 3, 8, 8), torch.rand(10, 2, 8, 8)).shape
        torch.Size([10, 2])
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 16,
        depth: int = 3,
        global_size: int = 16,
        kernel: int = 5,
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel: found {kernel}, wanted an odd number of at least 1")
        self.unaries = UNet(channels, width=width, depth=depth)
        self.from_mask = nn.Conv2d(1, global_size, kernel, padding=kernel // 2)
        self.from_image = nn.Conv2d(channels, global_size, kernel, padding=kernel // 2, bias=False)
        self.joint = nn.Conv2d(global_size, global_size, kernel, padding=kernel // 2)
        self.global_weight = nn.Parameter(torch.randn(global_size) / global_size**0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return energies, ``[..., B]``.

        Args:
            x: images, ``[B, C, H, W]``; its convolutions run once however many points `y` holds.
            y: masks in [0, 1], ``[..., B, H, W]``.
        """
        return self.local(self.unaries(x), y) + self.global_(self.from_image(x), y)

    def local(self, unaries: Tensor, y: Tensor) -> Tensor:
        """Return ``mean_p y_p u_p``, ``[..., B]``, given u of ``[B, H, W]``."""
        return (y * unaries).mean(dim=(-2, -1))

    def global_(self, from_image: Tensor, y: Tensor) -> Tensor:
        """Return the global term, ``[..., B]``, given ``D * x`` of ``[B, M, H, W]``."""
        flat = self.from_mask(y.reshape(-1, 1, *y.shape[-2:]))
        first = functional.softplus(flat.unflatten(0, y.shape[:-2]) + from_image)
        second = functional.softplus(self.joint(first.flatten(end_dim=-4)))
        return (second.mean(dim=(-2, -1)) @ self.global_weight).reshape(y.shape[:-2])
