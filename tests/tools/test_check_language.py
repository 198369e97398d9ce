"""The language check finds planted sentences, and leaves plain ones alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.check_language import MARKS, check_file, main

PLANTED = {
    "told": "The reader is told which layers are routed.",
    "is no X": "A gate alone is no router.",
    "beside": "The metadata lies beside the file.",
    "but for": "All layers are equal but for the first.",
    "likewise": "The head likewise.",
    "so many": "Return at most so many rows.",
    "of its own": "Each layer has a router of its own.",
    "to be had": "None if the size can't be had.",
    "some hundred": "The driver keeps some hundred MiB.",
}
PLAIN = (
    "There is no router. There are no files, and it is no longer than that: x is no more than y.",
    "Each layer has its own router. Not for speed, but for clarity. It goes besides.",
    "Tell the layers apart. A retold story, twofold. Many files, so read them.",
)


def findings(folder: Path, source: str, *, name: str = "text.py") -> list[tuple[int, str, str]]:
    path = folder / name
    path.write_text(source, encoding="utf-8")
    return [(found.line, found.mark, found.sentence) for found in check_file(path)]


def test_every_mark_has_a_planted_sentence() -> None:
    assert PLANTED.keys() == MARKS.keys()


@pytest.mark.parametrize("mark", PLANTED)
@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("text.md", "# Title\n\n{}\n"),
        ("text.py", '"""Docstring.\n\n{}\n"""\n'),
        ("text.py", "x = 1\n\n# {}\n"),
        ("text.py", 'x = 1\n\nraise ValueError("{}")\n'),
        ("text.py", 'x = 1\n\nraise ValueError(f"{{x}} and: {}")\n'),
    ],
)
def test_a_planted_sentence_is_found_on_its_line(
    tmp_path: Path, mark: str, name: str, before: str
) -> None:
    assert findings(tmp_path, before.format(PLANTED[mark]), name=name) == [(3, mark, PLANTED[mark])]


@pytest.mark.parametrize("plain", PLAIN)
def test_plain_sentences_are_left_alone(tmp_path: Path, plain: str) -> None:
    assert findings(tmp_path, plain, name="text.md") == []


def test_a_line_break_hides_nothing(tmp_path: Path) -> None:
    assert findings(tmp_path, "Fine.\n\nA gate alone is\nno router.\n", name="text.md") == [
        (3, "is no X", "A gate alone is no router.")
    ]
    comment = "def f():\n    # A gate alone is\n    # no router.\n    return 1\n"
    assert findings(tmp_path, comment) == [(2, "is no X", "A gate alone is no router.")]


def test_code_and_released_changes_are_not_read(tmp_path: Path) -> None:
    block = "Fine, not `told`.\n\n```console\n$ echo told\ntold\n```\n"
    assert findings(tmp_path, block, name="text.md") == []
    changes = "## Unreleased\n\nUsers are told.\n\n## 0.1.0\n\nUsers are told.\n"
    assert findings(tmp_path, changes, name="CHANGELOG.md") == [(3, "told", "Users are told.")]


@pytest.mark.parametrize("word", ["What", "How", "From", "Which", "Of"])
def test_a_docstring_does_not_open_with_a_question_word(tmp_path: Path, word: str) -> None:
    module = f'"""{word} a model runs."""\n'
    function = f'\n\ndef f():\n    """{word} a model runs."""\n'
    expected = [(1, "opening", f"{word} a model runs."), (5, "opening", f"{word} a model runs.")]
    assert findings(tmp_path, module + function) == expected
    assert findings(tmp_path, '"""Whatever a model runs."""\n') == []


def test_an_entry_says_more_than_its_name(tmp_path: Path) -> None:
    docstring = '"""Return it.\n\nArgs:\n    gpu: {}\n    num_tokens: {}\n\nReturns:\n    model: Model.\n"""'
    assert findings(tmp_path, docstring.format("The GPU.", "How.")) == [
        (4, "says nothing", "gpu: The GPU."),
        (5, "says nothing", "num_tokens: How."),
    ]
    assert findings(tmp_path, docstring.format("Its id.", "The\n        longest prompt.")) == []


def test_a_finding_is_printed_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "text.md"
    path.write_text("Fine.\n")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == ""
    path.write_text("Users are told.\n")
    assert main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{path}:1: told: Users are told.\n"
