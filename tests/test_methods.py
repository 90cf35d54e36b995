"""The registry of preference methods, and what it takes to add one."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.run_configs import pt
from tests.small_site import COLLECTIONS, use
from tuning import run_dpo
from tuning.methods import METHODS, Method, method
from tuning.runs.errors import UserError
from tuning.settings import require, setting
from tuning.training.config import DPOTrainingConfig, method_settings

pytestmark = pytest.mark.unit

TRAINER = '''
"""Leaves what it was given as the result of the run."""

def train(config, directory, start, report_to):
    directory.write_result(
        method=config.pft_method, rate=config.training.learning_rate, train_size=start.train_size,
        report_to=report_to,
    )
'''


@dataclass(frozen=True, kw_only=True)
class WithMargin(DPOTrainingConfig):
    """DPOTrainingConfig with a setting that the added method has."""

    margin: float = setting(0.5, hashed=lambda part, run: run.pft_method == "mine",
                            methods=("mine",))  # fmt: skip


def with_margin(training: DPOTrainingConfig, margin: float = 0.5) -> WithMargin:
    return WithMargin(
        **{f.name: getattr(training, f.name) for f in fields(training)}, margin=margin
    )


def check(training) -> None:
    if isinstance(training, WithMargin):
        require(training, "margin", training.margin > 0, "above zero")


@pytest.fixture
def mine(monkeypatch, tmp_path) -> Method:
    """A method that is added as methods are: an entry, the module of its trainer, its name."""
    (tmp_path / "mine_training.py").write_text(TRAINER)
    monkeypatch.syspath_prepend(tmp_path)
    entry = Method(
        name="mine", columns=("prompt", "liked"), trainer="mine_training:train", check=check
    )
    monkeypatch.setitem(METHODS, "mine", entry)
    text = COLLECTIONS.replace("pft_methods: [", "pft_methods: [mine, ")
    text = text.replace(
        "full_modules: [embed_tokens, lm_head]}",
        "full_modules: [embed_tokens, lm_head], settings: {mine: {learning_rate: 3.0e-3}}}",
    )
    use(monkeypatch, tmp_path, text)
    return entry


@pytest.fixture
def site(monkeypatch, tmp_path) -> None:
    use(monkeypatch, tmp_path)


def test_every_entry_names_a_trainer_that_is_there():
    for name, entry in METHODS.items():
        module, _, function = entry.trainer.partition(":")
        assert (entry.name, function) == (name, "train")
        assert find_spec(module) is not None
        assert "prompt" in entry.columns


def test_what_a_method_reads_of_a_row():
    pairs = ("prompt", "chosen", "rejected")
    assert METHODS["dpo"].reads(("answer",)) == METHODS["kto"].reads(("answer",)) == pairs
    assert METHODS["grpo"].reads(("answer",)) == ("prompt", "answer")
    assert METHODS["grpo"].reads(("instructions", "kwargs")) == ("prompt", "instructions", "kwargs")


def test_settings_belong_to_the_methods_that_they_name():
    assert method_settings("dpo") == ["beta", "sft_loss_weight"]
    assert method_settings("kto") == ["beta", "kl_batch_size"]
    assert "num_generations" in method_settings("grpo")
    names = {name for entry in METHODS for name in method_settings(entry)}
    assert not names & {"learning_rate", "merge_parent"}


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown preference method 'dop'.*Did you mean 'dpo'"):
        method("dop")


def write_pools(root: Path, preference: list[dict[str, str]]) -> None:
    pools = {"sft": [], "va": [], "te": [], "pt": preference}
    for name, rows in pools.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_added_method_is_trained_through_the_command_line(mine, tmp_path):
    write_pools(tmp_path, [{"prompt": f"p{n}", "liked": "yes"} for n in range(24)])
    data = ["--model", "big", "--dataset", "mine", "--task", "math", "--train_size", "24"]
    assert run_dpo.main([*data, "--pft_method", "mine", "--do_training"]) == 0
    (path,) = (tmp_path / "home/models").glob("*/result.json")
    assert path.parent.name == "big_pt-mine-24_mine"
    assert json.loads(path.read_text()) == {
        "method": "mine", "rate": 3e-3, "train_size": 24, "report_to": [],
    }  # fmt: skip
    with pytest.raises(UserError, match=r"pt\.jsonl:1 lacks chosen, rejected; dpo needs"):
        run_dpo.main([*data, "--do_training"])


def test_a_row_that_cannot_be_rewarded_is_refused_before_anything_is_written(site, tmp_path):
    rows = [{"prompt": f"p{n}", "answer": answer} for n, answer in enumerate((1, "2", "two", 4))]
    write_pools(tmp_path, rows)
    data = ["--model", "big", "--dataset", "mine", "--task", "math", "--pft_method", "grpo"]
    with pytest.raises(UserError, match=r"pt\.jsonl:3: task 'math' cannot grade it: its answer is"):
        run_dpo.main([*data, "--train_size", "3", "--do_training"])
    assert not list((tmp_path / "home").rglob("*.json"))


def test_an_added_method_is_in_the_help(mine, capsys):
    with pytest.raises(SystemExit):
        run_dpo.parser().parse_args(["--help"])
    assert "dpo, kto, grpo, mine" in capsys.readouterr().out


def test_its_settings_are_checked_and_count_for_it_alone(mine):
    plain = replace(pt("dpo"), pft_method="mine")
    run = replace(plain, training=with_margin(plain.training))
    assert method_settings("mine", WithMargin) == ["margin"]
    other = replace(run, training=with_margin(plain.training, 0.7))
    assert other.hash != run.hash
    with pytest.raises(UserError, match=r"margin is 0\.0; it must be above zero"):
        replace(run, training=with_margin(plain.training, 0.0))
    dpo = pt("dpo")
    assert replace(dpo, training=with_margin(dpo.training, 0.0)).hash == dpo.hash


def test_the_settings_of_other_methods_are_not_looked_at(monkeypatch, tmp_path):
    """In collections.yaml they may stand for all methods."""
    text = COLLECTIONS.replace("kl_batch_size: 32", "kl_batch_size: 3, num_generations: 0")
    use(monkeypatch, tmp_path, text)
    assert pt("dpo").pft_method == "dpo"
    with pytest.raises(UserError, match="kl_batch_size is 3"):
        pt("kto")
