"""Prompts that would fill the memory or never end are refused, and the limit is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.errors import InputError
from moetool.tracing.prompts import files as prompt_files
from moetool.tracing.prompts import parquet as prompt_parquet
from moetool.tracing.prompts import prompts
from moetool.tracing.prompts.prompts import read_prompts


def refusal(source: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read_prompts(str(source))
    return caught.value


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [make_pipe, make_device])
def test_only_regular_files_are_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    make(path)
    for source in (path, tmp_path):
        assert refusal(source).message == f"'{path}' is not a regular file."


def test_a_folder_named_like_a_file_of_prompts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.mkdir()
    assert refusal(tmp_path).message == f"'{path}' is not a regular file."


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    os.mkfifo(path)
    with pytest.raises(InputError, match="not a regular file"):
        prompts._open_file(path)


def test_files_that_are_too_large_are_refused_unread(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.txt"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40 if name == "a.jsonl" else 1)
    assert "take 1,099,512 MB; at most 200 MB are read" in refusal(tmp_path / "a.jsonl").message
    assert "take 1,099,512 MB; at most 200 MB are read" in refusal(tmp_path).message


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.jsonl", b'{"text": "' + b"a" * 1000, ":1: more than"),
        ("a.txt", b"fine\n" + b"a" * 1000, ":2: more than"),
        ("a.csv", b"text\nfine\n" + b"a," * 500, ":2: broken CSV: a row of more than 500 char"),
        ("a.csv", b"a," * 500, ":1: broken CSV: a row of more than 500 characters"),
        ("a.csv", b'text\n"' + b"a\n" * 500, "broken CSV: a row of more than 500 characters"),
    ],
)
def test_one_row_that_is_too_long_is_not_read_to_its_end(
    name: str, content: bytes, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_files, "LONGEST_ROW", 500)
    (tmp_path / name).write_bytes(content)
    assert complaint in refusal(tmp_path / name).message


def test_a_row_of_many_lines_may_be_followed_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_files, "LONGEST_ROW", 500)
    text = "a\n" * 200
    (tmp_path / "a.csv").write_text("text\n" + f'"{text}"\n' * 9, encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(str(tmp_path / "a.csv"))] == [text] * 9


def test_a_stream_that_is_too_long_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_files, "MOST_BYTES", 500)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' * 100)
    assert f"{path}:30: more than" in refusal(path).message


def test_more_prompts_than_can_be_held_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "_MOST_PROMPTS", 10)
    path = tmp_path / "a.txt"
    path.write_text("a\n" * 10, encoding="utf-8")
    assert len(read_prompts(str(path))) == 10
    path.write_text("a\n" * 11, encoding="utf-8")
    assert "more than 10 prompts" in refusal(path).message


@pytest.mark.parametrize("field", ["id", "domain"])
def test_an_id_or_a_domain_is_a_name_and_not_a_text(field: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a", "{field}": "{"x" * 1_001}"}}', encoding="utf-8")
    assert "more than 1,000 characters" in refusal(path).message


def test_a_header_of_a_million_columns_is_said_in_a_few_words(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",".join(f"column {number}" for number in range(100_000)), encoding="utf-8")
    error = refusal(path)
    assert error.message.endswith("column 9 and 99,990 more.")
    path.write_text("x" * 500_000, encoding="utf-8")
    error = refusal(path)
    assert len(error.message) < 300 + len(str(path))
    assert len(error.hint) < 200


def test_a_text_that_is_stored_once_and_repeated_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_parquet, "MOST_BYTES", 100_000)
    path = tmp_path / "a.parquet"
    column = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(1_000, dtype=np.int32)), pa.array(["x" * 10_000])
    )
    pq.write_table(pa.table({"text": column}), path)
    assert path.stat().st_size < 100_000
    assert ":1: more than" in refusal(path).message


def test_texts_that_are_much_larger_than_their_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_parquet, "MOST_BYTES", 100_000)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 200_000]}), path, use_dictionary=False)
    assert path.stat().st_size < 100_000
    assert ":1: more than" in refusal(path).message


def test_conversations_that_are_much_larger_than_their_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_parquet, "MOST_BYTES", 100_000)
    path = tmp_path / "a.parquet"
    message = {"role": "user", "content": "x" * 10_000}
    pq.write_table(pa.table({"messages": [[message]] * 11}), path)
    assert path.stat().st_size < 100_000
    assert ":1: more than" in refusal(path).message


def test_a_conversation_of_nulls_is_refused_by_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_parquet, "MOST_BYTES", 100_000)
    path = tmp_path / "a.parquet"
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    nothing = pa.nulls(30_000, kind.value_type)
    column = pa.ListArray.from_arrays([0, len(nothing)], nothing)
    pq.write_table(pa.table({"messages": column}), path)
    assert path.stat().st_size < 100_000
    assert ":1: more than" in refusal(path).message


@pytest.mark.parametrize("form", [pa.string(), pa.large_string(), pa.dictionary("int8", "string")])
def test_every_kind_of_text_is_read(form: pa.DataType, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = ["größer", "größer", "b"]
    table = pa.table(
        {
            "text": pa.array(texts).cast(form),
            "id": pa.array([7, 8, None], pa.int64()),
            "domain": pa.array(["x", None, "x"]).cast(form),
        }
    )
    pq.write_table(table, path, row_group_size=2)
    read = read_prompts(str(path))
    assert [prompt.text for prompt in read] == texts
    assert [prompt.prompt_id for prompt in read] == ["7", "8", "3"]
    assert [prompt.domain for prompt in read] == ["x", "(none)", "x"]


@pytest.mark.parametrize(
    ("column", "values", "complaint"),
    [
        ("text", pa.array([[1]]), "'text' is not a string but list"),
        ("text", pa.array([{"a": 1}]), "'text' is not a string but dict"),
        ("text", pa.array([b"a"], pa.binary(1)), "'text' is not a string but fixed_size_binary[1]"),
        ("text", pa.array([2**62], pa.timestamp("us")), "'text' is not a string but timestamp[us]"),
        ("text", pa.nulls(1), "'text' is null"),
        (
            "id",
            pa.array([2**62], pa.timestamp("us")),
            "'id' is not a string or number but timestamp[us]",
        ),
        ("domain", pa.array([True]), "'domain' is not a string or number but bool"),
    ],
)
def test_a_column_of_another_type_is_refused_before_its_values_are_read(
    column: str, values: pa.Array, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "id": ["b"]} | {column: values}), path)
    assert f"{path}:1: {complaint}" in refusal(path).message


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, path)
    assert refusal(path).message == f"{path}:1: the column 'text' is there twice."
    path = tmp_path / "a.csv"
    path.write_text("text,id,text\na,b,c\n", encoding="utf-8")
    assert refusal(path).message == f"{path}:1: the column 'text' is there twice."
