"""List the files that a command reads, so that its output does not replace them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moetool.checkpoint.reference import ModelReference

# Other files in a checkpoint's folder, such as earlier reports, may be replaced.
_CHECKPOINT_FILES = (
    "*config.json",
    "*.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "tekken.json",
    "chat_template*",
    "*.safetensors",
    "*.model",
    "*.tiktoken",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.gguf",
    "*.py",
)


def list_model_files(references: Iterable[ModelReference]) -> list[Path]:
    """Return the files that make up local checkpoints."""
    paths = [reference.path for reference in references if reference.path is not None]
    folders = [path for path in paths if os.path.isdir(path)]
    files = [path for path in paths if path not in folders]
    return files + [
        file for folder in folders for pattern in _CHECKPOINT_FILES for file in folder.glob(pattern)
    ]


def list_trace_files(trace: Path | None) -> list[Path]:
    """Return the files of a trace: its own and its metadata, or a folder's parts."""
    if trace is None:
        return []
    from moetool.trace.companions import sidecar_path

    if os.path.isdir(trace):
        return sorted(trace.glob("*.parquet"))
    return [trace, sidecar_path(trace)] if trace.name else []


def list_prompt_files(prompts: str | None) -> list[Path]:
    """Return the prompts file, or the files in a folder of them."""
    from moetool.tracing.prompts.prompts import READERS

    if prompts is None or prompts == "-":
        return []
    if os.path.isdir(prompts):
        # A folder that can't be listed is refused later, when its prompts are read.
        with suppress(OSError):
            return [file for file in Path(prompts).iterdir() if file.suffix in READERS]
        return []
    return [Path(prompts)]


def list_run_inputs(
    reference: ModelReference, prompts: str | None, *, device_map: str | None
) -> list[Path]:
    """Return the files that a traced run reads: of its model, its prompts and its device map."""
    maps = [] if device_map is None else [Path(device_map)]
    return [*list_model_files([reference]), *list_prompt_files(prompts), *maps]
