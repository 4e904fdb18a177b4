"""A resumed run goes on to the same bits, with any optimizer and scheduler."""

from __future__ import annotations

import copy
import io

import pytest
import torch

import bilevel
from tests.bilevel.loops import (
    Regression,
    assert_same,
    inner,
    momentum,
    outer,
    pair,
    quadratic,
)


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 5])
def test_a_resumed_run_goes_on_to_the_same_bits(cut: int) -> None:
    whole = Regression()
    loop = whole.loop()
    for _ in range(7):
        loop.step()

    first = Regression()
    loop = first.loop()
    for _ in range(cut):
        loop.step()
    file = io.BytesIO()
    torch.save(loop.state_dict(), file)
    file.seek(0)

    second = Regression(seed=0)
    resumed = second.loop()
    torch.manual_seed(99)  # the generators come from the state
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(7 - cut):
        resumed.step()
    for name, leaf in whole.theta.items():
        assert torch.equal(leaf, second.theta[name]), name
    assert torch.equal(whole.phi["log_penalty"], second.phi["log_penalty"])


SCHEDULERS = {
    "none": lambda optimizer: None,
    "multi step": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3, 3], 0.5),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=30),
    "plateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "chain": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=2),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        milestones=[2],
    ),
}
OPTIMIZERS = {
    "SGD": lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda leaves: torch.optim.Adam(leaves, lr=0.1, amsgrad=True),
    "AdamW": lambda leaves: torch.optim.AdamW(leaves, lr=0.1),
    "RMSprop": lambda leaves: torch.optim.RMSprop(leaves, lr=0.1, momentum=0.5),
    "LBFGS": lambda leaves: torch.optim.LBFGS(leaves, lr=0.1, max_iter=2, history_size=2),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_optimizer_and_scheduler_resume_to_the_same_bits(
    optimizer: str, scheduler: str
) -> None:
    def start() -> bilevel.BilevelOptimizer:
        phi, theta = pair()
        outer_optimizer = OPTIMIZERS["Adam" if optimizer == "LBFGS" else optimizer]([phi])
        inner_optimizer = OPTIMIZERS[optimizer]([theta])
        kind = "cosine" if (optimizer, scheduler) == ("LBFGS", "one cycle") else scheduler
        return bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(outer, inner, solver=bilevel.Exact()),
            outer_optimizer,
            inner_optimizer,
            inner_steps=2,
            reuse_state=3,
            outer_scheduler=SCHEDULERS[scheduler](outer_optimizer),
            inner_scheduler=SCHEDULERS[kind](inner_optimizer),
        )

    loop = start()
    for _ in range(4):
        loop.step()
    file = io.BytesIO()
    torch.save(loop.state_dict(), file)
    file.seek(0)
    resumed = start()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(4):
        loop.step()
        resumed.step()
    assert_same(resumed.state_dict(), loop.state_dict())


def test_a_saved_state_is_a_copy_both_ways() -> None:
    loop = momentum()
    loop.step()
    saved = loop.state_dict()
    kept = copy.deepcopy(saved)
    loop.step()
    loop.step()
    assert_same(saved, kept)
    loop.load_state_dict(saved)
    loop.step()
    first = loop.state_dict()
    assert_same(saved, kept)
    loop.load_state_dict(saved)
    loop.step()
    assert_same(loop.state_dict(), first)


def test_a_resumed_run_may_accumulate_another_number_of_gradients() -> None:
    def start(accumulate: int) -> bilevel.BilevelOptimizer:
        return quadratic(inner_steps=0, accumulate=accumulate, warm_start=False)

    loop = start(4)
    for _ in range(3):
        loop.step()
    resumed = start(2)
    resumed.load_state_dict(loop.state_dict())
    resumed.step()  # the fourth of them: their mean, whatever the number asked for
    loop.step()
    assert torch.equal(resumed.phi[0], loop.phi[0])
