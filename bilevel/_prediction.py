"""What comes after some vectors: the first guess of a solve from the answers before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def predicted(adjoints: Sequence[Tensor]) -> Tensor:
    """The vector ``[n]`` that follows some others, by linear prediction.

    The step to come is made of the last two as the last one is, by least squares, of the two before
    it: a drift is followed, noise averaged out. At most twice as long as the last, lest an odd one
    throw the guess far off.

    Reference:
        Makhoul, Linear prediction: a tutorial review, 1975, section II (the covariance method).
    """
    last = adjoints[-1]
    if len(adjoints) < 3 or not last.numel():
        return last
    steps = torch.stack([after - before for before, after in pairwise(adjoints)])
    scale = steps.abs().max()
    if not 0 < float(scale) < math.inf:
        return last
    # Squares neither vanish nor overflow; of half precision, neither do their sums.
    steps = (steps / scale).to(torch.promote_types(last.dtype, torch.float32))
    products = (steps @ steps.T).double().cpu()
    # Steps along one line leave the weights open; the least ones are taken.
    open_below = torch.finfo(last.dtype).eps ** 0.5
    inverse = torch.linalg.pinv(products[:-1, :-1], rtol=open_below, hermitian=True)
    move = (inverse @ products[:-1, -1]).to(steps) @ steps[1:]
    longest = 2 * torch.linalg.vector_norm(steps[-1])
    shortened = longest / torch.linalg.vector_norm(move).clamp_min(longest)
    found = (last + move * torch.where(longest > 0, shortened, 0.0) * scale).to(last.dtype)
    return found if bool(found.isfinite().all()) else last
