"""The names and hashes of the default runs, pinned.

They tell results apart that are on people's disks, and the sampling of an evaluation is seeded by
them: a change here retrains and resamples everything. Add a setting with `setting(..., before=...)`
(tuning/settings.py) and nothing here changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tuning.config import CHECKOUT
from tuning.engine.run_config import pretrain_config
from tuning.evaluation.config import evaluation_config, sampling_config
from tuning.training.config_training import model_config, preference_config, sft_config
from tuning.training.parents import parent_of

pytestmark = pytest.mark.unit

DATA: dict[str, Any] = {"model": "tiny", "dataset": "arith", "task": "math"}
GOLDEN = {
    "pretrain": (
        "tiny",
        "480b4f6c7b785d16f4c04c6e2f7e4c8ed9247ebf5798951fbbeec5009d5b2b4e",
    ),
    "sft": (
        "tiny_sft-arith-1000",
        "30de41d62c15543d763c0e37a719748b1a5951443b80b70cc47c9e83012490d9",
    ),
    "sft_engine": (
        "tiny_sft-arith-1000-9245d798",
        "9245d7987891a6570f890f736e1144f4a13ad6ed0ffc469f390db4c11fcef86a",
    ),
    "sft_sweetspots": (
        "tiny_sft-arith-2000-17a840cd",
        "17a840cd29afb03b6bd2816216e8146e0ce4cc2e5dc0c954bc8a3c3b86235d0f",
    ),
    "dpo": (
        "tiny_pt-arith-1000",
        "9cb935f142ec9dbe6eb047dd74e0a898d6d16866507fdf7e8b3ce4c22c1ba11e",
    ),
    "sft_dpo": (
        "tiny_sft-arith-1000_pt-arith-1000",
        "0400711312b47d1972481afe6d4352d4425230d25e14f89549e21a71fdec1e6f",
    ),
    "fork_dpo": (
        "tiny_sweetspot-ppl-2.0_dpo-arith-remaining",
        "5d15f9c65bb12210271eb0dd6238a546985768f7691c2bb022680bfaf9e98b8c",
    ),
    "kto": (
        "tiny_pt-arith-1000_kto",
        "b9544e405c1077f0a7aec3636a55e581075c27b55e814a3781c0dd8efd4d49b0",
    ),
    "sft_kto": (
        "tiny_sft-arith-1000_pt-arith-1000_kto",
        "5630d0e6879529745c38c3f4e0737ecea4d9ada5437e3a83280d7194ae5fc4e7",
    ),
    "fork_kto": (
        "tiny_sweetspot-ppl-2.0_kto-arith-remaining",
        "3b7e3369c54333a4df3e0573aba95c3efb9e21e3cd3fd3610d5f1bd9f1fe1238",
    ),
    "grpo": (
        "tiny_pt-arith-1000_grpo",
        "d4b7d8cd681654252243ba5dc8cbbd7d1f0b706c3f052ba37fb8862ca8d7e296",
    ),
    "sft_grpo": (
        "tiny_sft-arith-1000_pt-arith-1000_grpo",
        "994bfb635daed3667925c6ed7b46500fff0099cd5bdec90cb62e53b563b5f80e",
    ),
    "fork_grpo": (
        "tiny_sweetspot-ppl-2.0_grpo-arith-remaining",
        "cd10c1c6791875a83d379c8399943813f0a29de92d4756bbdb5c427abeca37ed",
    ),
    "base": (
        "tiny",
        "d9682379ce4a634957b9d18690c21821ea51a104cc9b19ad847b952eb64e1c0f",
    ),
    "evaluation": (
        "tiny",
        "f77c3d0eebf22040d5b3abb3a01aa6ed213dda497ea3758212265f2f96848af9",
    ),
}


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The project's own collections.yaml, and an empty home."""
    monkeypatch.setenv("TUNING_HOME", str(tmp_path))
    monkeypatch.setenv("TUNING_COLLECTIONS", str(CHECKOUT / "collections.yaml"))


def default_runs() -> dict[str, Any]:
    """Each kind of run with the defaults of `tiny`."""
    sft = sft_config(**DATA, train_size=1000)
    spots = {"perplexity_thresholds": (2.0, 1.6, 1.4)}
    sweetspots = sft_config(**DATA, train_size=2000, values=spots)
    base = model_config("tiny")
    sampling = sampling_config("tiny")
    found = {
        "pretrain": pretrain_config("tiny"),
        "sft": sft,
        "sft_engine": sft_config(**DATA, train_size=1000, values={"trainer": "engine"}),
        "sft_sweetspots": sweetspots,
        "evaluation": evaluation_config(base, dataset="arith", task="math", sampling=sampling),
    }
    starts = {
        "": (1000, None),
        "sft_": (1000, parent_of(sft, sft.run_name)),
        "fork_": (None, parent_of(sweetspots, sweetspots.run_name, "ppl-2.0", 3000)),
    }
    for start, (size, parent) in starts.items():
        for method in ("dpo", "kto", "grpo"):
            found[start + method] = preference_config(
                **DATA, pft_method=method, train_size=size, parent=parent
            )
    return found


def test_the_default_runs_keep_their_names_and_hashes():
    found = {kind: (run.run_name, run.hash) for kind, run in default_runs().items()}
    found["base"] = ("tiny", model_config("tiny").identity_hash)
    assert found == GOLDEN
