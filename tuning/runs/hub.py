"""The Hugging Face hub as its users meet it: what may be an id, and what its refusals mean."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from tuning.runs import disk
from tuning.runs.errors import UserError

ID_RULE = (
    "an id of the hub: ORG/NAME of letters, digits, - _ and ., 96 at most in each, neither with "
    "-- or .. in it nor with - or . at an end nor ending in .git"
)
PATIENCE = 10.0
"""Seconds without an answer until the hub counts as out of reach."""
_PART = r"\w(?:[\w.-]{0,94}\w)?"
_ID = re.compile(rf"(?:{_PART}/)?{_PART}", re.ASCII)
_LOGIN = "set HF_TOKEN, or log in with 'hf auth login'"


def is_id(text: str) -> bool:
    """Whether the hub may have a repository of this name."""
    refused = "--" in text or ".." in text or text.endswith(".git")
    return not refused and _ID.fullmatch(text) is not None


@contextlib.contextmanager
def explained(hub: str, *, page: str = "", otherwise: str = "") -> Iterator[None]:
    """Turn what the hub's client raises into one line that says what to do.

    `page`: what stands before an id in the address of its page; `otherwise`: what else would do
    where the hub cannot be reached.
    """
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise UserError(
            f"'{hub}' cannot be fetched: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it"
            f"{otherwise}."
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"'{hub}' {_refused(page + hub, constants.ENDPOINT, error)}.") from None
    except (httpx.HTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        advice = (
            f"run this where {constants.ENDPOINT} is reachable, or set HF_ENDPOINT to a mirror"
            f"{otherwise}; completed files are kept"
        )
        if disk.is_full(error):
            advice = f"free space under {constants.HF_HUB_CACHE}, or set HF_HOME to another disk"
        raise UserError(f"'{hub}' cannot be fetched ({reason}): {advice}.") from None


def ask_for_access(page: str) -> str:
    """What to do about a gated repository."""
    from huggingface_hub import constants

    return f"request access at {constants.ENDPOINT}/{page}, then {_LOGIN} with that account"


def _refused(page: str, endpoint: str, error: Any) -> str:
    """What an answer of the hub other than a file means, and what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    code = error.response.status_code
    if isinstance(error, GatedRepoError):
        return f"is gated (HTTP {code}): {ask_for_access(page)}"
    if isinstance(error, RevisionNotFoundError):
        return f"has no such revision at {endpoint} (HTTP {code}): check what follows the @"
    if isinstance(error, RepositoryNotFoundError) or code == 404:
        private = f"for a private repository {_LOGIN}"
        return f"is not at {endpoint} (HTTP {code}): check the name; {private}"
    if code in (401, 403):
        return f"is refused by {endpoint} (HTTP {code}): {_LOGIN} with an account that has access"
    return f"cannot be fetched: {endpoint} answers HTTP {code}; try again later"
