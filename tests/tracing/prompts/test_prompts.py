"""Prompts from every kind of file, with their ids and domains."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.errors import InputError
from moetool.tracing.prompts.files import PromptFields
from moetool.tracing.prompts.prompts import Prompt, hash_prompts, make_prompt, read_prompts

ROWS = [
    {"id": "one", "domain": "prose", "text": "Once upon a time"},
    {"id": "two", "domain": "code", "text": 'print("hello, world")\n\treturn'},
    {"id": "drei", "domain": "prose", "text": "  Übergrößenträger 🙂  "},
]
SUFFIXES = (".jsonl", ".csv", ".parquet")

Row = dict[str, str]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows in the format of a path's suffix."""
    match path.suffix:
        case ".jsonl":
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            path.write_text("".join(lines), encoding="utf-8")
        case ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case ".parquet":
            pd.DataFrame(list(rows)).to_parquet(path)
        case ".txt":
            path.write_text("".join(f"{row['text']}\n" for row in rows), encoding="utf-8")
    return path


def values_of(prompts: Sequence[Prompt]) -> list[tuple[str, str, str]]:
    return [(prompt.prompt_id, prompt.domain, prompt.text) for prompt in prompts]


def say_on_stdin(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_read_row_by_row(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / f"prompts{suffix}", ROWS)
    assert values_of(read_prompts(str(path))) == [
        (row["id"], row["domain"], row["text"]) for row in ROWS
    ]


def test_a_text_file_has_a_prompt_on_every_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("First, a line\n  {'id': 3}  \nno end of line", encoding="utf-8")
    assert values_of(read_prompts(str(path))) == [
        ("1", "(none)", "First, a line"),
        ("2", "(none)", "  {'id': 3}  "),
        ("3", "(none)", "no end of line"),
    ]


def test_stdin_is_read_as_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    say_on_stdin('{"text": "größer"}\n{"id": "b", "text": "x"}\n'.encode(), monkeypatch)
    prompts = read_prompts("-")
    assert values_of(prompts) == [("1", "(none)", "größer"), ("b", "(none)", "x")]
    assert [prompt.origin for prompt in prompts] == ["stdin:1", "stdin:2"]


def test_one_prompt_can_be_made_of_a_text() -> None:
    assert values_of(make_prompt("a text")) == [("1", "(none)", "a text")]


def test_an_empty_text_is_no_prompt() -> None:
    with pytest.raises(InputError, match="empty prompt"):
        make_prompt(" \n")


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_texts_are_read_as_they_were_written(
    suffix: str, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("prompts") / f"prompts{suffix}"
    write_rows(path, [{"text": text} for text in texts])
    assert [prompt.text for prompt in read_prompts(str(path))] == texts


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_text_may_be_as_long_as_a_book(suffix: str, tmp_path: Path) -> None:
    text = "all work and no play " * 20_000
    path = write_rows(tmp_path / f"prompts{suffix}", [{"text": text}])
    (prompt,) = read_prompts(str(path))
    assert prompt.text == text


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_a_byte_order_mark_is_no_part_of_a_prompt(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / f"prompts{suffix}", [{"text": "first"}, {"text": "second"}])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [prompt.text for prompt in read_prompts(str(path))] == ["first", "second"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_windows_line_ends_are_no_part_of_a_prompt(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / f"prompts{suffix}", [{"text": "first"}, {"text": "second"}])
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert [prompt.text for prompt in read_prompts(str(path))] == ["first", "second"]


def test_blank_lines_between_json_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('\n{"text": "first"}\n \n\n{"text": "second"}\n\n', encoding="utf-8")
    prompts = read_prompts(str(path))
    assert [prompt.prompt_id for prompt in prompts] == ["1", "2"]
    assert [prompt.origin for prompt in prompts] == [f"{path}:2", f"{path}:5"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fields_can_be_renamed(suffix: str, tmp_path: Path) -> None:
    fields = PromptFields(prompt_id="key", text="question", domain="topic")
    rows = [
        {"key": row["id"], "topic": row["domain"], "question": row["text"], "text": "another"}
        for row in ROWS
    ]
    path = write_rows(tmp_path / f"prompts{suffix}", rows)
    assert values_of(read_prompts(str(path), fields=fields)) == [
        (row["id"], row["domain"], row["text"]) for row in ROWS
    ]


def test_a_folder_is_read_in_the_order_of_its_names_and_other_files_are_ignored(
    tmp_path: Path,
) -> None:
    write_rows(tmp_path / "c.txt", [{"text": "third"}])
    write_rows(tmp_path / "a.parquet", [{"text": "first"}])
    write_rows(tmp_path / "b.csv", [{"text": "second"}])
    write_rows(tmp_path / "d.jsonl", [{"text": "fourth"}])
    (tmp_path / "README.md").write_text("not a prompt", encoding="utf-8")
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    prompts = read_prompts(str(tmp_path))
    assert [prompt.text for prompt in prompts] == ["first", "second", "third", "fourth"]
    assert [prompt.origin for prompt in prompts] == [
        f"{tmp_path / name}:{line}"
        for name, line in [("a.parquet", 1), ("b.csv", 2), ("c.txt", 1), ("d.jsonl", 1)]
    ]


def test_in_a_folder_a_prompt_without_a_domain_has_its_files_name(tmp_path: Path) -> None:
    (tmp_path / "prose.jsonl").write_text(
        '{"text": "a"}\n{"text": "b", "domain": "verse"}\n{"text": "c", "domain": null}\n',
        encoding="utf-8",
    )
    (tmp_path / "tables.csv").write_text("text,domain\nd,\ne,sums\n", encoding="utf-8")
    write_rows(tmp_path / "talk.txt", [{"text": "f"}])
    assert [prompt.domain for prompt in read_prompts(str(tmp_path))] == [
        *("prose", "verse", "prose"),
        *("tables", "sums"),
        "talk",
    ]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".txt"])
def test_outside_a_folder_a_prompt_without_a_domain_has_none(suffix: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / f"prose{suffix}", [{"text": "a"}])
    assert [prompt.domain for prompt in read_prompts(str(path))] == ["(none)"]


def test_prompts_without_ids_are_numbered_through_all_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"text": "first"}, {"text": "second"}])
    write_rows(tmp_path / "b.csv", [{"text": "third", "id": "named"}, {"text": "4th", "id": ""}])
    write_rows(tmp_path / "c.txt", [{"text": "fifth"}])
    ids = [prompt.prompt_id for prompt in read_prompts(str(tmp_path))]
    assert ids == ["1", "2", "named", "4", "5"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_numbers_can_be_ids_and_domains(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts{suffix}"
    frame = pd.DataFrame({"id": [70, 80], "domain": [1, 2], "text": ["a", "b"]})
    if suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    assert values_of(read_prompts(str(path))) == [("70", "1", "a"), ("80", "2", "b")]


def test_a_limit_keeps_the_first_prompts(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "prompts.jsonl", ROWS)
    prompts = read_prompts(str(path))
    assert read_prompts(str(path), limit=2) == prompts[:2]
    assert read_prompts(str(path), limit=99) == prompts


DOMAINS = ("a", "b", "a", "a", "c", "b", "b", "a")


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"limit_per_domain": 1}, [1, 2, 5]),
        ({"limit_per_domain": 2}, [1, 2, 3, 5, 6]),
        ({"limit_per_domain": 2, "limit": 4}, [1, 2, 3, 5]),
        ({"limit_per_domain": 9}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"limit_per_domain": 9, "limit": 2}, [1, 2]),
    ],
)
def test_a_limit_per_domain_keeps_the_first_prompts_of_each(
    limits: dict[str, Any], kept: list[int], tmp_path: Path
) -> None:
    rows = [{"text": f"{domain}{number}"} for number, domain in enumerate(DOMAINS, start=1)]
    labelled = [{**row, "domain": domain} for row, domain in zip(rows, DOMAINS, strict=True)]
    path = write_rows(tmp_path / "prompts.jsonl", labelled)
    prompts = read_prompts(str(path))
    # The prompts keep their running numbers, so that a limit changes no id.
    assert read_prompts(str(path), **limits) == [prompts[number - 1] for number in kept]
    unlabelled = write_rows(tmp_path / "plain.jsonl", rows)
    most = min(limits.values())
    assert len(read_prompts(str(unlabelled), **limits)) == min(most, len(rows))


def test_a_folders_files_are_domains_to_a_limit(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": f"{name} {n}"} for n in range(4)])
    prompts = read_prompts(str(tmp_path), limit_per_domain=2)
    assert [prompt.text for prompt in prompts] == ["one 0", "one 1", "two 0", "two 1"]


@pytest.mark.parametrize("limit", ["limit", "limit_per_domain"])
def test_prompts_beyond_a_limit_are_checked_all_the_same(limit: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"text": "good"}\n{"text": ""}\n', encoding="utf-8")
    limits: dict[str, Any] = {limit: 1}
    with pytest.raises(InputError, match="empty prompt"):
        read_prompts(str(path), **limits)


PROMPT = Prompt(prompt_id="1", domain="prose", text="Once", origin="a.jsonl:1")


def test_the_hash_does_not_depend_on_the_files_that_prompts_lie_in(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_rows(folder / "a.jsonl", ROWS[:1])
    write_rows(folder / "b.csv", ROWS[1:2])
    write_rows(folder / "c.parquet", ROWS[2:])
    paths = [folder, *(write_rows(tmp_path / f"prompts{suffix}", ROWS) for suffix in SUFFIXES)]
    assert len({hash_prompts(read_prompts(str(path))) for path in paths}) == 1


def test_the_hash_changes_with_every_part_of_a_prompt() -> None:
    versions = [
        [],
        [PROMPT],
        [PROMPT, PROMPT],
        [Prompt("2", PROMPT.domain, PROMPT.text, PROMPT.origin)],
        [Prompt(PROMPT.prompt_id, "verse", PROMPT.text, PROMPT.origin)],
        [Prompt(PROMPT.prompt_id, PROMPT.domain, "Once ", PROMPT.origin)],
    ]
    assert len({hash_prompts(prompts) for prompts in versions}) == len(versions)


def test_the_hash_changes_with_the_order_of_prompts() -> None:
    other = Prompt("2", "prose", "upon", "a.jsonl:2")
    assert hash_prompts([PROMPT, other]) != hash_prompts([other, PROMPT])


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_neighbouring_parts_do_not_run_into_one_another(
    left: tuple[str, str, str], right: tuple[str, str, str]
) -> None:
    one, other = (hash_prompts([Prompt(*parts, "a:1")]) for parts in (left, right))
    assert (one == other) == (left == right)


def test_a_letter_that_moves_to_the_next_part_changes_the_hash() -> None:
    one, other = Prompt("ab", "c", "d", "a:1"), Prompt("a", "bc", "d", "a:1")
    assert hash_prompts([one]) != hash_prompts([other])
