"""Generated texts: one JSON line each, spelled as they read after their prompts."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from moetool.errors import UsageError
from moetool.tracing.prompts.prompts import Prompt
from moetool.tracing.prompts.tokens import TokenizedPrompt
from moetool.tracing.running.generation import Continuation
from moetool.tracing.running.texts import TextFile, WrittenText, check_text_path, decode_texts

TEXT = WrittenText(
    id="1", domain="prose", prompt="Once", text=" upon", num_new_tokens=1, finish="length"
)
# Characters at which JSON, JSON lines or Python break lines or words.
HOSTILE_TEXTS = ('"', "\\", "a\nb\r\n", "\u2028", "\x85", "\x00", "é 日本 🙂", "")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Gives spaces to the words after them and loses a text's first one, like SentencePiece."""
    words = ["<unk>", "</s>", "▁hello", "▁world", "s"]
    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Makes every byte a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def decode(
    given: Sequence[int],
    written: Sequence[int],
    tokenizer: PreTrainedTokenizerFast,
    *,
    is_new_text: bool = False,
) -> WrittenText:
    prompt = TokenizedPrompt(
        prompt=Prompt(prompt_id="1", domain="prose", text="…", origin="a:1"),
        token_ids=np.array(given, dtype=np.int32),
        was_cut=False,
    )
    continuation = Continuation(
        np.array(written, dtype=np.int32), has_ended=written[-1] == 1, is_new_text=is_new_text
    )
    (text,) = decode_texts([prompt], [continuation], tokenizer)
    return text


def test_a_text_keeps_the_space_between_it_and_its_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert decode([2], [3, 4], tokenizer).text == " worlds"
    assert decode([2], [4, 3], tokenizer).text == "s world"


def test_a_text_in_a_decoder_of_its_own_begins_like_any_text(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert decode([2], [3, 4], tokenizer, is_new_text=True).text == "worlds"


def test_the_end_of_the_sequence_is_counted_and_not_spelled(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    text = decode([2], [3, 1], tokenizer)
    assert (text.text, text.num_new_tokens, text.finish) == (" world", 2, "end")
    alone = decode([2], [1], tokenizer)
    assert (alone.text, alone.num_new_tokens, alone.finish) == ("", 1, "end")


def test_a_prompt_that_ends_within_a_character_still_has_a_text(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    ids = byte_tokenizer.encode("aé!")
    assert len(ids) == 4
    assert decode(ids[:2], ids[2:], byte_tokenizer).text == "\ufffd!"
    assert decode(ids[:1], ids[1:], byte_tokenizer).text == "é!"


def test_every_line_is_one_text(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    texts = [replace(TEXT, id=text, prompt=text, text=text) for text in HOSTILE_TEXTS]
    with TextFile(path) as file:
        file.write(texts[:2])
        file.write([])
        file.write(texts[2:])

    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    assert [WrittenText(**json.loads(line)) for line in lines] == texts
    assert "日本" in path.read_text(encoding="utf-8")


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    with TextFile(path) as file:
        file.write([TEXT])
        assert names_in(tmp_path) == ["texts.jsonl.partial"]
    assert names_in(tmp_path) == ["texts.jsonl"]


def test_what_was_written_before_an_error_is_kept_and_pointed_at(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    with pytest.raises(KeyboardInterrupt) as caught:
        break_off(path, [TEXT, TEXT])

    partial = tmp_path / "texts.jsonl.partial"
    assert caught.value.__notes__ == [f"what was written until then: {partial} (2 texts)"]
    assert names_in(tmp_path) == [partial.name]
    assert len(partial.read_text(encoding="utf-8").splitlines()) == 2


def test_an_error_before_the_first_text_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt) as caught:
        break_off(tmp_path / "texts.jsonl", [])

    assert not hasattr(caught.value, "__notes__")
    assert names_in(tmp_path) == []


# A file of texts is recognized by its first characters.
OLD_TEXT = json.dumps(vars(replace(TEXT, text="old")))


@pytest.mark.parametrize(
    ("name", "old"), [("texts.jsonl", "old"), ("texts.jsonl.partial", OLD_TEXT)]
)
def test_what_lies_there_is_replaced_only_by_force(tmp_path: Path, name: str, old: str) -> None:
    path = tmp_path / "texts.jsonl"
    (tmp_path / name).write_text(old)

    with pytest.raises(UsageError) as caught:
        check_text_path(path, replace_existing=False)
    assert f"'{tmp_path / name}'" in caught.value.message
    assert "--force" in caught.value.hint
    assert (tmp_path / name).read_text() == old

    check_text_path(path, replace_existing=True)
    assert (tmp_path / name).read_text() == old
    with TextFile(path, replace_existing=True) as file:
        file.write([TEXT])
    assert names_in(tmp_path) == ["texts.jsonl"]
    assert path.read_text(encoding="utf-8").startswith('{"id": "1", "domain": "prose"')


@pytest.mark.parametrize("place", [".", "folder", "missing/texts.jsonl", "file/texts.jsonl"])
def test_a_place_that_cannot_be_written_is_refused_even_by_force(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()

    for force in (False, True):
        with pytest.raises(UsageError):
            check_text_path(Path(place), replace_existing=force)


def test_a_folder_where_the_unfinished_file_would_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl.partial").mkdir()

    with pytest.raises(UsageError, match="is a folder"):
        check_text_path(tmp_path / "texts.jsonl", replace_existing=True)


def test_a_folder_that_takes_no_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(**_: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", deny)

    with pytest.raises(UsageError, match=r"Can.t write to .*: Permission denied"):
        check_text_path(tmp_path / "texts.jsonl", replace_existing=False)


def test_an_unfinished_file_of_someone_else_is_never_replaced(tmp_path: Path) -> None:
    partial = tmp_path / "texts.jsonl.partial"
    partial.write_text("a download of something else")
    with pytest.raises(UsageError, match="does not hold the texts"):
        check_text_path(tmp_path / "texts.jsonl", replace_existing=True)
    with pytest.raises(UsageError, match="does not hold the texts"):
        TextFile(tmp_path / "texts.jsonl", replace_existing=True)
    assert partial.read_text() == "a download of something else"


def test_an_unfinished_file_is_never_opened_through_a_link(tmp_path: Path) -> None:
    elsewhere, partial = tmp_path / "elsewhere", tmp_path / "texts.jsonl.partial"
    elsewhere.write_text(OLD_TEXT)
    partial.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="not a regular file"):
        TextFile(tmp_path / "texts.jsonl", replace_existing=True)
    assert elsewhere.read_text() == OLD_TEXT


def test_a_name_that_leaves_no_room_for_the_unfinished_file_is_refused(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len(".partial")
    check_text_path(tmp_path / ("n" * longest), replace_existing=False)
    with pytest.raises(UsageError, match="File name too long"):
        check_text_path(tmp_path / ("n" * (longest + 1)), replace_existing=False)


def test_a_link_is_replaced_and_the_texts_it_leads_to_are_kept(tmp_path: Path) -> None:
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "texts.jsonl"
    elsewhere.write_text("old")
    path.symlink_to(elsewhere)
    with TextFile(path, replace_existing=True) as file:
        file.write([TEXT])
    assert elsewhere.read_text() == "old"
    assert not path.is_symlink()
    assert json.loads(path.read_text()) == vars(TEXT)


def test_texts_that_another_run_writes_are_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    with TextFile(path) as file:
        file.write([TEXT])
        for force in (False, True):
            with pytest.raises(UsageError, match=f"Another run is writing '{path}'"):
                check_text_path(path, replace_existing=force)
        file.write([TEXT])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [vars(TEXT)] * 2


def test_what_appears_during_the_run_is_kept_with_the_unfinished_texts(tmp_path: Path) -> None:
    path, partial = tmp_path / "texts.jsonl", tmp_path / "texts.jsonl.partial"

    def write_while_another_does() -> None:
        with TextFile(path) as file:
            file.write([TEXT])
            path.write_text("of someone else")

    with pytest.raises(UsageError, match="exists"):
        write_while_another_does()
    assert path.read_text() == "of someone else"
    assert json.loads(partial.read_text()) == vars(TEXT)


def test_an_unfinished_file_that_is_removed_ends_the_run(tmp_path: Path) -> None:
    path, partial = tmp_path / "texts.jsonl", tmp_path / "texts.jsonl.partial"

    def remove_it() -> None:
        with TextFile(path) as file:
            file.write([TEXT])
            partial.unlink()
            file.write([TEXT])

    with pytest.raises(UsageError, match=r"texts.jsonl.partial' was removed") as caught:
        remove_it()
    assert not hasattr(caught.value, "__notes__")
    assert names_in(tmp_path) == []


def break_off(path: Path, texts: Sequence[WrittenText]) -> NoReturn:
    """Write texts, interrupted before the end."""
    with TextFile(path) as file:
        file.write(texts)
        raise KeyboardInterrupt


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
