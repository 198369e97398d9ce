"""The texts that a model generated while it was traced, as JSONL."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np

from moetool.choices import without_effect
from moetool.errors import UsageError
from moetool.output.interrupts import holding_interrupts
from moetool.output.locks import open_locked, refuse_as_held
from moetool.output.targets import (
    check_names,
    check_target_file,
    put_in_place,
    refuse_as_removed,
    saying_what_failed,
)
from moetool.trace.writing.targets import list_places
from moetool.wording import number_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from moetool.tracing.options import GenerationOptions
    from moetool.tracing.prompts.tokens import TokenizedPrompt
    from moetool.tracing.running.generation import Continuation

# Every line begins so.
_START = b'{"id": '


@dataclass(frozen=True)
class WrittenText:
    """The text that a model generated after one prompt; one line of the file.

    Attributes:
        id: The prompt's id.
        domain: The prompt's domain.
        prompt: The prompt's text.
        text: The generated text, without special tokens.
        num_new_tokens: Number of new tokens, an end-of-sequence token included.
        finish: `end` at an end-of-sequence token, `length` at the limit of new tokens.
    """

    id: str
    domain: str
    prompt: str
    text: str
    num_new_tokens: int
    finish: str


class TextFile:
    """A JSONL file in the making; a context manager.

    The file appears when it is complete. Until then, and if the run fails, its lines are in
    `<path>.partial`, which only one run writes at a time.

    Args:
        path: The file to write.
        replace_existing: Replace an existing file, and the unfinished one of an earlier run.
        resume: Replace the unfinished one: the run writes its texts again.

    Raises:
        UsageError: The path can't be written.
    """

    def __init__(self, path: Path, *, replace_existing: bool = False, resume: bool = False) -> None:
        check_text_path(path, replace_existing=replace_existing, resume=resume)
        self._path = path
        self._partial = _partial_file(path)
        self._replace_existing = replace_existing
        self._discard = replace_existing or resume
        self._file: BinaryIO | None = None
        self._num_texts = 0

    def __enter__(self) -> Self:
        with saying_what_failed(self._path):
            self._file = _open_partial(self._path, discard=self._discard)
            self._file.truncate()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._file is not None
        with holding_interrupts():
            try:
                if error is None:
                    self._put_in_place()
                elif not self._num_texts:
                    with suppress(OSError, UsageError):
                        self._check_held()
                        self._partial.unlink()
                elif self._partial.exists():
                    error.add_note(
                        f"what was written until then: {self._partial} "
                        f"({number_of(self._num_texts, 'text')})"
                    )
            finally:
                self._file.close()

    def write(self, texts: Sequence[WrittenText]) -> None:
        """Write one line per text.

        Raises:
            UsageError: The lines can't be written, or their file is gone.
        """
        self.write_lines(encode_texts(texts))

    def write_lines(self, lines: bytes) -> None:
        """Write lines that `encode_texts` made.

        Raises:
            UsageError: The lines can't be written, or their file is gone.
        """
        assert self._file is not None
        self._check_held()
        with saying_what_failed(self._path):
            self._file.write(lines)
            self._file.flush()
        self._num_texts += lines.count(b"\n")

    def _put_in_place(self) -> None:
        assert self._file is not None
        self._check_held()
        if sys.platform == "win32":
            # Windows can't rename an open file.
            self._file.close()
        with saying_what_failed(self._path):
            put_in_place(self._partial, self._path, replace_existing=self._replace_existing)

    def _check_held(self) -> None:
        """Check that the unfinished file is still the one that this run writes."""
        assert self._file is not None
        with suppress(OSError):
            if os.path.samestat(os.fstat(self._file.fileno()), os.lstat(self._partial)):
                return
        raise refuse_as_removed(self._partial)


def encode_texts(texts: Iterable[WrittenText]) -> bytes:
    """Return a line for each text."""
    return "".join(json.dumps(vars(text), ensure_ascii=False) + "\n" for text in texts).encode()


def read_text(line: bytes) -> str:
    """Return the text in a line that `encode_texts` made."""
    text: str = json.loads(line)["text"]
    return text


def check_text_path(
    path: Path,
    *,
    replace_existing: bool,
    resume: bool = False,
    inputs: Iterable[Path] = (),
    is_first: bool = True,
) -> None:
    """Check that a file of texts can be written at a path, before any work is done for it.

    Args:
        path: The file to write.
        replace_existing: Accept an existing file, and the unfinished one of an earlier run.
        resume: Accept the unfinished one.
        inputs: Files that the run reads.
        is_first: See `choose_sink`.

    Raises:
        UsageError: The path exists, an earlier run left texts there, another run writes there, or
            its folder can't be used.
    """
    check_target_file(
        path,
        replace_existing=replace_existing,
        inputs=inputs,
        hint="Choose another --save-text, or give --force to replace it.",
    )
    check_names([_partial_file(path)])
    with saying_what_failed(path):
        if is_first and os.path.lexists(_partial_file(path)):
            _open_partial(path, discard=replace_existing or resume).close()


def choose_texts(
    path: Path | None,
    *,
    generation: GenerationOptions | None,
    output: Path | None = None,
    replace_existing: bool = False,
    resume: bool = False,
    inputs: Iterable[Path] = (),
    is_first: bool = True,
) -> Callable[[], TextFile] | None:
    """Return a function that opens the file of generated texts; None if they are not kept.

    Args:
        path: The file to write; None keeps no texts.
        generation: The run's options for generating text; None if it generates none.
        output: The file of the run's trace, if it has one.
        replace_existing: Accept an existing file, and the unfinished one of an earlier run.
        resume: Accept the unfinished one, whose texts the resumed run writes again.
        inputs: Files that the run reads.
        is_first: See `choose_sink`.

    Raises:
        UsageError: Nothing is generated, the trace takes the same path, or no file can be written
            there.
    """
    if path is None:
        return None
    if generation is None:
        raise without_effect(
            {"--save-text": "saving texts"},
            because="no text is generated",
            unless="add --max-new-tokens",
        )
    if output is not None:
        taken = {_spell_out(each) for each in list_places(output)}
        both = next((each for each in _list_paths(path) if _spell_out(each) in taken), None)
        if both is not None:
            raise UsageError(
                f"The trace and the texts would both be written to '{both}'.",
                hint="Name two different files.",
            )
    check_text_path(
        path, replace_existing=replace_existing, resume=resume, inputs=inputs, is_first=is_first
    )
    return lambda: TextFile(path, replace_existing=replace_existing, resume=resume)


def _spell_out(path: Path) -> str:
    """Return a path in a unique spelling, without following a link in its last part."""
    return os.path.normcase(path.parent.resolve() / path.name)


def _list_paths(path: Path) -> list[Path]:
    """Return every path that a run may write for texts at a path."""
    return [path, _partial_file(path)]


def _open_partial(path: Path, *, discard: bool) -> BinaryIO:
    """Return the unfinished file of texts, locked.

    Raises:
        UsageError: Another run holds it, or it is not one that this run may empty.
    """
    partial = _partial_file(path)
    if partial.is_symlink() or (partial.exists() and not partial.is_file()):
        kind = "a folder" if partial.is_dir() and not partial.is_symlink() else "not a regular file"
        raise UsageError(f"'{partial}' is {kind}.", hint="Choose another --save-text.")
    try:
        file = open_locked(partial)
    except BlockingIOError as error:
        raise refuse_as_held(path, lock=None) from error
    try:
        _check_discardable(file, partial, discard=discard)
    except BaseException:
        file.close()
        raise
    return file


def _check_discardable(file: BinaryIO, partial: Path, *, discard: bool) -> None:
    first = file.read(len(_START))
    file.seek(0)
    if first and not first.startswith(_START):
        raise UsageError(
            f"'{partial}' exists and does not hold the texts of a run.",
            hint="Move it elsewhere, or choose another --save-text.",
        )
    if first and not discard:
        raise UsageError(
            f"'{partial}' holds the texts of an unfinished run.",
            hint="Give --resume to go on with that run, or --force to discard it and start over.",
        )


def _partial_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def decode_texts(
    prompts: Sequence[TokenizedPrompt],
    continuations: Sequence[Continuation],
    tokenizer: PreTrainedTokenizerBase,
) -> list[WrittenText]:
    """Return the text that was generated after each prompt."""
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
    """Return the text of a continuation as it reads after its prompt.

    Decoded alone, the same tokens may read differently: SentencePiece drops a text's first space.
    """

    def decode(*parts: NDArray[np.int32]) -> str:
        return str(tokenizer.decode(np.concatenate(parts).tolist(), skip_special_tokens=True))

    if not continuation.is_new_text:
        before, whole = decode(item.token_ids), decode(item.token_ids, continuation.token_ids)
        # It may not, if the prompt was cut within a character.
        if whole.startswith(before):
            return whole[len(before) :]
    return decode(continuation.token_ids)
