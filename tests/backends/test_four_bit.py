"""A real bitsandbytes, on a CPU: a base in 4 bits is trained over, loaded as it was trained, forked
and made whole. `make test-backends` makes the environment of it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.conftest import COLLECTIONS
from tests.invariant.test_artifacts import perplexity
from tuning import run_dpo, run_pretrain, run_sft
from tuning.evaluation.config import PassAtKConfig
from tuning.inference.beside import Beside
from tuning.inference.vllm_engine import served
from tuning.runs.errors import UserError
from tuning.runs.rundir import RunDirectory
from tuning.training.config_training import model_config, sft_config
from tuning.weights import loading
from tuning.weights.artifact import artifact_of

pytest.importorskip("bitsandbytes", reason="make test-backends makes an environment that has it")

DATA: dict[str, Any] = {"model": "even", "dataset": "arith", "task": "math"}
FLAGS = ["--model", "even", "--dataset", "arith", "--task", "math"]
SFT = {"load_in_4bit": True}
BFLOAT16 = 2e-3
"""Of a perplexity: a model that does not train is computed so by bitsandbytes on some CPUs."""


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with an SFT run over a base in 4 bits, whose matrices bitsandbytes can pack on a CPU:
    their widths are multiples of 64.
    """
    root = tmp_path_factory.mktemp("four_bit")
    home, site = root / "home", yaml.safe_load(COLLECTIONS.read_text())
    home.mkdir()
    even = site["models"]["even"] = site["models"]["tiny"] | {"from_run": "even"}
    even["settings"]["pretrain"] |= {"hidden_size": 128, "intermediate_size": 256}
    (root / "collections.yaml").write_text(yaml.safe_dump(site))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNING_HOME", str(home))
        patch.setenv("TUNING_COLLECTIONS", str(root / "collections.yaml"))
        assert run_pretrain.main(["--model", "even"]) == 0
        flags = [*FLAGS, "--train_size", "48", "--load_in_4bit", "--do_training"]
        assert run_sft.main(flags) == 0
        yield home


@pytest.fixture
def run(home: Path) -> RunDirectory:
    config = sft_config(**DATA, train_size=48, values=SFT)
    assert config.run_name.startswith("even_sft-arith-48-")
    return RunDirectory(home / "models" / config.run_name)


def test_the_adapter_is_loaded_over_the_base_that_it_was_trained_over(home, run):
    assert run.result["perplexity"] < run.result["base_perplexity"]
    assert perplexity(home, run, None) == pytest.approx(run.result["perplexity"], rel=BFLOAT16)
    model: Any = loading.open_model(artifact_of(model_config("even", SFT), run))
    kinds = {type(part).__name__ for part in model.modules()}
    assert "Linear4bit" in kinds
    plain = artifact_of(model_config("even"), run)
    assert not plain.load_in_4bit and plain.base == artifact_of(model_config("even", SFT)).base


def test_preference_tuning_goes_on_over_it(home, run):
    """The reference is the parent, over the same four bits."""
    flags = [*FLAGS, "--parent_run", run.name, "--train_size", "8", "--load_in_4bit"]
    assert run_dpo.main([*flags, "--sft_loss_weight", "0", "--do_training"]) == 0
    (made,) = (RunDirectory(path) for path in home.glob(f"models/{run.name}_pt-*"))
    assert made.metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    with pytest.raises(UserError, match="load_in_4bit: True -> None"):
        run_dpo.main([*flags[:-1], "--do_training"])


def test_vllm_gets_the_weights_that_the_four_bits_stand_for(run):
    """With the adapter merged, and without one. On some CPUs bitsandbytes computes in bfloat16."""
    ids = torch.arange(3, 43)[None]
    for directory in (None, run):
        source = artifact_of(model_config("even", SFT), directory)
        whole = served(source, merge=False)
        assert whole.adapter is None and not whole.load_in_4bit
        with torch.no_grad():
            expected, rounded, found = (
                loading.open_model(one)(ids).logits
                for one in (source, replace(source, load_in_4bit=False), whole)
            )
        off, off_rounded = ((found - other).abs().mean() for other in (expected, rounded))
        assert off < 0.02 < 0.05 < off_rounded


def test_a_vllm_that_is_kept_beside_the_training_gets_whole_weights_every_time(run, home, tmp_path):
    """What it was started with has no room for an adapter."""
    base = artifact_of(model_config("even", SFT))
    beside = Beside(base, PassAtKConfig(backend="vllm", merge_adapter=False), tmp_path, keep=True)
    there = set(home.glob("cache/merged/*"))
    for _ in range(2):
        shutil.rmtree(tmp_path)
        shutil.copytree(run.path / "model", tmp_path / "model")
        found = beside._written()
        assert (found.adapter, found.load_in_4bit) == (None, False)
        assert served(found, merge=False) is found
    assert set(home.glob("cache/merged/*")) == there, "none stays"
