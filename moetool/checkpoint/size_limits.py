"""Limits for files that are read completely, far above the sizes of published ones.

Reading takes time and memory for each byte and each value, in transformers more than here.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from moetool.checkpoint.strict_json import JsonError
from moetool.errors import InputError
from moetool.git_lfs import POINTER_START, refuse_pointer

# Any one of these makes a tokenizer. transformers' own error names none of them.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "tiktoken.model",
)
_TOKENIZER_SETTINGS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "processor_config.json",
    "preprocessor_config.json",
)
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    *_TOKENIZER_SETTINGS,
)


@dataclass(frozen=True)
class SizeLimit:
    """The largest file that is read.

    Attributes:
        num_bytes: Bytes of the file.
        num_values: Values in its JSON.
    """

    num_bytes: int
    num_values: int

    def check_size(self, num_bytes: int) -> None:
        """Check a file's length.

        Raises:
            JsonError: It is too large.
        """
        if num_bytes > self.num_bytes:
            raise JsonError(f"it is larger than {self.num_bytes // 1_000_000} MB")

    def check_values(self, content: bytes) -> None:
        """Check the number of values in JSON without parsing it.

        Commas and opening brackets are counted, also the few inside strings.

        Raises:
            JsonError: There are too many.
        """
        if sum(map(content.count, (b",", b"[", b"{"))) > self.num_values:
            raise JsonError(f"it has more than {self.num_values:,} values")


# A vocabulary of 22,000 labels, there and back, has 44,000 values.
_OF_SETTINGS = SizeLimit(10_000_000, 200_000)
# The largest published ones have 40 MB.
_OF_TOKENIZERS = SizeLimit(100_000_000, 5_000_000)
# An index of a million tensors.
_OF_OTHERS = SizeLimit(100_000_000, 5_000_000)


def find_size_limit(name: str) -> SizeLimit:
    """Return the limit for a file of a checkpoint, by its name."""
    if name in _SETTINGS:
        return _OF_SETTINGS
    return _OF_TOKENIZERS if name in TOKENIZER_FILES else _OF_OTHERS


def check_settings(folder: Path) -> None:
    """Check the sizes of the settings that transformers reads with the weights.

    Raises:
        InputError: A file is too large, or is not a file.
    """
    _check_files(folder, ("generation_config.json", "adapter_config.json"))


def check_tokenizer_files(folder: Path) -> None:
    """Check what transformers reads to make a tokenizer: that it ends, and soon.

    Raises:
        InputError: A file is too large, or is not a file.
    """
    _check_files(folder, (*TOKENIZER_FILES, "merges.txt", "*.model", *_TOKENIZER_SETTINGS))


def _check_files(folder: Path, patterns: tuple[str, ...]) -> None:
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        limit = _OF_SETTINGS if _is_setting(path, folder) else _OF_TOKENIZERS
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise JsonError("it is not a regular file")
            limit.check_size(found.st_size)
            with path.open("rb") as file:
                refuse_pointer(file.read(len(POINTER_START)), path=path)
            if path.suffix == ".json":
                limit.check_values(path.read_bytes())
        except (JsonError, OSError) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            raise InputError(
                f"'{path}' can't be read: {reason}.", hint="Use the files that came with the model."
            ) from error


def _is_setting(path: Path, folder: Path) -> bool:
    name = path.relative_to(folder).as_posix()
    return any(fnmatch(name, pattern) for pattern in _SETTINGS)
