"""Networks of four kinds, each at the size asked for, with one penalty per weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

Leaves = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """Two objectives that take their batches as arguments, and a point."""

    name: str
    outer: Callable[..., Tensor]
    inner: Callable[..., Tensor]
    phi: Leaves
    theta: Leaves
    batch: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]

    @property
    def size(self) -> int:
        """Number of inner parameters, and of penalties."""
        return sum(leaf.numel() for leaf in self.theta.values())


class _Conv(nn.Sequential):
    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * channels, 10),
        )


class _Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, width, bidirectional=True, batch_first=True)
        self.last = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(x)[0].mean(1))


class _Transformer(nn.Module):
    """One block of attention, its softmax written out: fused kernels have no second derivative."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        q, k, v = self.mix(self.norm(x)).chunk(3, dim=-1)
        x = x + torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v
        return self.last((x + self.down(torch.tanh(self.up(x)))).mean(1))


# The width that gives about so many parameters, and the shape of one example.
WIDTHS: dict[str, dict[int, int]] = {
    "mlp": {1_000: 32, 30_000: 140, 300_000: 495, 2_000_000: 1_350},
    "conv": {1_000: 9, 30_000: 57, 300_000: 182, 2_000_000: 470},
    "lstm": {1_000: 6, 30_000: 54, 300_000: 188, 2_000_000: 492},
    "transformer": {1_000: 8, 30_000: 50, 300_000: 164, 2_000_000: 426},
}
_EXAMPLES = {"mlp": (20,), "conv": (1, 12, 12), "lstm": (8, 16), "transformer": (12, 16)}


def network(kind: str, size: int, device: str) -> Network:
    """A network of a kind with about ``size`` parameters that fits its own outputs."""
    torch.manual_seed(0)
    width = WIDTHS[kind][size]
    modules: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: nn.Sequential(
            nn.Linear(20, width),
            nn.Tanh(),
            *([] if size == 1_000 else [nn.Linear(width, width), nn.Tanh()]),
            nn.Linear(width, 10),
        ),
        "conv": lambda: _Conv(width),
        "lstm": lambda: _Recurrent(width),
        "transformer": lambda: _Transformer(width),
    }
    module = modules[kind]().to(device)
    theta = {key: leaf.detach() for key, leaf in module.named_parameters()}
    phi = {key: torch.full_like(leaf, -5.0) for key, leaf in theta.items()}
    examples = 64 if kind in ("mlp", "conv") else 16
    x, x_validation = (torch.randn(examples, *_EXAMPLES[kind], device=device) for _ in range(2))
    y = module(x).detach()

    def outer(phi: Leaves, theta: Leaves, x: Tensor, y: Tensor) -> Tensor:
        return ((functional_call(module, theta, (x,)) - y) ** 2).mean()

    def inner(phi: Leaves, theta: Leaves, x: Tensor, y: Tensor) -> Tensor:
        penalty = torch.stack([(phi[key].exp() * leaf**2).sum() for key, leaf in theta.items()])
        return outer(phi, theta, x, y) + penalty.sum()

    count = sum(leaf.numel() for leaf in theta.values())
    name = f"{kind}, {count} parameters"
    return Network(name, outer, inner, phi, theta, (x, y), (x_validation, torch.randn_like(y)))
