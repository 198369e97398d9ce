"""The facts on which the rows of a run depend, known before its model is loaded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moetool
from moetool.checkpoint.files import Checkpoint, list_weight_files
from moetool.trace.writing.identity import NUM_WINDOWS, RunIdentity
from moetool.tracing.options import GenerationOptions, TraceOptions
from moetool.tracing.prompts.prompts import hash_prompts
from moetool.tracing.prompts.tokens import TokenizedPrompt
from moetool.tracing.running.batches import list_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LIBRARIES = ("torch", "transformers", "pyarrow", "numpy")
# Of settings, tokenizers and code; other files don't change what a model does.
_TEXT_SUFFIXES = (".json", ".model", ".txt", ".py", ".jinja")
# Stated in other words, or without an effect on the rows.
_UNUSED_OPTIONS = ("revision", "trust_remote_code", "device", "generation")
# Samples of each file of weights: two checkpoints of the same shapes differ in all of them.
_SAMPLES_PER_FILE = 8
_SAMPLE_BYTES = 4096
_SHOWN_DIGITS = 16


def identify_run(
    checkpoint: Checkpoint,
    options: TraceOptions,
    *,
    prompts: Sequence[TokenizedPrompt],
    device_map: str | Mapping[str, Any] | None,
    num_sharing: int | None = None,
    with_texts: bool,
) -> RunIdentity:
    """Return what another run must share to go on where this one ends.

    Args:
        checkpoint: The model.
        options: Of the run.
        prompts: All that are traced.
        device_map: As `load_model` takes it.
        num_sharing: Number of processes that share the model; None if none do.
        with_texts: Whether generated texts are kept.
    """
    whole = device_map.get("") if isinstance(device_map, Mapping) else None
    return _identify(
        options,
        model=checkpoint.name,
        revision=checkpoint.revision,
        fingerprint=fingerprint_checkpoint(checkpoint),
        prompts=prompts,
        device=f"{num_sharing} processes" if num_sharing else getattr(whole, "type", None),
        with_texts=with_texts,
    )


def identify_loaded_run(
    model: PreTrainedModel,
    options: TraceOptions,
    *,
    prompts: Sequence[TokenizedPrompt],
    with_texts: bool,
) -> RunIdentity:
    """Return the same for a model that is in memory."""
    config = model.config
    return _identify(
        options,
        model=getattr(config, "name_or_path", None) or type(model).__name__,
        revision=getattr(config, "_commit_hash", None),
        fingerprint=fingerprint_model(model),
        prompts=prompts,
        device=model.device.type,
        with_texts=with_texts,
    )


def _identify(
    options: TraceOptions,
    *,
    model: str,
    revision: str | None,
    fingerprint: str,
    prompts: Sequence[TokenizedPrompt],
    device: str | None,
    with_texts: bool,
) -> RunIdentity:
    names = [each.name for each in fields(options) if each.name not in _UNUSED_OPTIONS]
    chosen: dict[str, Any] = {_spell(name): getattr(options, name) for name in names}
    chosen["quantization"] = options.quantization and str(options.quantization)
    if options.layers is not None:
        chosen["layers"] = sorted(options.layers)
    generation = {
        _spell(each.name): getattr(options.generation, each.name, None)
        for each in fields(GenerationOptions)
    }
    return RunIdentity(
        {
            "model": model,
            "revision": revision,
            "prompts (SHA-256)": hash_prompts(each.prompt for each in prompts)[:_SHOWN_DIGITS],
            **chosen,
            **generation,
            "device": device,
            "generated texts": with_texts,
            "files of the model (SHA-256)": fingerprint,
            "version of moetool": moetool.__version__,
            **{f"version of {library}": version(library) for library in _LIBRARIES},
            "tokens of the prompts (SHA-256)": _hash_tokens(prompts),
            NUM_WINDOWS: len(list_windows(prompts, options)),
        }
    )


def fingerprint_checkpoint(checkpoint: Checkpoint) -> str:
    """Return a hash of a checkpoint's small files, and of the size and samples of its weights."""
    digest = hashlib.sha256()
    folder = checkpoint.folder
    weights = set(list_weight_files(folder))
    for path in sorted({*weights, *_list_texts(folder)}):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        if path not in weights:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
            continue
        with path.open("rb") as file:
            for part in range(_SAMPLES_PER_FILE):
                file.seek(path.stat().st_size * part // _SAMPLES_PER_FILE)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:_SHOWN_DIGITS]


def fingerprint_model(model: PreTrainedModel) -> str:
    """Return a hash of a model in memory: names, shapes and samples of its parameters."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}\0{tuple(parameter.shape)}\0{parameter.dtype}\0".encode())
        if parameter.device.type != "meta":
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, len(flat) // _SAMPLES_PER_FILE)][:_SAMPLES_PER_FILE]
            digest.update(repr(sample.float().tolist()).encode())
    return digest.hexdigest()[:_SHOWN_DIGITS]


def _list_texts(folder: Path) -> list[Path]:
    return [
        Path(entry.path)
        for entry in os.scandir(folder)
        if entry.is_file() and entry.name.endswith(_TEXT_SUFFIXES)
    ]


def _hash_tokens(prompts: Sequence[TokenizedPrompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(len(prompt.token_ids).to_bytes(8, "little"))
        digest.update(prompt.token_ids.astype("<i4").tobytes())
    return digest.hexdigest()[:_SHOWN_DIGITS]


def _spell(name: str) -> str:
    """Return the name of an option as words."""
    return name.removeprefix("with_").replace("_", " ")
