"""A real unsloth, as far as it goes without a GPU: it is imported first, and takes every argument
that it is given. `make test-backends` makes the environment of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import check, copy_home, environment, run_entry
from tuning.config import CHECKOUT
from tuning.runs import provenance
from tuning.runs.rundir import RunDirectory

if provenance.version("unsloth") is None:  # it is not to be imported into this process
    pytest.skip("make test-backends makes an environment that has it", allow_module_level=True)

TRANSFORMERS = ("--backend_train", "transformers")
UNSLOTH = ("--backend_train", "unsloth")


def ran(
    home: Path, *words: object, code: int = 0, stop_at: int | None = None
) -> subprocess.CompletedProcess[str]:
    """opened_by_unsloth.py to its end; CUDA_VISIBLE_DEVICES names a GPU that is not there. It gets
    SIGTERM once its run has trained `stop_at` steps.
    """
    here, given = Path(__file__).parent, os.environ.get("PYTHONPATH", "")
    more = {
        "UNSLOTH_ALLOW_CPU": "1", "CUDA_VISIBLE_DEVICES": "0",
        "PYTHONPATH": os.pathsep.join(map(str, (here / "no_kernels", CHECKOUT, given))),
    }  # fmt: skip
    program = here / "opened_by_unsloth.py"
    process = subprocess.Popen(
        [sys.executable, str(program), *map(str, words)], env=environment(home) | more,
        cwd=home.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while stop_at and process.poll() is None:
        if any(len(losses(run)) >= stop_at for run in (home / "models").glob("tiny_sft-*")):
            process.terminate()
            break
        time.sleep(0.05)
    out, errors = process.communicate()
    return check(subprocess.CompletedProcess(words, process.returncode, out, errors), code)


def losses(run: Path, key: str = "loss") -> list[float]:
    """Of each step of a run, as far as it is."""
    return [line[key] for line in RunDirectory(run).metrics() if key in line]


@pytest.fixture(scope="module")
def found(trained_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What opened_by_unsloth.py says."""
    root = tmp_path_factory.mktemp("unsloth")
    home = copy_home(trained_home, root / "home")
    done = ran(home, home / "models")
    assert "should be imported before" not in done.stdout + done.stderr
    assert [path.name for path in root.iterdir()] == ["home"]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_it_is_imported_before_what_it_patches(found):
    assert found["early"] == []
    assert found["first"] == "unsloth"


def test_it_takes_every_argument(found):
    """A new adapter; all weights; a base in 4 bits; and the adapter of a parent."""
    names = [call["function"] for call in found["calls"]]
    new = ["from_pretrained", "get_peft_model"]
    assert names == [*new, "from_pretrained", *new, "from_pretrained", "patch_peft_model"]
    first, adapter, full, four_bit, plain = found["calls"][:5]
    # No more than the context of the model, above which unsloth stretches its positions.
    assert (first["max_seq_length"], first["random_state"]) == (128, 42)
    assert (adapter["r"], adapter["lora_alpha"], adapter["random_state"]) == (8, 8, 42)
    assert [call["full_finetuning"] for call in (first, full, four_bit)] == [False, True, False]
    assert [call["load_in_4bit"] for call in (first, full, four_bit)] == [False, False, True]
    assert plain["use_gradient_checkpointing"] is False
    assert adapter["use_gradient_checkpointing"] == "unsloth"


def test_the_trainer_that_it_has_patched_trains_what_it_opened(found):
    result = found["result"]
    assert result["perplexity"] < result["base_perplexity"] and result["backend"] == "unsloth"
    assert found["trained"] == ["lora_A.default", "lora_B.default"]


def test_only_what_trains_has_it_imported(trained_home, tmp_path):
    """Before and after a training its model is sampled from with transformers as they are."""
    home = copy_home(trained_home, tmp_path / "home")
    sft = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--train_size", 16)
    phases = ("--do_training", "--do_inference", "--do_evaluation", "--evaluate_before")
    sampling = ("--backend", "hf", "--prompts", 4, "--n_samples", 2, "--k_values", 1)
    done = ran(home, "run_sft", *sft, *phases, *sampling, *UNSLOTH)
    said = [line for line in done.stdout.splitlines() if line.startswith(("trains", "samples"))]
    assert said == ["samples False", "trains []", "samples False"]
    (run,) = (home / "models").glob("tiny_sft-*")
    assert json.loads((run / "result.json").read_text())["backend"] == "unsloth"
    assert json.loads((run / "status.json").read_text())["state"] == "done"


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_what_it_has_patched_trains_as_before(trained_home, tmp_path, method):
    """The trainers, that is, without the kernels: the same losses and gradients."""
    sft = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--train_size", 16)
    further = (*sft, "--pft_method", method, "--sft_train_size", 16, "--do_training")
    home = copy_home(trained_home, tmp_path / "home")
    check(run_entry(home, "run_sft.py", *sft, "--do_training", *TRANSFORMERS))
    other = copy_home(home, tmp_path / "other")
    check(run_entry(home, "run_dpo.py", *further, *TRANSFORMERS))
    ran(other, "run_dpo", *further, *UNSLOTH)
    plain, patched = (next((where / "models").glob("tiny_sft-*_pt-*")) for where in (home, other))
    assert RunDirectory(plain).result["backend"] == "transformers"
    assert RunDirectory(patched).result["backend"] == "unsloth"
    for key in ("loss", "grad_norm"):
        assert losses(plain, key) == pytest.approx(losses(patched, key))


def test_it_stops_and_resumes_and_transformers_go_on_from_its_checkpoint(trained_home, tmp_path):
    flags = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--train_size", 320,
             "--effective_batch_size", 8, "--micro_batch_size", 8, "--do_training")  # fmt: skip
    straight, home = (copy_home(trained_home, tmp_path / name) for name in ("straight", "home"))
    ran(straight, "run_sft", *flags, *UNSLOTH)
    ran(home, "run_sft", *flags, *UNSLOTH, code=75, stop_at=3)
    (run,) = (home / "models").glob("tiny_sft-*")
    other = copy_home(home, tmp_path / "other")
    ran(home, "run_sft", *flags, *UNSLOTH)
    check(run_entry(other, "run_sft.py", *flags, *TRANSFORMERS))
    wanted = losses(straight / "models" / run.name)
    assert losses(run) == wanted
    assert losses(other / "models" / run.name) == pytest.approx(wanted)


def test_without_a_gpu_it_is_refused_in_one_line(trained_home, tmp_path):
    sft = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--train_size", 8)
    asked = (*sft, "--backend_train", "unsloth", "--do_training")
    refused = check(run_entry(trained_home, "run_sft.py", *asked), 2)
    assert "--backend_train unsloth needs a GPU, and this machine has none" in refused.stderr
