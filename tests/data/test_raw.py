"""Sources of the hub, with the real client and a hub of the test's own: what it refuses is one
line, soon.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

from tests.launchers.small_hub import COMMIT, Repository, SmallHub

pytestmark = pytest.mark.unit

READ = """
import json, sys, time
from tuning.data import raw
from tuning.runs.errors import UserError
found = []
for source in sys.argv[1:]:
    start = time.monotonic()
    try:
        read = raw.read(source)
        said = f"{read.version} {len(read)}"
    except UserError as error:
        said = str(error)
    found.append([said, time.monotonic() - start])
print(json.dumps(found))
"""
CARD = b"""---
configs:
- {config_name: main, data_files: [{split: train, path: main/train.parquet}]}
- {config_name: other, data_files: [{split: train, path: other/train.parquet}]}
---
"""


def parquet(rows: int) -> bytes:
    buffer = io.BytesIO()
    pandas.DataFrame([{"prompt": f"q{n}", "completion": "a"} for n in range(rows)]).to_parquet(
        buffer
    )
    return buffer.getvalue()


def hub() -> SmallHub:
    made = SmallHub("org/model")
    made.datasets = {
        "org/plain": Repository(
            {
                "README.md": b"#",
                "data/train-0.parquet": parquet(20),
                "data/test-0.parquet": parquet(3),
            }
        ),
        "org/bare": Repository({"train.jsonl": b'{"prompt": "a"}\n'}),
        "org/several": Repository(
            {"README.md": CARD, "main/train.parquet": parquet(5), "other/train.parquet": parquet(6)}
        ),
        "org/broken": Repository({"train.parquet": b"PAR1 and nothing else"}),
        "org/gated": Repository({"README.md": b"#", "train.parquet": parquet(5)}),
        "org/empty": Repository({"README.md": b"#"}),
    }
    made.datasets["org/gated"].gated = True
    return made


def read(tmp_path: Path, *sources: str, **environ: str) -> list[tuple[str, float]]:
    """What is said of each source, and how long it took."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "hf")} | environ
    done = subprocess.run(
        [sys.executable, "-c", READ, *sources],
        env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return [(said, seconds) for said, seconds in json.loads(done.stdout)]


def test_what_the_hub_has_is_read_with_its_commit_and_what_it_refuses_is_said(tmp_path):
    expected = {
        "org/plain": f"{COMMIT} 20",
        "org/plain@v1:test": f"{COMMIT} 3",
        "org/bare": f"{COMMIT} 1",
        "org/several/other": f"{COMMIT} 6",
        "org/plain@v9": "'org/plain' has no such revision at http",
        "org/plain:dev": "dataset 'org/plain' of the hub cannot be read: Unknown split \"dev\". "
        "Should be one of ['train', 'test']",
        "org/several": "dataset 'org/several' of the hub cannot be read: Config name is missing. "
        "Please pick one among the available configs: ['main', 'other']",
        "org/several/x": "dataset 'org/several' of the hub cannot be read: BuilderConfig 'x' not "
        "found. Available: ['main', 'other']",
        "org/broken": "dataset 'org/broken' of the hub cannot be read: Parquet magic bytes not",
        "org/gated": "the files of 'org/gated' are refused by the hub; if it is gated, request "
        "access at http",
        "org/none": "'org/none' is not at http",
        "org/empty": "dataset 'org/empty' of the hub cannot be read: The directory at",
        "a--b/c": "'a--b/c' is no source; it must be a file",
    }
    with hub().serving() as endpoint:
        found = read(tmp_path, *expected, HF_ENDPOINT=endpoint)
    for (source, start), (said, seconds) in zip(expected.items(), found, strict=True):
        assert said.startswith(start), (source, said)
        assert "\n" not in said and len(said) < 500
        assert seconds < 10


def test_another_commit_that_was_read_before_is_not_taken_for_the_one_that_is_refused(tmp_path):
    served = hub()
    with served.serving() as endpoint:
        assert read(tmp_path, "org/plain", HF_ENDPOINT=endpoint)[0][0].startswith(COMMIT)
        for blobs in tmp_path.glob("hf/hub/datasets--org--plain/snapshots/*/README.md"):
            blobs.unlink()
        served.datasets["org/plain"].gated = True
        ((said, _),) = read(tmp_path, "org/plain", HF_ENDPOINT=endpoint)
    assert said.startswith("the files of 'org/plain' are refused by the hub")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "'org/a' cannot be fetched ([Errno 111]"),
        ({"HF_ENDPOINT": "http://no.such.host.invalid"}, "'org/a' cannot be fetched ([Errno"),
        ({"HF_HUB_OFFLINE": "1"}, "'org/a' cannot be fetched: HF_HUB_OFFLINE or"),
    ],
)
def test_a_hub_that_is_out_of_reach_is_known_at_once(tmp_path, environ, message):
    start = time.monotonic()
    ((said, seconds),) = read(tmp_path, "org/a", **environ)
    assert said.startswith(message) and "local file" in said
    assert seconds < 5 and time.monotonic() - start < 60
