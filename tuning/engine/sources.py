"""Reads training data from files and texts into arrays of tokens, and checks it.

Files are read once, at the start of a run; a mistake in a file is a UserError with file and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tuning.engine.samples import IGNORED, LARGEST_ID, Rows
from tuning.runs.errors import UserError
from tuning.runs.json_text import parse_object, shown, text_lines

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Kind = Literal["rows", "documents", "text"]
"""Rows have labels of their own, documents are token ids, text has yet to be tokenized."""
TEXTS_AT_ONCE = 1000


def kind_of(path: str | Path, field: str = "text") -> Kind:
    """The kind of a file, by its first line; a .txt is text.

    Raises:
        UserError: It cannot be read, is empty, or is of none of these kinds.
    """
    for where, line in _lines(path):
        if Path(path).suffix == ".txt":
            return "text"
        keys = parse_object(line, where)
        if "input_ids" in keys:
            return "rows" if "labels" in keys else "documents"
        if field in keys:
            return "text"
        raise UserError(
            f"{where} has the keys {', '.join(keys) or '(none)'}; give rows (input_ids, labels), "
            f"documents (input_ids) or texts ({field}), a JSON object a line, or a .txt"
        )
    raise UserError(f"'{path}' is empty; give a file with text, documents or rows")


def read_rows(
    path: str | Path,
    *,
    max_tokens: int | None = None,
    on_long: Literal["refuse", "truncate"] = "refuse",
    limit: int | None = None,
) -> Rows:
    """Rows of fine-tuning: JSON lines {"input_ids": [...], "labels": [...], "len"?: n}.

    A label is the token at the same position, or -100 for no loss; all labels of a row may be -100.

    Args:
        path: The file; blank lines and other keys are ignored.
        max_tokens: The longest row that is allowed.
        on_long: What to do with a longer one: `truncate` cuts its end off.
        limit: Read so many rows (default: all).

    Raises:
        UserError: A line is not such a row, there is no row, or one is too long.
    """
    ids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    long: list[tuple[int, str]] = []
    for where, row in islice(_objects(path), limit):
        tokens, targets = _row(where, row)
        if max_tokens is not None and len(tokens) > max_tokens:
            long.append((len(tokens), where))
        ids.append(tokens[:max_tokens])
        labels.append(targets[:max_tokens])
    if long and on_long == "refuse":
        length, where = long[0]
        raise UserError(
            f"{where} has {length} tokens and --max_tokens_per_gpu is {max_tokens}; raise "
            f"--max_tokens_per_gpu (the longest row has {max(long)[0]}), or cut the {len(long)} "
            f"rows that are too long with --on_long truncate"
        )
    if not ids:
        raise UserError(f"'{path}' holds no rows; give at least one")
    return Rows(ids, labels, truncated=len(long))


def read_token_documents(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Documents of token ids: JSON lines {"input_ids": [...]}; other keys are ignored.

    No separator is added: an end-of-document token must be among the ids.

    Returns:
        [tokens], int32: the documents end to end; [documents], int64: where each one begins.
    """
    documents = [_ids(where, row, "input_ids") for where, row in _objects(path)]
    if not documents:
        raise UserError(f"'{path}' holds no documents; give at least one")
    return np.concatenate(documents), _starts([len(document) for document in documents])


def read_texts(path: str | Path, field: str = "text") -> Iterator[str]:
    """The texts of a file, one after the other.

    In a .txt, documents are separated by blank lines; line ends within a document are kept. Any
    other file has a JSON object a line, and `field` is the text; empty texts are left out.
    """
    if Path(path).suffix == ".txt":
        yield from _paragraphs(path)
        return
    for where, row in _objects(path):
        text = _value(where, row, field)
        if not isinstance(text, str):
            raise UserError(f"{where}: {field} is {shown(text)}; it must be text")
        if text:
            yield text


def tokenize_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, *, needed: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The texts as tokens, the eos token after every one.

    Args:
        texts: Read only as far as needed, in batches.
        tokenizer: Its other special tokens are not added.
        needed: Return the first `needed` tokens, or all if there are fewer (default: all).

    Returns:
        [tokens], int32: the documents end to end; [documents], int64: where each one begins.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError(
            f"the tokenizer '{tokenizer.name_or_path}' has no eos token to end documents with; "
            f"give one that has as --tokenizer"
        )
    parts, lengths, total = [np.empty(0, dtype=np.int32)], [], 0
    waiting = iter(texts)
    while (needed is None or total < needed) and (some := list(islice(waiting, TEXTS_AT_ONCE))):
        encoded = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        sizes = [len(ids) + 1 for ids in encoded]
        ended = chain.from_iterable((*ids, end) for ids in encoded)
        parts.append(np.fromiter(ended, dtype=np.int32, count=sum(sizes)))
        lengths += sizes
        total += sum(sizes)
    tokens, starts = np.concatenate(parts)[:needed], _starts(lengths)
    return tokens, starts[: np.searchsorted(starts, len(tokens))]


def _starts(lengths: list[int]) -> np.ndarray:
    """[documents], int64: where documents of these lengths begin, end to end."""
    ends = np.cumsum(lengths, dtype=np.int64)
    return ends - np.array(lengths, dtype=np.int64)


def _paragraphs(path: str | Path) -> Iterator[str]:
    """Paragraphs, which are separated by blank lines."""
    lines: list[str] = []
    for _, line in _lines(path, blank=True):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _lines(path: str | Path, blank: bool = False) -> Iterator[tuple[str, str]]:
    """(file:number, line) of each line, without its line end; blank ones only if `blank`."""
    try:
        with Path(path).open("rb") as file:
            for number, line in text_lines(file, str(path), blank=blank):
                yield f"{path}:{number}", line
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.strerror}); give the path of a file"
        ) from None


def _objects(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:number, object) of each line."""
    return ((where, parse_object(line, where)) for where, line in _lines(path))


def _row(where: str, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of a row, of one length."""
    ids, labels = _ids(where, row, "input_ids"), _ids(where, row, "labels", lowest=IGNORED)
    if len(labels) != len(ids):
        raise UserError(
            f"{where} has {len(ids)} input_ids and {len(labels)} labels; a row needs as many"
        )
    if row.get("len", len(ids)) != len(ids):
        raise UserError(
            f"{where} has {len(ids)} input_ids and says len {shown(row['len'])}; leave len out or "
            f"correct it"
        )
    return ids, labels


def _ids(where: str, row: dict[str, Any], key: str, lowest: int = 0) -> np.ndarray:
    """The token ids of a row, int32; `lowest` may be IGNORED, and then it is allowed besides."""
    values = _value(where, row, key)
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}: {key} is {shown(values)}; it must be a list of token ids")
    if set(map(type, values)) == {int} and min(values) >= lowest and max(values) <= LARGEST_ID:
        ids = np.array(values, dtype=np.int32)
        if not ((ids < 0) & (ids != lowest)).any():
            return ids
    place, wrong = next(
        (place, value)
        for place, value in enumerate(values)
        if type(value) is not int or not (0 <= value <= LARGEST_ID or value == lowest)
    )
    also = f", or {IGNORED} for no loss" if lowest == IGNORED else ""
    raise UserError(
        f"{where}: {key}[{place}] is {shown(wrong)}; a token id is an integer from 0 up{also}"
    )


def _value(where: str, row: dict[str, Any], key: str) -> Any:
    if key not in row:
        raise UserError(f"{where} lacks {key}; it has {', '.join(row) or 'no keys'}")
    return row[key]
