"""Options of sbatch that people add to those of a job script: `options` in cluster.yaml, and
`--sbatch "..."`. Those that a submission rests on, or that have a setting, are refused by name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from tuning.runs.errors import UserError

_SETTINGS = {
    "account": "account",
    "constraint": "constraint",
    "cpus-per-task": "cpus",
    "gres": "gres",
    "mem": "mem",
    "nodes": "nodes",
    "ntasks": "processes",
    "ntasks-per-node": "processes",
    "partition": "partition",
    "qos": "qos",
    "signal": "signal_seconds",
    "time": "time",
}
"""Options of sbatch that are settings, and their names."""
_OWN = {
    "array": "a task of a job array is a stage",
    "clusters": "jobs are looked up on the cluster that they are submitted to",
    "comment": "it holds the token by which jobs are found again",
    "dependency": "jobs depend on their parents; --dependency is for the first ones",
    "error": "`tuning logs` and `status` read the output of jobs",
    "hold": "jobs are held until all are submitted, and then released",
    "job-name": "it is made of the kind of stage and the experiment",
    "kill-on-invalid-dep": "a stage whose parent failed has to leave the queue",
    "no-requeue": "a stage that needs more time is requeued",
    "open-mode": "a requeued job continues its output",
    "output": "`tuning logs` and `status` read the output of jobs",
    "parsable": "it is set already",
    "requeue": "it is set already",
    "test-only": "nothing would be submitted; --dry_run prints the scripts",
    "wait": "`tuning status --watch` waits for the jobs",
    "wrap": "the job script is made from the plan",
}
"""Options of sbatch that cannot be given, and why."""
_LETTERS = {
    "A": "account", "C": "constraint", "H": "hold", "J": "job-name", "M": "clusters", "N": "nodes",
    "W": "wait", "a": "array", "c": "cpus-per-task", "d": "dependency", "e": "error", "n": "ntasks",
    "o": "output", "p": "partition", "q": "qos", "t": "time",
}  # fmt: skip
_ALONE = "HIOQVWhksuv"
"""Letters of options without a value: others may follow in the same word."""


def parsed(text: str, where: str) -> tuple[str, ...]:
    """The options in a line as one types it, each as a #SBATCH line takes it."""
    options: list[list[str]] = []
    for word in _words(text, where):
        if word.startswith("-"):
            options.append([word])
        elif options and len(options[-1]) == 1 and "=" not in options[-1][0]:
            options[-1].append(word)
        else:
            raise UserError(f"{where} has '{word}', which belongs to no option of sbatch.")
    return checked((" ".join(map(_quoted, option)) for option in options), where)


def checked(options: Iterable[str], where: str) -> tuple[str, ...]:
    """Return options as they are, or raise UserError for one that cannot be added."""
    found = tuple(options)
    for option in found:
        words = _words(option, where)
        if not option.startswith("-") or "\n" in option:
            raise UserError(
                f"{where} has '{' '.join(option.split())}'; write an option of sbatch, for example "
                "--exclusive, one in each entry."
            )
        for word in (word for word in words if word.startswith("-")):
            _refuse_own(word, where)
    return found


def _words(text: str, where: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{where} is '{text}': {str(error).lower()}.") from None


def _quoted(word: str) -> str:
    """A word as sbatch reads it: it knows quotes, and # begins a comment."""
    if re.fullmatch(r"[^\s'\"#\\]+", word):
        return word
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return name + equals + shlex.quote(value)


def _refuse_own(word: str, where: str) -> None:
    """Raise UserError for an option that cannot be given; sbatch takes beginnings of names too."""
    names = _names(word)
    if not names:
        raise UserError(f"{where} has '{word}', which is no option of sbatch.")
    for name in filter(None, names):
        _refuse_name(name, word, where)


def _names(word: str) -> list[str]:
    """The names of the options in a word: `-kH` has those of two letters, "" for one that is not
    refused.
    """
    if word.startswith("--"):
        name = word[2:].partition("=")[0]
        return [name] if name else []
    letters = word[1:]
    alone = len(letters) - len(letters.lstrip(_ALONE))
    return [_LETTERS.get(letter, "") for letter in letters[: alone + 1]]


def _refuse_name(name: str, word: str, where: str) -> None:
    if full := next((known for known in sorted(_SETTINGS) if known.startswith(name)), None):
        raise UserError(
            f"{where} has '{word}'; --{full} of sbatch is the setting '{_SETTINGS[full]}': give "
            f"--{_SETTINGS[full]}, --resources KIND:{_SETTINGS[full]}=..., or write it in "
            "cluster.yaml."
        )
    if full := next((known for known in sorted(_OWN) if known.startswith(name)), None):
        raise UserError(f"{where} has '{word}'; --{full} of sbatch cannot be set: {_OWN[full]}.")
