"""Prompts that can't be used are refused by file and line, before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.bad_input.refusals import Attempt, Refusal, assert_refused
from tests.cli.conftest import Refuse, TryAll

THREE_BAD_LINES = b'{"text": "fine"}\n{oops\n[1]\n{"text": 7}\n\n{"text": "fine"}\n'

# By what is wrong with it: a file's name and bytes, and what is said of it; {} is its path.
BAD_FILES: dict[str, tuple[str, bytes, Refusal]] = {
    "three bad lines": (
        "prompts.jsonl",
        THREE_BAD_LINES,
        Refusal(
            3, error="{}:2: not JSON", hint="sample_prompts/README.md", fact="also: {}:3, {}:4"
        ),
    ),
    "more bad lines than can be shown": (
        "prompts.jsonl",
        THREE_BAD_LINES + b"{oops\n" * 1001,
        Refusal(3, error="{}:2: not JSON", fact="also: {}:3, {}:4, {}:7 and 1,000 more"),
    ),
    "JSON lines without a text": (
        "prompts.jsonl",
        b'{"id": "a", "question": "fine"}\n',
        Refusal(
            3, error="{}:1: expected a 'text', found id, question", hint="--text-field question"
        ),
    ),
    "CSV without a column of texts": (
        "prompts.csv",
        b"id,question\na,fine\n",
        Refusal(
            3, error="{}:1: expected a 'text', found id, question", hint="--text-field question"
        ),
    ),
    "JSON lines in another encoding": (
        "prompts.jsonl",
        '{"text": "fine"}\n{"text": "café"}\n'.encode("latin-1"),
        Refusal(3, error="{}:2: not UTF-8", hint="UTF-8"),
    ),
    "text in another encoding": (
        "prompts.txt",
        "fine\nfine\ncafé\n".encode("latin-1"),
        Refusal(3, error="{}:3: not UTF-8", hint="UTF-8"),
    ),
    "CSV in another encoding": (
        "prompts.csv",
        "text\nfine\ncafé\n".encode("latin-1"),
        Refusal(3, error="{}:3: not UTF-8", hint="UTF-8"),
    ),
    "Parquet that is none": (
        "prompts.parquet",
        b"PAR1 and then something else",
        Refusal(3, error="{}:1: not a Parquet file", hint="Write the file again"),
    ),
    "JSON lines with an empty prompt": (
        "prompts.jsonl",
        b'{"text": "fine"}\n{"text": "  "}\n',
        Refusal(3, error="{}:2: empty prompt", hint="give it a text"),
    ),
    "text of blank lines alone": (
        "prompts.txt",
        b"\n  \n\n",
        Refusal(3, error="There are no prompts in '{}'", hint="at least one prompt"),
    ),
    "a conversation without a chat template": (
        "prompts.jsonl",
        b'{"messages": [{"role": "user", "content": "Hello"}]}\n',
        Refusal(3, error="{}:1: a conversation", hint="Add --chat"),
    ),
    "a message without its content": (
        "prompts.jsonl",
        b'{"messages": [{"role": "user"}]}\n',
        Refusal(3, error="{}:1: 'messages' has no 'content' in message 1"),
    ),
    "texts under another name": (
        "prompts.jsonl",
        b'{"label": 1, "answer": "4", "question": "What is 2 + 2?"}\n',
        Refusal(3, error="{}:1: expected a 'text'", hint="--text-field question"),
    ),
    "a pointer of Git LFS": (
        "prompts.parquet",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        Refusal(3, error="'{}' is a Git LFS pointer", hint="`git lfs pull`"),
    ),
    "an empty file": (
        "prompts.jsonl",
        b"",
        Refusal(3, error="{}", hint="at least one prompt"),
    ),
    "another kind of file": (
        "prompts.json",
        b"[]",
        Refusal(3, error="'{}' is not a known kind", hint=".jsonl, .csv, .parquet, .txt"),
    ),
}


@dataclass(frozen=True)
class Attempts:
    """Files of prompts by what is wrong with them, and what became of tracing each."""

    files: Mapping[str, Path]
    results: Mapping[str, Attempt]


@pytest.fixture(scope="module")
def attempts(try_all: TryAll, tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    """A try at tracing every bad file of prompts."""
    files = {}
    for what, (name, content, _) in BAD_FILES.items():
        files[what] = tmp_path_factory.mktemp("prompts") / name
        files[what].write_bytes(content)
    commands = {what: ("route-trace", "demo", "--prompts", files[what]) for what in files}
    return Attempts(files, try_all(commands))


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_of_prompts_is_refused_by_its_first_bad_line(
    what: str, attempts: Attempts
) -> None:
    attempt, expected = attempts.results[what], BAD_FILES[what][2]

    assert_refused(attempt.completed, expected.about(attempts.files[what]), target=attempt.target)


def test_parquet_without_a_column_of_texts_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"question": ["fine"]}), path)
    expected = Refusal(
        3, error=f"{path}:1: expected a 'text', found question", hint="--text-field question"
    )

    refuse("demo", "--prompts", path, refusal=expected)


def test_a_missing_file_of_prompts_is_refused_by_its_name(refuse: Refuse) -> None:
    expected = Refusal(3, error="No prompts at './nowhere.jsonl'", hint="--prompt TEXT")

    refuse("demo", "--prompts", "./nowhere.jsonl", refusal=expected)


def test_a_text_given_for_a_file_of_prompts_is_refused_with_the_right_option(
    refuse: Refuse,
) -> None:
    text = "Write a function that adds two numbers, and say what it costs. " * 10
    expected = Refusal(3, error="No prompts at 'Write a function", hint="--prompt TEXT")

    refuse("demo", "--prompts", text, refusal=expected)


def test_an_empty_name_of_prompts_does_not_mean_the_working_folder(refuse: Refuse) -> None:
    """As in a script whose variable is not set: --prompts "$PROMPTS"."""
    refuse("demo", "--prompts", "", refusal=Refusal(3, error="No prompts at ''"))


def test_a_folder_without_prompts_is_refused_by_its_name(refuse: Refuse, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "prompts.json").write_text("[]", encoding="utf-8")
    expected = Refusal(3, error=f"'{folder}' holds no prompts", hint=".jsonl, .csv, .parquet, .txt")

    refuse("demo", "--prompts", folder, refusal=expected)


def test_an_id_used_in_two_files_is_refused_with_both_places(
    refuse: Refuse, tmp_path: Path
) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"id": "x", "text": "one"}\n', encoding="utf-8")
    (folder / "b.jsonl").write_text(
        '{"id": "y", "text": "two"}\n{"id": "x", "text": "three"}\n', encoding="utf-8"
    )
    first, second = f"{folder}/a.jsonl:1", f"{folder}/b.jsonl:2"
    expected = Refusal(3, error=f"{second}: duplicate id 'x', first seen at {first}", hint="id")

    refuse("demo", "--prompts", folder, refusal=expected)


def test_a_bad_line_on_stdin_is_refused_by_its_number(refuse: Refuse) -> None:
    expected = Refusal(3, error="stdin:2: not JSON")

    refuse("demo", "--prompts", "-", refusal=expected, stdin='{"text": "fine"}\noops\n')


def test_an_empty_stdin_is_refused(refuse: Refuse) -> None:
    refuse("demo", "--prompts", "-", refusal=Refusal(3, error="stdin", hint="at least one prompt"))


def test_an_empty_prompt_is_refused(refuse: Refuse) -> None:
    expected = Refusal(3, error="--prompt", hint="give it a text")

    refuse("demo", "--prompt", "", refusal=expected)
