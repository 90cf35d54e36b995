"""Samples of the training loop: labels stay within documents, counts are what is counted, bad
files are refused by file and line."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest

from tuning.data import arith
from tuning.engine.samples import (
    IGNORED,
    Blocks,
    MockSamples,
    Rows,
    Sample,
    check_vocabulary,
    split,
)  # fmt: skip
from tuning.engine.sources import (
    kind_of,
    read_rows,
    read_texts,
    read_token_documents,
    tokenize_documents,
)
from tuning.engine.tokenizer import train_tokenizer
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit


def lines(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def stream(documents):
    """Documents (lists of ids) end to end, and where they begin."""
    lengths = [len(document) for document in documents]
    return np.concatenate(documents), np.cumsum([0, *lengths[:-1]])


def random_documents(rng):
    lengths = rng.integers(1, rng.integers(2, 40), size=rng.integers(1, 30))
    return [rng.integers(0, 1000, size=length).tolist() for length in lengths]


def slow_blocks(documents, block_size):
    """What Blocks should give, token by token."""
    tokens = [
        (token, document[at + 1] if at + 1 < len(document) else IGNORED, number)
        for number, document in enumerate(documents)
        for at, token in enumerate(document)
    ]
    for first in range(0, len(tokens), block_size):
        ids, labels, owners = zip(*tokens[first : first + block_size], strict=True)
        yield list(ids), list(labels), [owners.count(owner) for owner in dict.fromkeys(owners)]


def as_lists(sample):
    return tuple(part.tolist() for part in sample)


def assert_counts(samples):
    """Lengths, loss tokens and squares are what the samples show."""
    every = list(samples)
    assert len(every) == len(samples) == len(samples.lengths)
    for sample in every:
        assert isinstance(sample, Sample)
        assert all(part.dtype == np.int64 for part in sample)
        assert len(sample.input_ids) == len(sample.labels) == sample.documents.sum()
        assert (sample.documents > 0).all()
    assert samples.lengths.tolist() == [len(s.input_ids) for s in every]
    assert samples.loss_tokens.tolist() == [int((s.labels != IGNORED).sum()) for s in every]
    assert samples.squares.tolist() == [int((s.documents**2).sum()) for s in every]
    assert samples.lengths.dtype == samples.loss_tokens.dtype == samples.squares.dtype == np.int64


def test_mock_samples_depend_on_seed_and_index_only():
    samples = MockSamples(5, 8, 50, seed=3)
    assert_counts(samples)
    assert samples.loss_tokens.tolist() == [8] * 5
    backwards = [as_lists(samples[i]) for i in reversed(range(5))][::-1]
    assert backwards == [as_lists(s) for s in MockSamples(7, 8, 50, seed=3)][:5]
    assert backwards != [as_lists(s) for s in MockSamples(5, 8, 50, seed=4)]
    assert samples[0].input_ids[1:].tolist() == samples[0].labels[:-1].tolist()
    assert max(s.input_ids.max() for s in samples) < 50


def test_blocks_are_what_a_loop_over_the_tokens_makes():
    rng = np.random.default_rng(0)
    for _ in range(150):
        documents = random_documents(rng)
        block_size = int(rng.integers(1, 50))
        blocks = Blocks(*stream(documents), block_size)
        assert [as_lists(block) for block in blocks] == list(slow_blocks(documents, block_size))
        assert_counts(blocks)


def test_the_first_blocks_are_the_same_blocks():
    documents = random_documents(np.random.default_rng(1))
    tokens, starts = stream(documents)
    every = [as_lists(block) for block in Blocks(tokens, starts, 7)]
    for number in range(len(every) + 1):
        blocks = Blocks(tokens, starts, 7, num_blocks=number)
        assert [as_lists(block) for block in blocks] == every[:number]
        assert_counts(blocks)


def test_the_last_block_is_what_is_left():
    blocks = Blocks(np.arange(10), np.array([0, 6]), 4)
    assert blocks.lengths.tolist() == [4, 4, 2]
    assert as_lists(blocks[1]) == ([4, 5, 6, 7], [5, IGNORED, 7, 8], [2, 2])
    assert as_lists(blocks[2]) == ([8, 9], [9, IGNORED], [2])
    assert blocks.loss_tokens.tolist() == [4, 3, 1]
    short = Blocks(np.array([5, 6]), np.array([0]), 100)
    assert as_lists(short[0]) == ([5, 6], [6, IGNORED], [2])
    assert_counts(Blocks(np.array([], dtype=np.int32), np.array([], dtype=np.int64), 4))


def test_more_blocks_than_there_are():
    with pytest.raises(ValueError, match=r"10 tokens are 3 blocks of 4; 4 are needed"):
        Blocks(np.arange(10), np.array([0]), 4, num_blocks=4)


@pytest.mark.parametrize("starts", [[], [1], [0, 4, 4], [0, 6, 5], [0, 10]])
def test_starts_that_are_none(starts):
    with pytest.raises(ValueError, match="document starts must begin with 0"):
        Blocks(np.arange(10), np.array(starts, dtype=np.int64), 4)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32])
def test_blocks_of_a_memory_map(tmp_path, dtype):
    documents = random_documents(np.random.default_rng(2))
    tokens, starts = stream(documents)
    tokens.astype(dtype).tofile(tmp_path / "tokens.bin")
    starts.astype(np.int64).tofile(tmp_path / "starts.bin")
    mapped = np.memmap(tmp_path / "tokens.bin", dtype=dtype, mode="r")
    blocks = Blocks(mapped, np.memmap(tmp_path / "starts.bin", dtype=np.int64, mode="r"), 16)
    assert [as_lists(block) for block in blocks] == list(slow_blocks(documents, 16))
    assert_counts(blocks)
    assert blocks.largest_id == max(map(max, documents))


def test_a_sample_is_its_own_memory():
    tokens = np.arange(10)
    blocks = Blocks(tokens, np.array([0]), 4)
    blocks[0].input_ids[:] = 0
    rows = Rows([tokens], [tokens])
    rows[0].labels[:] = 0
    assert blocks[0].input_ids.tolist() == [0, 1, 2, 3]
    assert rows[0].labels.tolist() == [*range(1, 10), IGNORED]
    assert tokens.tolist() == list(range(10))


@pytest.mark.parametrize("index", [3, -4])
def test_an_index_beyond_the_samples(index):
    rows = [np.arange(3)] * 3
    for samples in (MockSamples(3, 2, 9, 0), Blocks(np.arange(9), np.array([0]), 3)):
        with pytest.raises(IndexError):
            samples[index]
    with pytest.raises(IndexError):
        Rows(rows, rows)[index]
    assert as_lists(Rows(rows, rows)[-1]) == as_lists(Rows(rows, rows)[2])


def test_rows_are_shifted_within_themselves():
    rows = Rows(
        [np.array([1, 2, 3]), np.array([4]), np.array([5, 6])],
        [np.array([IGNORED, 2, 3]), np.array([4]), np.array([IGNORED, IGNORED])],
    )
    assert_counts(rows)
    assert as_lists(rows[0]) == ([1, 2, 3], [2, 3, IGNORED], [3])
    assert as_lists(rows[1]) == ([4], [IGNORED], [1])
    assert rows.loss_tokens.tolist() == [2, 0, 0]


def test_random_rows():
    rng = np.random.default_rng(3)
    ids = [rng.integers(0, 99, size=rng.integers(1, 20)) for _ in range(100)]
    labels = [np.where(rng.random(len(row)) < 0.5, row, IGNORED) for row in ids]
    rows = Rows(ids, labels)
    assert_counts(rows)
    for number, sample in enumerate(rows):
        assert sample.input_ids.tolist() == ids[number].tolist()
        assert sample.labels.tolist() == [*labels[number][1:], IGNORED]


@pytest.mark.parametrize(
    ("ids", "labels"),
    [([], []), ([[1]], [[1, 2]]), ([[1]], []), ([[1], []], [[1], []]), ([[2**31]], [[0]]),
     ([[1.0]], [[1]])],
)  # fmt: skip
def test_rows_that_are_none(ids, labels):
    with pytest.raises(ValueError):
        Rows([np.array(row) for row in ids], [np.array(row) for row in labels])


def test_rows_of_a_file(tmp_path):
    path = lines(
        tmp_path / "rows.jsonl",
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "len": 3, "num_loss_counted_tokens": 2},
        "",
        {"input_ids": [4, 5], "labels": [-100, -100]},
        {"input_ids": [6], "labels": [6]},
    )
    rows = read_rows(path, max_tokens=3)
    assert_counts(rows)
    assert (rows.lengths.tolist(), rows.loss_tokens.tolist()) == ([3, 2, 1], [2, 0, 0])
    assert (rows.truncated, rows.largest_id) == (0, 6)
    assert [as_lists(r) for r in read_rows(path, limit=2)] == [as_lists(r) for r in rows][:2]


def test_long_rows_are_refused_or_cut(tmp_path):
    row = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, 3, 4, 5]}
    longer = {"input_ids": [1] * 9, "labels": [1] * 9}
    path = lines(tmp_path / "rows.jsonl", {"input_ids": [1, 2], "labels": [1, 2]}, row, longer)
    message = (
        r"rows.jsonl:2 has 5 tokens and --max_tokens_per_gpu is 4; raise --max_tokens_per_gpu .* "
        r"9\), or cut the 2 rows .* --on_long truncate$"
    )
    with pytest.raises(UserError, match=message):
        read_rows(path, max_tokens=4)
    rows = read_rows(path, max_tokens=4, on_long="truncate")
    assert rows.truncated == 2
    assert rows.lengths.tolist() == [2, 4, 4]
    assert as_lists(rows[1]) == ([1, 2, 3, 4], [IGNORED, 3, 4, IGNORED], [4])
    assert read_rows(path, max_tokens=4, limit=1).lengths.tolist() == [2]


GOOD = {"input_ids": [1, 2], "labels": [1, 2]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "is not valid JSON"),
        ("9" * 5000, "is not valid JSON: a number is too long"),
        ("[1]", r"is \[1\], not a JSON object"),
        ({"labels": [1]}, "lacks input_ids; it has labels"),
        ({"input_ids": [1]}, "lacks labels; it has input_ids"),
        ({"input_ids": [1, 2], "labels": [1]}, "has 2 input_ids and 1 labels"),
        (GOOD | {"len": 3}, "has 2 input_ids and says len 3"),
        ({"input_ids": [], "labels": []}, r"input_ids is \[\]"),
        ({"input_ids": "1 2", "labels": [1]}, 'input_ids is "1 2"; it must be a list'),
        (GOOD | {"input_ids": [1, 2.0]}, r"input_ids\[1\] is 2.0; a token id is an integer"),
        (GOOD | {"input_ids": [True, 1]}, r"input_ids\[0\] is true"),
        (GOOD | {"input_ids": [1, -1]}, r"input_ids\[1\] is -1"),
        (GOOD | {"input_ids": [1, -100]}, r"input_ids\[1\] is -100"),
        (GOOD | {"input_ids": [1, 2**31]}, r"input_ids\[1\] is 2147483648"),
        (GOOD | {"input_ids": [1, 2**80]}, r"input_ids\[1\] is 1208925819614629174706176"),
        (GOOD | {"labels": [1, -1]}, r"labels\[1\] is -1; .* or -100 for no loss"),
        (GOOD | {"labels": [1, "a" * 99]}, r'labels\[1\] is "a{36}\.\.\.; '),
        (GOOD | {"labels": [None, 1]}, r"labels\[0\] is null"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, row, message):
    path = lines(tmp_path / "rows.jsonl", GOOD, "", row)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:3")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_read(tmp_path):
    empty = lines(tmp_path / "empty.jsonl", "", "  ")
    binary = tmp_path / "rows.parquet"
    binary.write_bytes(b"PAR1\x15\xff\xfe")
    readers = (read_rows, read_token_documents, kind_of, lambda path: list(read_texts(path)))
    for read in readers:
        with pytest.raises(UserError, match=r"none.jsonl' cannot be read \(No such file"):
            read(tmp_path / "none.jsonl")
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path)
        with pytest.raises(UserError, match=r"rows.parquet:1 is not UTF-8 text"):
            read(binary)
    for read, what in zip(readers, ("no rows", "no documents", "is empty"), strict=False):
        with pytest.raises(UserError, match=rf"empty.jsonl' .*{what}"):
            read(empty)


def test_the_kind_of_a_file(tmp_path):
    assert kind_of(lines(tmp_path / "a.jsonl", "", GOOD, "{")) == "rows"
    assert kind_of(lines(tmp_path / "b.jsonl", {"input_ids": [1]})) == "documents"
    assert kind_of(lines(tmp_path / "c.jsonl", "\ufeff" + json.dumps({"text": "a"}))) == "text"
    assert kind_of(lines(tmp_path / "d.jsonl", {"body": "a"}), field="body") == "text"
    assert kind_of(lines(tmp_path / "e.txt", "", "{}")) == "text"
    with pytest.raises(UserError, match=r"f.jsonl:1 has the keys prompt, labels; give rows \("):
        kind_of(lines(tmp_path / "f.jsonl", {"prompt": "a", "labels": [1]}))
    with pytest.raises(UserError, match=r"g.txt' is empty"):
        kind_of(lines(tmp_path / "g.txt", "", " "))


def test_texts_of_a_file(tmp_path):
    text = tmp_path / "a.txt"
    text.write_bytes("\ufeff\n\nÄ one\r\n  two\n \n\n\nthree\n\n".encode())
    assert list(read_texts(text)) == ["Ä one\n  two", "three"]
    text.write_text("no end")
    assert list(read_texts(text)) == ["no end"]
    rows = lines(tmp_path / "a.jsonl", {"text": "x\n\ny"}, {"text": ""}, {"text": "z"})
    assert list(read_texts(rows)) == ["x\n\ny", "z"]
    bad = lines(tmp_path / "b.jsonl", {"text": "x"}, {"text": 5})
    with pytest.raises(UserError, match=r"b.jsonl:2: text is 5; it must be text"):
        list(read_texts(bad))
    with pytest.raises(UserError, match=r"b.jsonl:1 lacks body; it has text"):
        list(read_texts(bad, field="body"))


def test_token_documents_of_a_file(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"input_ids": [1, 2, 3], "id": "x"}, {"input_ids": [4, 5]})
    tokens, starts = read_token_documents(path)
    assert (tokens.dtype, tokens.tolist()) == (np.int32, [1, 2, 3, 4, 5])
    assert (starts.dtype, starts.tolist()) == (np.int64, [0, 3])
    block = Blocks(tokens, starts, 4)[0]
    assert as_lists(block) == ([1, 2, 3, 4], [2, 3, IGNORED, 5], [3, 1])
    with pytest.raises(UserError, match=r"b.jsonl:1: input_ids is \[\]"):
        read_token_documents(lines(tmp_path / "b.jsonl", {"input_ids": []}))


@pytest.fixture(scope="module")
def texts():
    return list(islice(arith.pretraining_documents(0), 1100))


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts[:200], 300, "")


def test_every_document_ends_with_eos(texts, tokenizer):
    tokens, starts = tokenize_documents(texts, tokenizer)
    assert (tokens.dtype, starts.dtype, len(starts)) == (np.int32, np.int64, len(texts))
    documents = np.split(tokens, starts[1:])
    assert {int(document[-1]) for document in documents} == {tokenizer.eos_token_id}
    assert [tokenizer.decode(document[:-1]) for document in documents[-3:]] == texts[-3:]
    none, nowhere = tokenize_documents([], tokenizer)
    assert (none.tolist(), nowhere.tolist()) == ([], [])


def test_reading_stops_when_there_is_enough(texts, tokenizer):
    tokens, starts = tokenize_documents(texts, tokenizer)
    source = iter(texts)
    few, places = tokenize_documents(source, tokenizer, needed=100)
    assert len(list(source)) == 100
    assert few.tolist() == tokens[:100].tolist()
    assert places.tolist() == [place for place in starts if place < 100]
    assert len(tokenize_documents(texts, tokenizer, needed=10**9)[0]) == len(tokens)


def test_a_tokenizer_without_an_end(tokenizer, texts):
    end, tokenizer.eos_token = tokenizer.eos_token, None
    try:
        with pytest.raises(UserError, match="has no eos token"):
            tokenize_documents(texts, tokenizer)
    finally:
        tokenizer.eos_token = end


def test_ids_beyond_the_vocabulary():
    rows = Rows([np.array([1, 2])], [np.array([1, 7])])
    blocks = Blocks(np.arange(8), np.array([0]), 4)
    for data in (rows, blocks, split(blocks, 0, 0)[0], np.arange(8), 7):
        check_vocabulary(data, 8, "a.jsonl")
        with pytest.raises(UserError, match=r"'a.jsonl' has the token id 7 .* the ids 0 to 6; "):
            check_vocabulary(data, 7, "a.jsonl")


def test_a_share_is_held_out():
    samples = Blocks(*stream(random_documents(np.random.default_rng(5))), 3)
    train, held = split(samples, 0.2, seed=1)
    assert len(held) == round(len(samples) * 0.2)
    for part in (train, held):
        assert_counts(part)
    both = sorted(as_lists(sample) for part in (train, held) for sample in part)
    assert both == sorted(as_lists(sample) for sample in samples)
    again, other = split(samples, 0.2, seed=1)[1], split(samples, 0.2, seed=2)[1]
    assert [as_lists(s) for s in again] == [as_lists(s) for s in held]
    assert [as_lists(s) for s in other] != [as_lists(s) for s in held]


def test_what_cannot_be_shared_out():
    samples = MockSamples(3, 4, 9, seed=0)
    sizes = [tuple(map(len, split(samples, share, 0))) for share in (0, 0.01, 0.5, 0.99)]
    assert sizes == [(3, 0), (2, 1), (1, 2), (1, 2)]
    assert_counts(split(samples, 0, 0)[1])
    with pytest.raises(UserError, match=r"--validation_split 0.1 needs at least 2 samples"):
        split(MockSamples(1, 4, 9, seed=0), 0.1, 0)
    with pytest.raises(ValueError, match=r"the share is 1.0"):
        split(samples, 1.0, 0)


def test_no_torch():
    code = "import sys, tuning.engine.sources as s; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
