"""From a checkpoint folder to its transformers configuration and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from moetool.checkpoint.files import Checkpoint, read_json
from moetool.errors import InputError, UntraceableError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

# Any one of these makes a tokenizer; transformers' own error names none of them.
_TOKENIZER_FILES = (
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


def load_config(checkpoint: Checkpoint, *, trust_remote_code: bool) -> PreTrainedConfig:
    """Return the checkpoint's configuration.

    Raises:
        InputError: The configuration asks for code that was not allowed, or is malformed.
        UntraceableError: This version of transformers has no such architecture.
    """
    from transformers import CONFIG_MAPPING, AutoConfig
    from transformers import __version__ as transformers_version

    raw = read_json(checkpoint.folder / "config.json", missing="")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(
            f"'{checkpoint.folder / 'config.json'}' names no model_type.",
            hint="Use the config.json that came with the checkpoint.",
        )
    if model_type not in CONFIG_MAPPING:
        if "auto_map" not in raw:
            raise UntraceableError(
                f"transformers {transformers_version} has no architecture '{model_type}'.",
                hint="A newer transformers may know it: pip install --upgrade transformers.",
            )
        if not trust_remote_code:
            raise InputError(
                f"{checkpoint.name} needs the Python code in its own repository (model_type "
                f"'{model_type}').",
                hint="Read that code, then allow it to run with --trust-remote-code.",
            )
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            checkpoint.folder, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise InputError(
            f"'{checkpoint.folder / 'config.json'}' is not a usable {model_type} configuration.",
            hint="Use the config.json that came with the checkpoint.",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    return config


def load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Return the checkpoint's tokenizer.

    Raises:
        InputError: There is none, or it can't be loaded.
    """
    from transformers import AutoTokenizer

    if not _holds_any(checkpoint.folder, _TOKENIZER_FILES) and not trust_remote_code:
        raise InputError(
            f"'{checkpoint.folder}' holds no tokenizer.",
            hint="Put the model's tokenizer files (tokenizer.json, …) beside config.json.",
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            checkpoint.folder, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise InputError(
            f"The tokenizer in '{checkpoint.folder}' can't be loaded.",
            hint="Put the model's own tokenizer files beside config.json.",
            facts=[f"seen: {first_line(error)}"],
        ) from error
    return tokenizer


def first_line(error: BaseException) -> str:
    """Return an exception's kind and its text up to the first full sentence, for a `seen:` line."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    continued = f" {lines[1].strip()}" if lines[0].endswith(":") and lines[1:] else ""
    return f"{type(error).__name__}: {lines[0]}{continued}"


def _holds_any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)
