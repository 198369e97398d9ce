"""Tokenizer files that are too large, not files at all, or full of traps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moetool.checkpoint.config import load_tokenizer
from moetool.checkpoint.files import Checkpoint, check_files
from moetool.errors import InputError


@pytest.fixture
def folder(demo: Path, tmp_path: Path) -> Path:
    for file in demo.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


def refuse(folder: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        load_tokenizer(Checkpoint(name="x", folder=folder, revision=None), trust_remote_code=False)
    return caught.value


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(1 << 40)


def make_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def make_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tokenizer.json", "100 MB"),
        ("tokenizer_config.json", "10 MB"),
        ("added_tokens.json", "10 MB"),
        ("special_tokens_map.json", "10 MB"),
        ("chat_template.jinja", "10 MB"),
        ("merges.txt", "100 MB"),
    ],
)
def test_a_file_that_is_too_large_or_never_ends_is_refused_unread(
    name: str, size: str, folder: Path
) -> None:
    path = folder / name
    changes: dict[Callable[[Path], None], str] = {
        grow: f"it is larger than {size}",
        make_pipe: "it is not a regular file",
        make_device: "it is not a regular file",
    }
    for change, reason in changes.items():
        change(path)
        assert refuse(folder).message == f"'{path}' can't be read: {reason}."


def test_too_many_values_are_refused_unread(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text('{"a": [' + "[]," * 300_000 + "[]]}", encoding="utf-8")
    assert "more than 200,000 values" in refuse(folder).message


def test_settings_of_generation_are_looked_at_with_the_weights(folder: Path) -> None:
    check_files(folder)
    for change in (grow, make_pipe):
        change(folder / "generation_config.json")
        with pytest.raises(InputError, match=r"generation_config\.json' can't be read"):
            check_files(folder)


class Panic(BaseException):
    """As Rust's panics come to Python."""


def test_a_panic_while_loading_is_an_error_and_announces_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*_args: object, **_kwargs: object) -> None:
        os.write(1, b"Ignored unknown kwarg option x")
        os.write(2, b"thread panicked at tokenizers/src/lib.rs")
        raise Panic("no entry found for key")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panic)
    assert refuse(folder).facts == ("seen: Panic: no entry found for key",)
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_while_loading_stays_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(Checkpoint(name="x", folder=folder, revision=None), trust_remote_code=False)
