"""IFEval: does a response follow the instructions of its prompt?

    python tuning/evaluation/ifeval_evaluate.py RESPONSES.jsonl
    python tuning/evaluation/ifeval_evaluate.py RESPONSES.jsonl --prompts FILE --output scores.json

Scores a file of answers by itself; see tuning/evaluation/files.py for its lines. Prints every
measure with its 95% interval.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Score a file; returns the exit code."""
    from tuning.evaluation.files import main as evaluate

    return evaluate("instruction", "tuluif", __doc__, argv)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)
