from __future__ import annotations

import torch
from torch.nn import functional

from structured.losses import label_cross_entropy, tag_cross_entropy


def test_label_cross_entropy_is_the_sum_of_logistic_losses() -> None:
    torch.manual_seed(0)
    logits, gold = torch.randn(4, 5), torch.randint(2, (4, 5)).float()
    expected = functional.binary_cross_entropy_with_logits(logits, gold, reduction="none")
    torch.testing.assert_close(label_cross_entropy(logits, gold), expected.sum(dim=-1))
    images, masks = torch.randn(4, 5, 6), torch.randint(2, (4, 5, 6)).float()
    expected = functional.binary_cross_entropy_with_logits(images, masks, reduction="none")
    torch.testing.assert_close(
        label_cross_entropy(images, masks, event_dims=2), expected.sum(dim=(-2, -1))
    )


def test_tag_cross_entropy_is_the_sum_over_real_positions() -> None:
    torch.manual_seed(0)
    logits, tags = torch.randn(2, 3, 4), torch.randint(4, (2, 3))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    gold = functional.one_hot(tags, 4).float()
    each = functional.cross_entropy(logits.transpose(1, 2), tags, reduction="none")
    torch.testing.assert_close(tag_cross_entropy(logits, gold), each.sum(dim=-1))
    torch.testing.assert_close(tag_cross_entropy(logits, gold, mask), (each * mask).sum(dim=-1))


def test_what_padding_holds_changes_neither_value_nor_gradient() -> None:
    mask = torch.tensor([[True, False]])
    gold = functional.one_hot(torch.tensor([[1, 0]]), 3).float()
    results = []
    for padding in (0.0, 1e30):
        logits = torch.tensor([[[0.1, 0.2, 0.3], [padding, 0.0, 0.0]]], requires_grad=True)
        value = tag_cross_entropy(logits, gold, mask)
        results.append((value.detach(), torch.autograd.grad(value.sum(), logits)[0]))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)
    assert not results[1][1][0, 1].any()


def test_huge_logits_give_exact_values_and_finite_gradients() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    value = label_cross_entropy(logits, torch.tensor([[0.0, 1.0]]))
    assert value.tolist() == [2e4]
    assert torch.autograd.grad(value.sum(), logits)[0].tolist() == [[1.0, -1.0]]
    tags = tag_cross_entropy(logits[None], torch.tensor([[[0.0, 1.0]]]))
    assert tags.tolist() == [2e4]


def test_gradients_pass_gradcheck_twice() -> None:
    torch.manual_seed(1)
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    gold = torch.rand(2, 3, 4, dtype=torch.float64)
    for loss in (label_cross_entropy, tag_cross_entropy):
        assert torch.autograd.gradcheck(lambda z, f=loss: f(z, gold), (logits,))
        assert torch.autograd.gradgradcheck(lambda z, f=loss: f(z, gold), (logits,))
