from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from structured.networks import MLP, BiLSTMTagger, UNet


def double(network: nn.Module) -> nn.Module:
    return network.double().train()


def cases() -> dict[str, tuple[nn.Module, Tensor, tuple[int, ...]]]:
    torch.manual_seed(0)
    return {
        "MLP": (
            double(MLP(5, 3, hidden=(7, 6), dropout=0.4, input_dropout=0.3)),
            torch.randn(4, 5, dtype=torch.float64),
            (4, 3),
        ),
        "BiLSTM": (
            double(BiLSTMTagger(5, 3, hidden=4, layers=2, dropout=0.3)),
            torch.randn(4, 6, 5, dtype=torch.float64),
            (4, 6, 3),
        ),
        "U-Net": (
            double(UNet(2, width=4, depth=2)),
            torch.randn(4, 2, 8, 12, dtype=torch.float64),
            (4, 8, 12),
        ),
    }


CASES = cases()
networks = pytest.mark.parametrize(("network", "x", "shape"), CASES.values(), ids=CASES)
dropping = pytest.mark.parametrize("name", ["MLP", "BiLSTM"])


@networks
def test_logits_have_the_shape_of_the_output(network, x: Tensor, shape: tuple[int, ...]) -> None:
    assert network.eval()(x).shape == shape


@networks
def test_an_examples_logits_depend_on_that_example_alone(network, x: Tensor, shape) -> None:
    together = network.eval()(x)
    for i in range(len(x)):
        torch.testing.assert_close(network(x[i : i + 1]), together[i : i + 1])


@networks
def test_evaluating_a_network_changes_none_of_its_state(network, x: Tensor, shape) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()(x)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


@networks
def test_no_two_layers_share_their_parameters(network, x: Tensor, shape) -> None:
    """The published trap: ``[layer] * n`` is one layer n times."""
    every = list(network.named_parameters(remove_duplicate=False))
    assert len({value.data_ptr() for _, value in every}) == len(every)


@networks
def test_every_parameter_and_every_input_matters(network, x: Tensor, shape) -> None:
    leaf = x.clone().requires_grad_()
    logits = network.eval()(leaf)
    weight = torch.randn(logits.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    leaves = [leaf, *network.parameters()]
    gradients = torch.autograd.grad((weight * logits).sum(), leaves)
    assert bool((gradients[0] != 0).all())
    assert all(bool(gradient.any()) for gradient in gradients)


@networks
def test_networks_can_be_differentiated_twice_through_functional_call(
    network, x: Tensor, shape
) -> None:
    network.eval()
    theta = {name: value.detach() for name, value in network.named_parameters()}

    def objective(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(network, parameters, (x,)).square().mean()

    direction = {name: torch.randn_like(value) for name, value in theta.items()}
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    slopes = torch.autograd.grad(objective(leaves), list(leaves.values()), create_graph=True)
    products = torch.autograd.grad(slopes, list(leaves.values()), list(direction.values()))
    step = 1e-6
    ahead, behind = (
        torch.func.grad(objective)(
            {name: value + sign * step * direction[name] for name, value in theta.items()}
        )
        for sign in (1, -1)
    )
    for name, product in zip(theta, products, strict=True):
        difference = (ahead[name] - behind[name]) / (2 * step)
        torch.testing.assert_close(product, difference, atol=1e-5, rtol=1e-4)


@dropping
def test_the_same_dropout_masks_give_the_same_logits_and_new_ones_do_not(name: str) -> None:
    network, x, _ = CASES[name]
    network.train()
    masks = network.dropout_masks(x, torch.Generator().manual_seed(0))  # type: ignore[operator]
    first = network(x, dropout_masks=masks)
    assert torch.equal(first, network(x, dropout_masks=masks))
    assert not torch.equal(first, network(x))
    assert not torch.equal(network(x), network(x))


@dropping
def test_evaluation_mode_drops_nothing(name: str) -> None:
    network, x, _ = CASES[name]
    network.eval()
    assert torch.equal(network(x), network(x))


def test_dropout_keeps_the_mean_and_drops_at_its_rate() -> None:
    network = MLP(2000, 1, hidden=(2000,), dropout=0.25, input_dropout=0.5)
    masks = network.dropout_masks(torch.zeros(50, 2000), torch.Generator().manual_seed(0))
    for mask, rate in zip(masks, (0.5, 0.25), strict=True):
        assert mask is not None
        assert float((mask == 0).float().mean()) == pytest.approx(rate, abs=0.01)
        assert float(mask.mean()) == pytest.approx(1.0, abs=0.02)


def test_a_tagger_reads_every_token_in_both_directions() -> None:
    """The published trap: a `return` inside the loop over time stops at the first token."""
    network, x, _ = CASES["BiLSTM"]
    leaf = x.clone().requires_grad_()
    logits = network.eval()(leaf)
    for position in (0, 5):
        (gradient,) = torch.autograd.grad(
            logits[:, position].square().sum(), leaf, retain_graph=True
        )
        assert bool((gradient != 0).all())


def test_padding_changes_no_logit_of_a_real_token() -> None:
    network, x, _ = CASES["BiLSTM"]
    network.eval()
    lengths = [6, 1, 3, 0]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    logits = network(x, mask)
    other = network(torch.where(mask[..., None], x, 99.0), mask)
    longer = network(torch.cat([x, 7 * x], dim=1), torch.cat([mask, torch.zeros_like(mask)], dim=1))
    for b, length in enumerate(lengths):
        alone = network(x[b : b + 1, :length])[0] if length else logits[b, :0]
        for padded in (logits, other, longer):
            torch.testing.assert_close(padded[b, :length], alone)


def test_a_tagger_agrees_with_torchs_own_bidirectional_lstm() -> None:
    torch.manual_seed(0)
    network = BiLSTMTagger(5, 3, hidden=4).double()
    peer = nn.LSTM(5, 4, batch_first=True, bidirectional=True).double()
    peer.load_state_dict(
        {name: value for name, value in network.ahead[0].state_dict().items()}
        | {f"{name}_reverse": value for name, value in network.back[0].state_dict().items()}
    )
    x = torch.randn(2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(network.features(x), peer(x)[0])


def test_impossible_networks_and_inputs_are_refused() -> None:
    for name in ("dropout", "input_dropout"):
        with pytest.raises(ValueError, match=rf"{name}: found 1\.0"):
            MLP(2, 2, **{name: 1.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dropout_masks: found 1 masks, wanted 2"):
        MLP(2, 2, hidden=(3,))(torch.zeros(1, 2), (None,))
    with pytest.raises(ValueError, match="layers: found 0"):
        BiLSTMTagger(2, 2, layers=0)
    tagger, x = BiLSTMTagger(2, 2, hidden=3), torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="with the real positions first"):
        tagger(x, torch.tensor([[False, True]]))
    with pytest.raises(ValueError, match="width: found 6"):
        UNet(3, width=6)
    with pytest.raises(ValueError, match="depth: found 0"):
        UNet(3, depth=0)
    with pytest.raises(ValueError, match="multiples of 8"):
        UNet(3)(torch.zeros(1, 3, 8, 12))
