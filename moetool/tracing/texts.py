"""The texts that a model wrote while it was traced, as JSONL."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

import numpy as np

from moetool.errors import UsageError
from moetool.trace.writer import check_folder_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from moetool.tracing.generation import Continuation
    from moetool.tracing.tokens import TokenizedPrompt


@dataclass(frozen=True)
class WrittenText:
    """What a model wrote after one prompt; one line of the file.

    Attributes:
        id: Of the prompt.
        domain: Of the prompt.
        prompt: Its text.
        text: What was written, without special tokens.
        num_new_tokens: Tokens written, the end of the sequence among them.
        finish: `end` at an end-of-sequence token, `length` at --max-new-tokens.
    """

    id: str
    domain: str
    prompt: str
    text: str
    num_new_tokens: int
    finish: str


class TextFile:
    """A JSONL file on its way; a context manager.

    The file appears when it is complete; until then, and if the run breaks off, its lines lie in
    `<path>.partial`.

    Args:
        path: Where to write.
        replace_existing: Replace what is there, and what an earlier run left unfinished.

    Raises:
        UsageError: The path can't be written.
    """

    def __init__(self, path: Path, *, replace_existing: bool = False) -> None:
        check_text_path(path, replace_existing=replace_existing)
        self._path = path
        self._partial = _partial_file(path)
        self._file: TextIO | None = None
        self._num_texts = 0

    def __enter__(self) -> Self:
        self._file = self._partial.open("w", encoding="utf-8", newline="\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._file is not None
        self._file.close()
        if error is None:
            self._partial.replace(self._path)
        elif self._num_texts:
            error.add_note(
                f"what was written until then: {self._partial} ({self._num_texts:,} texts)"
            )
        else:
            self._partial.unlink()

    def write(self, texts: Sequence[WrittenText]) -> None:
        """Write one line a text."""
        assert self._file is not None
        for text in texts:
            self._file.write(json.dumps(vars(text), ensure_ascii=False) + "\n")
        self._file.flush()
        self._num_texts += len(texts)


def check_text_path(path: Path, *, replace_existing: bool) -> None:
    """Check that a file of texts can be written at a path, before any work is done for it.

    Raises:
        UsageError: The path exists, an earlier run left texts there, or its folder can't be used.
    """
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder.", hint="Name a file in it.")
    if path.exists() and not replace_existing:
        raise UsageError(
            f"'{path}' exists.", hint="Choose another --save-text, or give --force to replace it."
        )
    partial = _partial_file(path)
    if partial.is_dir():
        raise UsageError(f"'{partial}' is a folder.", hint="Choose another --save-text.")
    if partial.exists() and not replace_existing:
        raise UsageError(
            f"'{partial}' holds what an unfinished run wrote.",
            hint="Give --force to discard it and start over.",
        )
    check_folder_of(path)


def _partial_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def decode_texts(
    prompts: Sequence[TokenizedPrompt],
    continuations: Sequence[Continuation],
    tokenizer: PreTrainedTokenizerBase,
) -> list[WrittenText]:
    """Return what was written after each prompt, in words."""
    return [
        WrittenText(
            id=item.prompt.prompt_id,
            domain=item.prompt.domain,
            prompt=item.prompt.text,
            text=_spell(item, continuation, tokenizer),
            num_new_tokens=len(continuation.token_ids),
            finish="end" if continuation.has_ended else "length",
        )
        for item, continuation in zip(prompts, continuations, strict=True)
    ]


def _spell(
    item: TokenizedPrompt, continuation: Continuation, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Return what was written after a prompt, as it reads there.

    By themselves the same tokens may read otherwise: SentencePiece drops a text's first space.
    """

    def decode(*parts: NDArray[np.int32]) -> str:
        return str(tokenizer.decode(np.concatenate(parts).tolist(), skip_special_tokens=True))

    if not continuation.begins_anew:
        before, whole = decode(item.token_ids), decode(item.token_ids, continuation.token_ids)
        # Not so where the prompt was cut within a character.
        if whole.startswith(before):
            return whole[len(before) :]
    return decode(continuation.token_ids)
