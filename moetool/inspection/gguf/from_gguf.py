"""The inspection of a GGUF model by its headers, compared with config.json if it lies there too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from moetool.anatomy.components import Component
from moetool.anatomy.gguf.table import count_gguf
from moetool.anatomy.headers.table import HeaderTable
from moetool.checkpoint.files import read_json
from moetool.checkpoint.gguf.files import GgufModel, list_file_bytes
from moetool.checkpoint.gguf.hub_files import open_named_gguf
from moetool.checkpoint.gguf.types import PLAIN_TYPES
from moetool.checkpoint.headers.tensor_headers import TensorHeader, TensorHeaders
from moetool.checkpoint.reference import ModelReference
from moetool.checkpoint.subject import AskedSource, Subject
from moetool.errors import InputError, UntraceableError
from moetool.inspection.gguf.facts import GgufFacts, read_facts
from moetool.inspection.notes import note_instead, note_others, note_towers
from moetool.inspection.result import Inspection, Source
from moetool.inspection.rows import list_header_rows
from moetool.inspection.summary import describe_files, merge, summarize

_CONFIG = "config.json"


def inspect_gguf(
    reference: ModelReference,
    *,
    source: AskedSource,
    revision: str | None,
    trust_remote_code: bool,
) -> Inspection:
    """Return the inspection of a GGUF model.

    Args:
        reference: A file, a part of a split one, or a folder that holds one.
        source: The source that figures are asked from.
        revision: Branch, tag or commit, for files on the Hub, where no config.json is looked for.
        trust_remote_code: Run Python code from the folder if a configuration there needs it.

    Raises:
        InputError: A file is missing or broken, or the skeleton was asked for without config.json.
    """
    model = open_named_gguf(reference, revision=revision)
    table, facts = count_gguf(model), read_facts(model)
    config = model.path.parent / _CONFIG
    has_config = reference.path is not None and os.path.isfile(config)
    if source is AskedSource.HEADERS or not has_config:
        if source is AskedSource.SKELETON:
            raise InputError(
                f"'{reference.text}' has no config.json next to it to build the model from.",
                hint="Leave out --source, or name the original checkpoint.",
            )
        return _inspect_headers(reference.text, model, table, facts)
    subject = Subject(
        model=reference.text,
        config=read_json(config, missing=f"'{config}' vanished."),
        label=str(config),
        headers=list_headers(model),
        code=str(config.parent),
        revision=None,
    )
    return _compare(subject, model, table, facts, source, trust_remote_code=trust_remote_code)


def list_headers(model: GgufModel) -> TensorHeaders:
    """Return a model's tensors as those of other formats are listed."""
    tensors = tuple(
        TensorHeader(
            tensor.name,
            tensor.type.name,
            tensor.shape,
            tensor.num_bytes,
            Path(part.path).name,
        )
        for part in model.parts
        for tensor in part.tensors
    )
    return TensorHeaders(tensors=tensors, file_bytes=list_file_bytes(model))


def _compare(
    subject: Subject,
    model: GgufModel,
    table: HeaderTable,
    facts: GgufFacts,
    source: AskedSource,
    *,
    trust_remote_code: bool,
) -> Inspection:
    """Return the inspection by the skeleton of config.json, compared with the headers."""
    # Imported late because it imports torch: errors in the files are reported at once.
    from moetool.inspection.sources.from_skeleton import inspect_skeleton

    files = None if source is AskedSource.SKELETON else table
    files = None if source is AskedSource.SKELETON else table
    try:
        found = inspect_skeleton(subject, files, trust_remote_code=trust_remote_code)
    except (InputError, UntraceableError) as error:
        if files is None:
            raise
        found = _inspect_headers(subject.model, model, table, facts)
        return replace(found, notes=(note_instead(error), *found.notes))
    if files is None:
        return found
    return replace(
        found,
        quantization=name_quantization(facts),
        gguf=facts,
        notes=(*found.notes, *_note_vocabulary(facts)),
    )


def _inspect_headers(
    name: str, model: GgufModel, table: HeaderTable, facts: GgufFacts
) -> Inspection:
    num_experts = list(table.num_experts.values())
    is_known = table.active_unknown is None or bool(num_experts)
    shared = model.read_count("expert_shared_count") or 1
    has_shared = table.table.count_components()[Component.SHARED_EXPERTS] > 0
    headers = list_headers(model)
    return Inspection(
        model=name,
        source=Source.HEADERS,
        model_type=facts.architecture,
        num_layers=table.num_layers,
        num_moe_layers=len(num_experts) if is_known else None,
        num_experts=(merge(num_experts) if num_experts else 0) if is_known else None,
        top_k=table.top_k if num_experts else (0 if is_known else None),
        num_shared_experts=shared if has_shared else 0,
        expert_params=merge(list(table.expert_params.values())) if num_experts else None,
        quantization=name_quantization(facts),
        parameters=summarize(table.table),
        rows=tuple(list_header_rows(table)),
        files=describe_files(headers, table),
        gguf=facts,
        notes=(
            *_note_routing(table),
            *note_towers(table.table),
            *note_others(table.other_tensors),
            *_note_vocabulary(facts),
        ),
    )


def name_quantization(facts: GgufFacts) -> str | None:
    """Return the format that weights are quantized in; None if they are not.

    It is the mixture that the file states, or else the type of most bytes.
    """
    packed = [each.type for each in facts.types if each.type not in PLAIN_TYPES]
    if not packed:
        return None
    return f"GGUF {facts.file_type or packed[0]}"


def _note_routing(table: HeaderTable) -> Iterator[str]:
    if table.active_unknown is not None:
        yield f"Active parameters unknown: {table.active_unknown}."
    elif not table.num_experts:
        yield "Dense model: every text token uses all parameters except vision and audio towers."
    if table.unclear is not None:
        yield (
            f"The names of some tensors are not understood, such as {table.unclear}: a token may "
            "run all of them or none."
        )


def _note_vocabulary(facts: GgufFacts) -> Iterator[str]:
    if facts.vocab_size is None or facts.num_tokens is None:
        return
    surplus = facts.vocab_size - facts.num_tokens
    if surplus > 0:
        yield (
            f"The embedding has {surplus:,} rows more than the tokenizer has tokens: a padded "
            "vocabulary."
        )
