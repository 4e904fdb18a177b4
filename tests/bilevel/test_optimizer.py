"""The loop: the same numbers as one written by hand, and the same numbers after a resume."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor

import bilevel

A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
C = torch.tensor([[1.0, 0.0], [0.5, -1.0]], dtype=torch.float64)
GOAL = torch.tensor([1.0, -2.0], dtype=torch.float64)


def inner(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
    return 0.5 * theta[0] @ A @ theta[0] - theta[0] @ C @ phi[0]


def outer(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
    return ((theta[0] - GOAL) ** 2).sum() + 0.1 * (phi[0] ** 2).sum()


def pair() -> tuple[Tensor, Tensor]:
    kind: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
    return torch.zeros(2, **kind), torch.ones(2, **kind)


def quadratic(**options: Any) -> bilevel.BilevelOptimizer:
    phi, theta = pair()
    return bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, inner, solver=bilevel.CG(rtol=1e-12)),
        torch.optim.SGD([phi], lr=0.3),
        torch.optim.SGD([theta], lr=0.25),
        **options,
    )


def test_it_converges_to_the_closed_form_of_a_quadratic() -> None:
    loop = quadratic(inner_steps=5)
    for _ in range(300):
        loop.step()
    slope = torch.linalg.solve(A, C)
    best = torch.linalg.solve(slope.T @ slope + 0.1 * torch.eye(2).double(), slope.T @ GOAL)
    torch.testing.assert_close(loop.phi[0].detach(), best, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(loop.theta[0].detach(), slope @ best, rtol=1e-8, atol=1e-8)


def test_it_takes_the_very_steps_of_a_loop_written_by_hand() -> None:
    loop = quadratic(inner_steps=3, warm_start=False)
    phi, theta = pair()
    outer_optimizer = torch.optim.SGD([phi], lr=0.3)
    inner_optimizer = torch.optim.SGD([theta], lr=0.25)
    for _ in range(4):
        loop.step()
        for _ in range(3):
            inner_optimizer.zero_grad()
            inner([phi.detach()], [theta]).backward()
            inner_optimizer.step()
        (phi.grad,) = bilevel.implicit_grad(
            outer, inner, [phi], [theta], solver=bilevel.CG(rtol=1e-12)
        )
        outer_optimizer.step()
    assert torch.equal(loop.phi[0], phi)
    assert torch.equal(loop.theta[0], theta)


def test_gradients_are_cleared_and_nothing_requires_another_graph() -> None:
    loop = quadratic()
    loop.step()
    assert loop.phi[0].grad is None
    assert loop.theta[0].grad is None


def test_accumulated_steps_equal_one_step_on_the_mean_gradient() -> None:
    loop = quadratic(inner_steps=0, accumulate=2, warm_start=False)
    start = loop.phi[0].detach().clone()
    loop.step()
    assert torch.equal(loop.phi[0], start)  # gathered, not stepped
    loop.step()
    gradient = bilevel.implicit_grad(
        outer, inner, [start], [loop.theta[0].detach()], solver=bilevel.CG(rtol=1e-12)
    )[0]
    torch.testing.assert_close(loop.phi[0].detach(), start - 0.3 * gradient)


def test_the_outer_gradient_is_clipped_to_its_norm() -> None:
    loop = quadratic(inner_steps=0, outer_max_norm=1e-3)
    before = loop.phi[0].detach().clone()
    loop.step()
    moved = torch.linalg.vector_norm(loop.phi[0].detach() - before)
    torch.testing.assert_close(moved, torch.tensor(0.3e-3).double(), rtol=1e-3, atol=0)


def test_the_inner_gradient_is_clipped_to_its_norm() -> None:
    loop = quadratic(inner_steps=1, inner_max_norm=1e-3)
    before = loop.theta[0].detach().clone()
    loop.step()
    moved = torch.linalg.vector_norm(loop.theta[0].detach() - before)
    torch.testing.assert_close(moved, torch.tensor(0.25e-3).double(), rtol=1e-3, atol=0)


def test_a_warm_start_needs_fewer_steps_than_a_cold_one() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64)).Q
    hessian = basis @ torch.diag(torch.logspace(0, 3, 60, dtype=torch.float64)) @ basis.T
    hessian = (hessian + hessian.T) / 2

    def stiff(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
        return 0.5 * theta[0] @ hessian @ theta[0] - phi[0] @ theta[0]

    def value(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
        return ((theta[0] - 1) ** 2).sum()

    def steps(warm_start: bool) -> int:
        phi = torch.ones(60, dtype=torch.float64, requires_grad=True)
        theta = torch.ones(60, dtype=torch.float64, requires_grad=True)
        loop = bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(value, stiff, solver=bilevel.CG(rtol=1e-6)),
            torch.optim.SGD([phi], lr=1e-6),
            torch.optim.SGD([theta], lr=1e-6),
            warm_start=warm_start,
        )
        return [loop.step().solution.stats.iterations for _ in range(3)][-1]

    assert steps(True) < steps(False)


def test_inner_steps_take_their_own_batches() -> None:
    seen: list[int] = []

    def counting(phi: list[Tensor], theta: list[Tensor], batch: int) -> Tensor:
        seen.append(batch)
        return inner(phi, theta)

    phi, theta = pair()
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, counting),
        torch.optim.SGD([phi], lr=0.1),
        torch.optim.SGD([theta], lr=0.1),
        inner_steps=2,
    )
    loop.step(inner_args=(7,), inner_batches=[(1,), (2,), (3,)])
    assert seen[:3] == [1, 2, 7]
    with pytest.raises(bilevel.InputError, match="inner_batches ended after 1"):
        loop.step(inner_args=(7,), inner_batches=[(1,)])


class Regression:
    """A small network with dropout: phi weighs its penalties, theta are its parameters."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.x, self.y = torch.randn(16, 4), torch.randn(16, 1)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(6, 1)
        )
        self.theta: dict[str, Tensor] = dict(self.network.named_parameters())
        self.phi = {"log_penalty": torch.full((), -2.0, requires_grad=True)}

    def loss(self, theta: dict[str, Tensor]) -> Tensor:
        prediction = torch.func.functional_call(self.network, theta, (self.x,))
        return ((prediction - self.y) ** 2).mean()

    def inner(self, phi: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
        penalty = torch.stack([(leaf**2).sum() for leaf in theta.values()]).sum()
        return self.loss(theta) + phi["log_penalty"].exp() * penalty

    def outer(self, phi: dict[str, Tensor], theta: dict[str, Tensor]) -> Tensor:
        return self.loss(theta)

    def loop(self) -> bilevel.BilevelOptimizer:
        inner_optimizer = torch.optim.SGD(self.theta.values(), lr=0.05, momentum=0.9)
        outer_optimizer = torch.optim.Adam(self.phi.values(), lr=0.1)
        return bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(
                self.outer,
                self.inner,
                solver=bilevel.CG(rtol=None, max_steps=4, preconditioner=bilevel.Jacobi(probes=4)),
                damping=0.5,
                on_failure="ignore",
            ),
            outer_optimizer,
            inner_optimizer,
            phi=self.phi,
            theta=self.theta,
            inner_steps=2,
            accumulate=2,
            reuse_state=3,
            outer_scheduler=torch.optim.lr_scheduler.ExponentialLR(outer_optimizer, 0.9),
            inner_scheduler=torch.optim.lr_scheduler.StepLR(inner_optimizer, 5),
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


def test_dropout_differs_between_calls_even_without_inner_steps() -> None:
    task = Regression()
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(task.outer, task.inner, damping=1.0, on_failure="ignore"),
        torch.optim.SGD(task.phi.values(), lr=0.0),
        torch.optim.SGD(task.theta.values(), lr=0.0),
        phi=task.phi,
        theta=task.theta,
        inner_steps=0,
        warm_start=False,
    )
    values = {loop.step().outer_value for _ in range(4)}
    assert len(values) == 4


def _changes(good: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What may be wrong with a state; each is refused."""
    momentum = good["inner_optimizer"]
    groups = momentum["param_groups"]
    return {
        "version": {"version": 99},
        "no version": {"version": None},
        "phi: another number of leaves": {"phi": []},
        "phi: no list": {"phi": None},
        "theta: another shape": {"theta": [torch.zeros(5, dtype=torch.float64)]},
        "theta: another dtype": {"theta": [torch.zeros(2)]},
        "theta: no tensor": {"theta": [1.0]},
        "outer_scheduler: only there": {"outer_scheduler": {"last_epoch": 1}},
        "inner_scheduler: only here": {"inner_scheduler": None},
        "inner_scheduler: another kind": {"inner_scheduler": {"last_epoch": 1, "T_max": 3}},
        "inner_optimizer: no groups": {"inner_optimizer": {"state": {}}},
        "inner_optimizer: nothing": {"inner_optimizer": None},
        "inner_optimizer: Adam": {
            "inner_optimizer": torch.optim.Adam([torch.zeros(2, requires_grad=True)]).state_dict()
        },
        "inner_optimizer: more parameters": {
            "inner_optimizer": momentum | {"param_groups": [groups[0] | {"params": [0, 1]}]}
        },
        "inner_optimizer: a broken state": {
            "inner_optimizer": momentum | {"state": {0: None, 7: "?"}}
        },
        "inner_optimizer: no entries": {"inner_optimizer": momentum | {"state": []}},
        "inner_optimizer: an entry too many": {"inner_optimizer": momentum | {"state": {7: {}}}},
        "outer_optimizer: other groups": {"outer_optimizer": {"state": {}, "param_groups": []}},
        "adjoint: another size": {"adjoint": torch.zeros(3, dtype=torch.float64)},
        "adjoint: another dtype": {"adjoint": torch.zeros(2)},
        "adjoint: no tensor": {"adjoint": [0.0, 0.0]},
        "gathered: another shape": {"gathered": [torch.zeros(3, dtype=torch.float64)]},
        "gathered: nothing": {"gathered": []},
        "solver_state: a list": {"solver_state": [torch.zeros(2)]},
        "solver_state: a number": {"solver_state": {"step": 1.0}},
        "calls: negative": {"calls": -1},
        "calls: a float": {"calls": 1.0},
        "pending: no number": {"pending": None},
        "rng: nothing": {"rng": {}},
        "rng: too short": {"rng": {"cpu": torch.zeros(3, dtype=torch.uint8)}},
        "rng: no bytes": {"rng": {"cpu": torch.zeros(5056)}},
    }


def momentum() -> bilevel.BilevelOptimizer:
    phi, theta = pair()
    inner_optimizer = torch.optim.SGD([theta], lr=0.25, momentum=0.5)
    return bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, inner),
        torch.optim.Adam([phi], lr=0.3),
        inner_optimizer,
        accumulate=2,
        reuse_state=2,
        inner_scheduler=torch.optim.lr_scheduler.StepLR(inner_optimizer, 2),
    )


def assert_same(found: Any, wanted: Any) -> None:
    """Deep equality, to the bit."""
    assert type(found) is type(wanted)
    if isinstance(wanted, Tensor):
        assert torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, item in wanted.items():
            assert_same(found[key], item)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert found == wanted


@pytest.mark.parametrize("name", _changes(momentum().state_dict()))
def test_a_state_that_does_not_fit_is_refused_whole(name: str) -> None:
    loop = momentum()
    for _ in range(3):
        loop.step()
    good = loop.state_dict()
    loop.step()
    torch.rand(3)
    before = loop.state_dict()
    groups = loop.inner_optimizer.param_groups
    with pytest.raises(bilevel.InputError, match=name.split(":")[0].removeprefix("no ") + "|state"):
        loop.load_state_dict(good | _changes(good)[name])
    assert_same(loop.state_dict(), before)
    # And it goes on as if nothing had been tried.
    loop.step()
    other = momentum()
    other.load_state_dict(good)
    other.step()
    torch.manual_seed(0)
    other.load_state_dict(before)
    other.step()
    assert_same(loop.state_dict(), other.state_dict())
    assert len(groups) == 1


@pytest.mark.parametrize("key", momentum().state_dict())
def test_a_state_that_lacks_something_is_refused_whole(key: str) -> None:
    loop = momentum()
    loop.step()
    state = loop.state_dict()
    del state[key]
    before = loop.state_dict()
    with pytest.raises(bilevel.InputError, match="state has version None|state lacks " + key):
        loop.load_state_dict(state)
    assert_same(loop.state_dict(), before)


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


def test_something_else_than_a_state_is_refused() -> None:
    with pytest.raises(bilevel.InputError, match="version"):
        quadratic().load_state_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": -1}, "inner_steps"),
        ({"accumulate": 0}, "accumulate"),
        ({"reuse_state": 0}, "reuse_state"),
        ({"outer_max_norm": 0.0}, "outer_max_norm"),
        ({"inner_max_norm": -1.0}, "inner_max_norm"),
        ({"phi": [torch.zeros(2, dtype=torch.float64, requires_grad=True)]}, "phi has 1"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(bilevel.InputError, match=message):
        quadratic(**options)


def test_a_non_finite_inner_objective_stops_before_theta_moves() -> None:
    def broken(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
        return inner(phi, theta) * torch.tensor(float("nan"))

    phi, theta = pair()
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, broken),
        torch.optim.SGD([phi], lr=0.1),
        torch.optim.SGD([theta], lr=0.1),
    )
    with pytest.raises(bilevel.NonFiniteError, match="inner step 0"):
        loop.step()
    assert torch.equal(theta, torch.ones(2, dtype=torch.float64))


def test_a_non_finite_inner_gradient_stops_before_theta_moves() -> None:
    def kinked(phi: list[Tensor], theta: list[Tensor]) -> Tensor:
        return (theta[0] - theta[0].detach()).abs().sqrt().sum()  # 0, with an infinite slope

    phi, theta = pair()
    optimizer = torch.optim.SGD([theta], lr=0.1, momentum=0.9)
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, kinked), torch.optim.SGD([phi], lr=0.1), optimizer
    )
    with pytest.raises(bilevel.NonFiniteError, match=r"gradient of inner at inner step 0: theta"):
        loop.step()
    assert torch.equal(theta, torch.ones(2, dtype=torch.float64))
    assert not optimizer.state


def test_a_non_finite_hypergradient_stops_before_phi_moves() -> None:
    phi, theta = pair()
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(lambda p, t: outer(p, t) + p[0].sqrt().sum(), inner),
        torch.optim.Adam([phi], lr=0.1),
        torch.optim.SGD([theta], lr=0.1),
    )
    with pytest.raises(bilevel.NonFiniteError, match="hypergradient in phi"):
        loop.step()
    assert torch.equal(phi, torch.zeros(2, dtype=torch.float64))
    assert not loop.outer_optimizer.state
    assert loop.calls == 0


def test_an_inner_lbfgs_is_called_with_a_closure() -> None:
    phi, theta = pair()
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, inner),
        torch.optim.SGD([phi], lr=0.1),
        torch.optim.LBFGS([theta], line_search_fn="strong_wolfe"),
    )
    info = loop.step()
    assert info.stationarity < 1e-6
    assert theta.grad is None


def test_an_outer_optimizer_that_evaluates_again_is_refused() -> None:
    phi, theta = pair()
    with pytest.raises(bilevel.InputError, match="outer_optimizer is a LBFGS"):
        bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(outer, inner),
            torch.optim.LBFGS([phi]),
            torch.optim.SGD([theta], lr=0.1),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem": outer}, "problem must be a bilevel.ImplicitProblem"),
        ({"outer_optimizer": torch.optim.SGD}, "outer_optimizer must be a torch.optim.Optimizer"),
        ({"inner_optimizer": None}, "inner_optimizer must be a torch.optim.Optimizer"),
        ({"theta": [torch.zeros(2), torch.zeros(2)]}, "theta has 2"),
        ({"inner_steps": 1.5}, "inner_steps must be an integer"),
        ({"accumulate": True}, "accumulate must be an integer"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    phi, theta = pair()
    parts: dict[str, Any] = {
        "problem": bilevel.ImplicitProblem(outer, inner),
        "outer_optimizer": torch.optim.SGD([phi], lr=0.1),
        "inner_optimizer": torch.optim.SGD([theta], lr=0.1),
    }
    with pytest.raises(bilevel.InputError, match=message):
        bilevel.BilevelOptimizer(**(parts | change))


def test_a_leaf_of_both_optimizers_or_of_no_parameter_is_refused() -> None:
    phi, theta = pair()
    problem = bilevel.ImplicitProblem(outer, inner)
    both = torch.optim.SGD([phi], lr=0.1), torch.optim.SGD([theta, phi], lr=0.1)
    with pytest.raises(bilevel.InputError, match="share a leaf"):
        bilevel.BilevelOptimizer(problem, *both)
    frozen = torch.optim.SGD([theta.detach().requires_grad_(False)], lr=0.1)
    with pytest.raises(bilevel.InputError, match="every leaf of theta must be a parameter"):
        bilevel.BilevelOptimizer(problem, torch.optim.SGD([phi], lr=0.1), frozen)


def test_inner_args_that_are_no_tuple_are_refused_before_theta_moves() -> None:
    loop = quadratic()
    with pytest.raises(bilevel.InputError, match="inner_args is a Tensor"):
        loop.step(inner_args=torch.zeros(3))  # type: ignore[arg-type]
    assert torch.equal(loop.theta[0], torch.ones(2, dtype=torch.float64))


def test_no_more_batches_are_taken_than_there_are_inner_steps() -> None:
    stream = iter([(), (), (), ()])
    loop = quadratic(inner_steps=2)
    loop.step(inner_batches=stream)
    assert len(list(stream)) == 2


def test_accumulated_steps_average_over_the_outer_batches() -> None:
    def towards(phi: list[Tensor], theta: list[Tensor], goal: Tensor) -> Tensor:
        return ((theta[0] - goal) ** 2).sum()

    goals = [GOAL, 3 * GOAL, -GOAL]

    def run(accumulate: int, batches: list[Tensor]) -> Tensor:
        phi, theta = pair()
        loop = bilevel.BilevelOptimizer(
            bilevel.ImplicitProblem(towards, inner),
            torch.optim.SGD([phi], lr=0.1),
            torch.optim.SGD([theta], lr=0.1),
            inner_steps=0,
            accumulate=accumulate,
            warm_start=False,
        )
        for goal in batches:
            loop.step(outer_args=(goal,))
        return phi.detach()

    mean = torch.stack(goals).mean(0)
    torch.testing.assert_close(run(3, goals), run(1, [mean]), rtol=1e-12, atol=0)


def test_schedulers_tick_with_their_optimizers() -> None:
    phi, theta = pair()
    outer_optimizer = torch.optim.SGD([phi], lr=1.0)
    inner_optimizer = torch.optim.SGD([theta], lr=1e-3)
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(outer, inner),
        outer_optimizer,
        inner_optimizer,
        inner_steps=3,
        accumulate=2,
        outer_scheduler=torch.optim.lr_scheduler.StepLR(outer_optimizer, 1, 0.5),
        inner_scheduler=torch.optim.lr_scheduler.StepLR(inner_optimizer, 1, 0.5),
    )
    for _ in range(4):
        loop.step()
    assert outer_optimizer.param_groups[0]["lr"] == 0.5**2
    assert inner_optimizer.param_groups[0]["lr"] == 1e-3 * 0.5**12


def test_a_plateau_scheduler_is_told_the_outer_value() -> None:
    phi, theta = pair()
    optimizer = torch.optim.SGD([phi], lr=1.0)
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(lambda p, t: outer(p, t) * 0 + 1, inner),
        optimizer,
        torch.optim.SGD([theta], lr=0.1),
        outer_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    )
    rates = []
    for _ in range(4):
        loop.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 0.1, 0.1]


def test_every_feature_at_once_takes_the_very_steps_of_a_loop_written_by_hand() -> None:
    task, twin = Regression(), Regression()
    torch.manual_seed(1)
    loop = task.loop()
    infos = [loop.step() for _ in range(6)]

    torch.manual_seed(1)
    problem = loop.problem
    problem = bilevel.ImplicitProblem(
        twin.outer, twin.inner, solver=problem.solver, damping=0.5, on_failure="ignore"
    )
    inner_optimizer = torch.optim.SGD(twin.theta.values(), lr=0.05, momentum=0.9)
    outer_optimizer = torch.optim.Adam(twin.phi.values(), lr=0.1)
    outer_scheduler = torch.optim.lr_scheduler.ExponentialLR(outer_optimizer, 0.9)
    inner_scheduler = torch.optim.lr_scheduler.StepLR(inner_optimizer, 5)
    adjoint, state, gathered = None, None, torch.zeros(())
    for call in range(6):
        for _ in range(2):
            inner_optimizer.zero_grad()
            twin.inner({"log_penalty": twin.phi["log_penalty"].detach()}, twin.theta).backward()
            inner_optimizer.step()
            inner_scheduler.step()
        inner_optimizer.zero_grad()
        torch.rand(())
        gradient, info = problem.implicit_grad(
            twin.phi,
            twin.theta,
            initial=adjoint,
            state=None if call % 3 == 0 else state,
            return_info=True,
        )
        assert info.outer_value == infos[call].outer_value
        adjoint, state = info.adjoint, info.state
        gathered = gathered + gradient["log_penalty"]
        if call % 2:
            twin.phi["log_penalty"].grad = gathered / 2
            outer_optimizer.step()
            outer_scheduler.step()
            gathered = torch.zeros(())
    for name, leaf in twin.theta.items():
        assert torch.equal(leaf, task.theta[name]), name
    assert torch.equal(twin.phi["log_penalty"], task.phi["log_penalty"])


def test_the_parameters_of_the_module_itself_are_trained_and_its_buffers_by_inner_steps_alone() -> (
    None
):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    linear, norm = network[0], network[1]
    assert isinstance(linear, torch.nn.Linear)
    assert isinstance(norm, torch.nn.BatchNorm1d)
    x = torch.randn(8, 3)
    phi = torch.zeros((), requires_grad=True)
    bystander = torch.nn.Parameter(torch.zeros(2))
    bystander.grad = torch.ones(2)

    def penalised(phi: Tensor, theta: dict[str, Tensor]) -> Tensor:
        out = torch.func.functional_call(network, theta, (x,))
        penalty = torch.stack([(leaf**2).sum() for leaf in theta.values()]).sum()
        return (out**2).mean() + phi.exp() * penalty

    theta = dict(network.named_parameters())
    loop = bilevel.BilevelOptimizer(
        bilevel.ImplicitProblem(lambda p, t: penalised(p, t), penalised, on_failure="ignore"),
        torch.optim.SGD([phi], lr=0.01),
        torch.optim.SGD(network.parameters(), lr=0.01),
        phi=phi,
        theta=theta,
        inner_steps=2,
    )
    before = linear.weight.detach().clone()
    for _ in range(3):
        loop.step()
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 6
    assert not torch.equal(linear.weight, before)
    assert loop.theta["0.weight"] is linear.weight
    assert bystander.grad.tolist() == [1.0, 1.0]
