"""The losses of single tokens."""

from __future__ import annotations

import pytest
import torch

from tuning.engine.losses import cross_entropy, focal, named

pytestmark = pytest.mark.unit


@pytest.fixture
def case():
    torch.manual_seed(0)
    return torch.randn(50, 11, dtype=torch.float64) * 3, torch.randint(0, 11, (50,))


def test_focal_without_focus_is_cross_entropy(case):
    torch.testing.assert_close(focal(*case, alpha=1.0, gamma=0.0), cross_entropy(*case))


def test_focal_is_its_formula(case):
    logits, labels = case
    p = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    expected = 0.5 * (1 - p) ** 2 * -p.log()
    torch.testing.assert_close(focal(logits, labels, alpha=0.5, gamma=2.0), expected)


def test_focal_of_a_sure_token_has_a_gradient():
    logits = torch.tensor([[60.0, 0.0]], requires_grad=True)
    focal(logits, torch.tensor([0]), gamma=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_names():
    assert named("cross_entropy", 1.0, 2.0) is cross_entropy
    assert named("focal", 0.5, 1.0).keywords == {"alpha": 0.5, "gamma": 1.0}
