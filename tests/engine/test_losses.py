"""The losses of single tokens."""

from __future__ import annotations

import pytest
import torch

from tuning.engine.config import LossConfig, loss_name
from tuning.engine.losses import cross_entropy, focal, loss_function
from tuning.runs.errors import UserError

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
    assert loss_function(LossConfig()) is cross_entropy
    chosen = loss_function(LossConfig(loss="focal", focal_alpha=0.5, focal_gamma=1.0))
    assert chosen.keywords == {"alpha": 0.5, "gamma": 1.0}


def test_a_function_of_ones_own_has_one_name():
    module = "tuning.engine.losses"
    assert loss_name(f"{module}.focal") == loss_name(f"{module}:focal") == f"{module}:focal"
    assert loss_name("focal") == "focal"
    logits, labels = torch.randn(3, 5), torch.tensor([0, 4, 2])
    for name in (f"{module}:focal", f"{module}.focal"):
        own = loss_function(LossConfig(loss=name))
        assert torch.equal(own(logits, labels), focal(logits, labels))


def test_a_name_that_is_no_loss_names_the_nearest():
    for wrong in ("focall", "", "a:b:c", "a.b c"):
        with pytest.raises(UserError, match="use cross_entropy, focal, or a function of your own"):
            LossConfig(loss=wrong)
    with pytest.raises(UserError, match="Did you mean 'focal'"):
        LossConfig(loss="focall")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("nowhere:f", "No module named 'nowhere'"),
        ("tuning.engine.losses:nothing", "has no attribute 'nothing'"),
        ("tuning.engine.losses:torch", "is a module; it must be a function"),
        ("broken_losses:f", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_function_that_cannot_be_imported_is_one_line(tmp_path, monkeypatch, loss, words):
    (tmp_path / "broken_losses.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as refused:
        loss_function(LossConfig(loss=loss))
    assert words in str(refused.value) and loss in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_module_that_does_not_exist_is_refused_before_anything_is_imported():
    for missing in ("nowhere.losses:f", "nowhere.f", "tuning.engine.nothing:f"):
        with pytest.raises(UserError, match=r"there is no module .*on PYTHONPATH"):
            loss_name(missing)
