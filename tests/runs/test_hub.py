"""What may be an id of the hub: what its client takes, and no more."""

from __future__ import annotations

import random

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from tuning.runs.hub import is_id

pytestmark = pytest.mark.unit


def accepted(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    ["org/name", "name", "a/b--c", "a..b/c", "a/b.git", "-a/b", "a/b-", "a/.b", "a./b", "a/b/c", "",
     "a/" + "b" * 96, "a/" + "b" * 97, "a" * 97 + "/b", "a/b c", "a/\u00e9", "a/b\n", "_a/b_"],
)  # fmt: skip
def test_an_id_is_what_the_client_takes(text):
    assert is_id(text) is accepted(text)


def test_random_ones_too():
    rng = random.Random(0)
    for _ in range(5000):
        text = "".join(rng.choice("ab1-._/") for _ in range(rng.randint(1, 9)))
        assert is_id(text) is accepted(text), text
