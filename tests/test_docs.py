"""What README.md and docs/ show is true: every YAML is loaded by what it is for, and the worked
examples of docs/slurm.md print what stands below them.
"""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path

import pytest

from tests.launchers.slurm.fake_cluster import FakeCluster
from tuning import config as site
from tuning.config import CHECKOUT
from tuning.data.preparation import prepare
from tuning.data.recipes import RECIPES
from tuning.launchers.slurm import snapshot
from tuning.launchers.slurm.resources import Cluster
from tuning.schema import read_yaml
from tuning.submit import main

pytestmark = pytest.mark.unit

PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
YAML = [
    pytest.param(text, id=f"{page}:{number}")
    for page in PAGES
    for number, (kind, text) in enumerate(BLOCK.findall((CHECKOUT / page).read_text()), 1)
    if kind == "yaml"
]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty TUNING_HOME and no variables of sbatch; the collections are the project's own."""
    for name in ("TUNING_COLLECTIONS", "TUNING_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TUNING_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.mark.parametrize("text", YAML)
def test_a_yaml_is_what_it_says(text: str, tmp_path: Path, monkeypatch, capsys) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    keys = set(read_yaml(path))
    if keys <= {"defaults", "stages", "max_submit"}:
        Cluster(environ={}, path=path)
    elif keys <= {"tasks", "datasets", "models"}:
        whole = read_yaml(CHECKOUT / "collections.yaml")
        _write_together(path, whole, read_yaml(path))
        monkeypatch.setenv("TUNING_COLLECTIONS", str(path))
        assert site.collections().datasets.keys() >= read_yaml(path)["datasets"].keys()
    else:
        assert main([str(path), "--launcher", "local", "--dry_run"]) == 0
        assert "experiment " in capsys.readouterr().out


def _write_together(path: Path, whole: dict, part: dict) -> None:
    import yaml

    path.write_text(yaml.safe_dump({k: v | part.get(k, {}) if isinstance(v, dict) else v
                                    for k, v in whole.items()}))  # fmt: skip


def test_the_example_of_the_real_study_is_planned_from_small_data(home: Path, capsys) -> None:
    """As many rows as the flags that override it ask for, in the columns of the hub's."""
    ask = "Write about the number {}. Use no commas."
    turn = [{"role": "assistant", "content": "It is a number"}]
    other = [{"role": "assistant", "content": "Numbers, many of them"}]
    asked = [[{"role": "user", "content": ask.format(n)}] for n in range(60)]
    check = {"key": 1, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    sources = {
        "sft": [{"messages": prompt + turn} for prompt in asked[:30]],
        "preference": [
            {"prompt": p[0]["content"], "chosen": p + turn, "rejected": p + other}
            for p in asked[30:]
        ],
        "test": [{"prompt": f"Describe the city {n}. Use no commas.", **check} for n in range(541)],
    }
    files = {name: home.parent / f"{name}.jsonl" for name in sources}
    for name, rows in sources.items():
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare("tuluif", RECIPES["tuluif"], {name: str(file) for name, file in files.items()})
    small = ["--total_data", "20", "--sft_data", "10", "--launcher", "local", "--dry_run"]
    assert main([str(CHECKOUT / "examples/tuluif.yaml"), *small]) == 0
    told = capsys.readouterr().out
    assert "--model llama3-8B --dataset tuluif --task instruction --train_size 10" in told
    assert "llama3-8B_sweetspot-ppl-2.5_kto-tuluif" in told


def examples() -> list[tuple[str, list[str], list[str]]]:
    """(the YAML above it, its words, what it prints) of every worked example."""
    found, file = [], ""
    blocks = BLOCK.findall((CHECKOUT / "docs/slurm.md").read_text())
    for (kind, text), (after, printed) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind == "yaml":
            file = text
        elif kind == "bash" and after == "text":
            words = shlex.split(text.replace("\\\n", " "))
            found.append((file, words[words.index("submit") + 1 :], printed.splitlines()))
    return found


EXAMPLES = examples()


def test_there_are_examples_of_modules_conda_and_containers() -> None:
    for example, sign in zip(EXAMPLES, ("module load", "conda", "container"), strict=True):
        assert sign in example[0]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_prints_what_stands_below_it(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The cluster is one in memory: none with GPUs can be had here. `...` stands for anything."""
    file, words, printed = EXAMPLES[number]
    (tmp_path / "cluster.yaml").write_text(file)
    monkeypatch.setenv("TUNING_CLUSTER", str(tmp_path / "cluster.yaml"))
    monkeypatch.setattr(snapshot, "take", lambda: Path("/code"))
    cluster = FakeCluster(None, random.Random(0))
    monkeypatch.setattr(FakeCluster, "answers", lambda self: False, raising=False)
    monkeypatch.setattr("tuning.launchers.slurm.client.Slurm", lambda: cluster)
    assert main([*words, "--launcher", "slurm"]) == 0
    told = capsys.readouterr().out
    lines = iter(told.splitlines())
    for line in printed:
        form = re.escape(line).replace(r"\.\.\.", ".*")
        found = any(re.fullmatch(form, other) for other in lines)
        assert found, f"not printed, or not in this order: {line}\n{told}"


@pytest.mark.parametrize("name", ["small_budgets", "cold_start", "grpo_seeds", "paper_grid"])
def test_an_example_plans_with_three_seeds(name: str, capsys) -> None:
    here = ["--base_model", "tiny", "--dataset", "arith"] if name == "paper_grid" else []
    path = CHECKOUT / "examples" / f"{name}.yaml"
    assert main([str(path), *here, "--launcher", "local", "--dry_run"]) == 0
    told = capsys.readouterr()
    assert all(f"_seed-{seed}" in told.out for seed in (43, 44)) and "_seed-45" not in told.out
    if name == "paper_grid":
        assert "246 trainings" in told.err and "114 are saved" in told.err
        assert "114 of 360" in path.read_text() and "other 246" in path.read_text()
