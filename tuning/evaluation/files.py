"""Scores a file of answers by itself: of any model, sampled by any program.

A line is {"prompt", "response"} or {"prompt", "responses": [...]}, and what the task grades by, if
it has that; otherwise the rows of a prompts file are found by their prompts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.data.recipes import RECIPES, Unusable
from tuning.data.rows import prompt_key
from tuning.evaluation.scoring import measured
from tuning.flags import Parser
from tuning.runs import atomic
from tuning.runs.errors import UserError
from tuning.runs.json_text import parse_object, text_lines
from tuning.tasks.base import Grade, Task
from tuning.tasks.registry import task


def main(
    task_name: str, dataset: str, description: str | None, argv: Sequence[str] | None = None
) -> int:
    """The command line of ifeval_evaluate.py and gsm8k_evaluate.py; returns the exit code."""
    parser = Parser(prog=f"tuning/evaluation/{dataset}", description=description)
    parser.add_argument("responses", type=Path, help='JSON lines {"prompt", "response"}')
    parser.add_argument(
        "--prompts",
        help="the published test set, a file or an id of the hub, whose rows are found by their "
        f"prompts (default: what the lines have, or else {RECIPES[dataset].sources['test']})",
    )
    parser.add_argument("--output", type=Path, help="write the scores here too, as JSON")
    args = parser.parse_args(argv)
    scores = evaluate(task(task_name), dataset, args.responses, args.prompts)
    if args.output is not None:
        atomic.write_json(args.output, scores)
    print(table(task_name, scores))
    return 0


def evaluate(grader: Task, dataset: str, path: Path, prompts: str | None) -> dict[str, Any]:
    """The scores of a file of answers; UserError for a line that cannot be graded."""
    lines = _lines(path)
    whole = all(line.keys() >= {*grader.columns} for _, line in lines)
    rows = {} if whole and prompts is None else _published(dataset, prompts)
    grades = [_graded(grader, where, line, rows) for where, line in lines]
    if len({len(of_prompt) for of_prompt in grades}) > 1:
        raise UserError(f"'{path}' has prompts with different numbers of responses; give as many.")
    samples = len(grades[0])
    return measured(grades, [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= samples])


def table(task_name: str, scores: Mapping[str, Any]) -> str:
    """The scores for people, each with its 95% interval over prompts."""
    entries = {f"pass@{k}": value for k, value in scores["pass_at_k"].items()} | scores["parts"]
    width = max(map(len, entries))
    head = f"{task_name}: {scores['prompts']} prompts x {scores['samples']} responses"
    return "\n".join(
        [
            head,
            *(
                f"  {name:<{width}}  {v['estimate']:.4f} [{v['low']:.4f}, {v['high']:.4f}]"
                for name, v in entries.items()
            ),
        ]
    )


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place, line) of each line; at least one."""
    try:
        raw = site.expanded(str(path)).read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}).") from None
    found = [
        (f"{path.name}:{number}", parse_object(text, f"{path.name}:{number}"))
        for number, text in text_lines(raw.split(b"\n"), path.name)
    ]
    if not found:
        raise UserError(f"'{path}' is empty; give a line for each prompt.")
    seen: dict[str, str] = {}
    for where, line in found:
        other = seen.setdefault(json.dumps(line.get("prompt"), sort_keys=True), where)
        if other != where:
            raise UserError(
                f"{where} has the prompt of {other}; give all responses to a prompt in one line: "
                '"responses": [...].'
            )
    return found


def _published(dataset: str, source: str | None) -> dict[Any, dict[str, Any]]:
    """The rows of a test set by what they ask."""
    from tuning.data import raw

    recipe, rows = RECIPES[dataset], {}
    for _, published in raw.read(source or recipe.sources["test"]):
        try:
            for row in recipe.rows("test", published):
                rows[_asked(row["prompt"])] = row
                rows[_asked(published.get("question") or published["prompt"])] = row
        except Unusable:
            continue
    return rows


def _asked(prompt: Any) -> Any:
    """What a prompt asks, whether it is text or a conversation."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    return prompt_key([{"role": "user", "content": text}])


def _is_prompt(value: Any) -> bool:
    """Whether it is text, or messages of which the last has a text."""
    last = value[-1] if isinstance(value, list) and value else value
    content = last.get("content") if isinstance(value, list) and isinstance(last, dict) else value
    return isinstance(content, str) and bool(content)


def _graded(
    grader: Task, where: str, line: Mapping[str, Any], rows: Mapping[Any, dict[str, Any]]
) -> list[Grade]:
    """The grades of the responses of a line."""
    if not _is_prompt(line.get("prompt")):
        raise UserError(f"{where} lacks prompt: text, or a list of messages.")
    responses = line.get("responses", [line.get("response")])
    if not isinstance(responses, list) or not responses or {*map(type, responses)} != {str}:
        raise UserError(f"{where}: give response as text, or responses as a list of texts.")
    row = rows.get(_asked(line["prompt"]), line) if rows else line
    if lacking := [column for column in grader.columns if column not in row]:
        raise UserError(
            f"{where} lacks {', '.join(lacking)}, and its prompt is not in the test set: "
            f"{str(line['prompt'])[:60]!r}"
        )
    grader.require_gradable([row], lambda _: where)
    return [grader.grade(text, row) for text in responses]
