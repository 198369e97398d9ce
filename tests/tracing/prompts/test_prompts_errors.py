"""Unusable prompts: all are found, and the first is explained."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.errors import InputError
from moetool.tracing.prompts.files import PromptFields
from moetool.tracing.prompts.prompts import read_prompts


def refusal(source: Path | str, *, fields: PromptFields | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        read_prompts(str(source), fields=fields)
    return caught.value


def refusal_of(path: Path, content: str | bytes) -> InputError:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return refusal(path)


def test_the_first_bad_line_is_explained_and_the_next_are_placed_and_counted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "prompts.jsonl"
    lines = ['{"text": "good"}', '{"text": ""}', "{", *["[]"] * 6, '{"text": "good too"}']
    error = refusal_of(path, "\n".join(lines))
    assert error.message == f"{path}:2: empty prompt."
    assert error.facts == (f"also: {path}:3, {path}:4, {path}:5 and 4 more",)


@pytest.mark.parametrize(
    ("num_bad", "facts"),
    [(1, ()), (2, ("also: {0}:2",)), (4, ("also: {0}:2, {0}:3, {0}:4",))],
)
def test_no_more_lines_are_named_than_there_are(
    num_bad: int, facts: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    error = refusal_of(path, "{\n" * num_bad)
    assert error.facts == tuple(fact.format(path) for fact in facts)


def test_bad_lines_are_collected_over_all_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 3}\n', encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"good\n\xff\n")
    error = refusal(tmp_path)
    assert error.message == f"{tmp_path / 'a.jsonl'}:1: 'text' is not a string but int."
    assert error.facts == (f"also: {tmp_path / 'b.txt'}:2",)


def test_bad_lines_on_stdin_are_placed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "a"}\nb\n')))
    assert refusal("-").message.startswith("stdin:2: not JSON")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "a"', "not JSON"),
        (b"3", "expected an object, found int"),
        (b'"a text"', "expected an object, found str"),
        (b'{"prompt": "a", "id": 1}', "expected a 'text', found prompt, id"),
        (b"{}", "expected a 'text', found nothing"),
        (b'{"text": null}', "'text' is null"),
        (b'{"text": ["a"]}', "'text' is not a string but list"),
        (b'{"text": "a", "id": {}}', "'id' is not a string or number but dict"),
        (b'{"text": "a", "domain": []}', "'domain' is not a string or number but list"),
        (b'{"text": " \\n\\t"}', "empty prompt"),
        (b'{"text": "\\ud83d"}', "half a surrogate pair"),
        (b'{"text": "a", "domain": "\\udc00"}', "half a surrogate pair"),
        (b'{"text": "\xe9"}', "not UTF-8"),
        (b'{"text": ' + b"[" * 100_000, "not JSON"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_bad_json_line_is_named_with_what_is_wrong(
    line: bytes, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    error = refusal_of(path, b'{"text": "good"}\n' + line + b"\n")
    assert error.message.startswith(f"{path}:2: {complaint}")
    assert error.hint
    assert error.facts == ()


def test_a_pair_of_surrogates_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "\\ud83d\\ude42"}', encoding="utf-8")
    assert [prompt.text for prompt in read_prompts(str(path))] == ["🙂"]


@pytest.mark.parametrize(
    ("content", "line", "complaint"),
    [
        (b"", 1, "expected a 'text', found nothing"),
        (b"id,prompt\n1,a\n", 1, "expected a 'text', found id, prompt"),
        (b"id,text\n1,good\n2,\n", 3, "empty prompt"),
        (b"id,text\n1,good\n2\n", 3, "'text' is null"),
        (b"text\ngood\n\xe9\n", 3, "not UTF-8"),
    ],
)
def test_a_bad_csv_line_is_named_with_what_is_wrong(
    content: bytes, line: int, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.csv"
    assert refusal_of(path, content).message.startswith(f"{path}:{line}: {complaint}")


def test_a_quote_that_is_never_closed_does_not_swallow_the_rows_after_it(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    error = refusal_of(path, 'id,text\n1,good\n2,"never closed\n3,another\n')
    # The row begins on line 3 and ends with the file.
    assert error.message.startswith((f"{path}:3: broken CSV", f"{path}:4: broken CSV"))


@pytest.mark.parametrize(
    ("frame", "line", "complaint"),
    [
        (pd.DataFrame({"prompt": ["a"]}), 1, "expected a 'text', found prompt"),
        (pd.DataFrame({"text": ["good", None]}), 2, "'text' is null"),
        (pd.DataFrame({"text": ["good", ""]}), 2, "empty prompt"),
        (pd.DataFrame({"text": [b"bytes"]}), 1, "'text' is not a string but bytes"),
        (pd.DataFrame({"text": ["a"], "id": [[1]]}), 1, "'id' is not a string or number but list"),
    ],
    ids=["no text", "null", "empty", "bytes", "list"],
)
def test_a_bad_parquet_row_is_named_with_what_is_wrong(
    frame: pd.DataFrame, line: int, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.parquet"
    frame.to_parquet(path)
    assert refusal(path).message.startswith(f"{path}:{line}: {complaint}")


def test_what_is_no_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    assert refusal_of(path, b"text\na\n").message.startswith(f"{path}:1: not a Parquet file")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_field_of_a_long_name_is_named_by_its_ends(name: str, tmp_path: Path) -> None:
    field = "start" + "x" * 5_000 + "end"
    path = tmp_path / name
    match path.suffix:
        case ".jsonl":
            path.write_text(json.dumps({"text": 1, field: 1}), "utf-8")
        case ".csv":
            path.write_text("text\na\n", "utf-8")
        case _:
            pq.write_table(pa.table({"text": [1], field: [1]}), path)
    error = refusal(path, fields=PromptFields(text=field))
    assert re.search("'startx*…x*end'", error.message)
    assert len(error.message) < len(str(path)) + 200


def test_a_missing_text_field_hints_at_the_option_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    assert "--text-field prompt" in refusal_of(path, "prompt\na\n").hint
    fields = PromptFields(text="prompt")
    assert [prompt.text for prompt in read_prompts(str(path), fields=fields)] == ["a"]


def test_a_renamed_field_is_named_as_renamed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "a"}', encoding="utf-8")
    error = refusal(path, fields=PromptFields(text="question"))
    assert error.message == f"{path}:1: expected a 'question', found text."


def test_a_second_prompt_with_an_id_is_refused_and_the_first_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": "a"}\n', encoding="utf-8")
    (tmp_path / "b.csv").write_text("id,text\nx,b\n", encoding="utf-8")
    message = refusal(tmp_path).message
    assert message == (
        f"{tmp_path / 'b.csv'}:2: duplicate id 'x', first seen at {tmp_path / 'a.jsonl'}:1."
    )


def test_a_running_number_that_is_someones_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    error = refusal_of(path, '{"id": 2, "text": "a"}\n{"text": "b"}\n')
    assert error.message.startswith(f"{path}:2: duplicate id '2'")


@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_an_empty_file_holds_no_prompts(suffix: str, tmp_path: Path) -> None:
    assert "at least one prompt" in refusal_of(tmp_path / f"prompts{suffix}", "").hint


def test_a_missing_path_is_said_to_be_missing(tmp_path: Path) -> None:
    message = refusal(tmp_path / "missing.jsonl").message
    assert message == f"No prompts at '{tmp_path / 'missing.jsonl'}': no such file or folder."


def test_a_file_of_another_kind_is_refused_with_the_kinds_there_are(tmp_path: Path) -> None:
    error = refusal_of(tmp_path / "prompts.json", "[]")
    assert "not a known kind" in error.message
    assert ".jsonl, .csv, .parquet, .txt" in error.hint


def test_a_folder_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no prompts", encoding="utf-8")
    assert refusal(tmp_path).message == f"'{tmp_path}' holds no prompts."
