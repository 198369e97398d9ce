"""The inspection of a model, by its name."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING

from moetool.anatomy.headers.table import HeaderTable, count_headers
from moetool.catalogue.published import read_published_models, read_reported_systems
from moetool.checkpoint.gguf.files import find_lone_gguf
from moetool.checkpoint.layouts.adapter import find_base
from moetool.checkpoint.reference import ModelKind, ModelReference, resolve_model
from moetool.checkpoint.subject import AskedSource, find_subject
from moetool.choices import choose, take_flag
from moetool.errors import InputError, UntraceableError, UsageError
from moetool.inspection.notes import note_instead
from moetool.inspection.result import Inspection, Source
from moetool.inspection.sources.from_adapter import add_base
from moetool.inspection.sources.from_headers import inspect_headers

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from moetool.inspection.sources.recorded_choices import Recording


def inspect_model(
    model: str | PathLike[str] | ModelReference | nn.Module,
    *,
    source: AskedSource | str = AskedSource.AUTO,
    revision: str | None = None,
    trust_remote_code: bool = False,
    top_k: int | Mapping[str, int] | None = None,
    recording: Recording | pd.DataFrame | None = None,
) -> Inspection:
    """Return the inspection of a model by its configuration and the headers of its files.

    No weights are read or downloaded. If transformers has no class for a model that has files, the
    model is inspected by their headers alone.

    Args:
        model: A folder, a config.json, a Hub id, a catalogue name, `demo`, or what `resolve_model`
            made of one; or any module in memory.
        source: The source that figures are asked from.
        revision: Branch, tag or commit, for Hub ids.
        trust_remote_code: Run Python code from the model's repository if it needs it.
        top_k: For modules in memory whose code does not show it: experts that a token chooses, of all
            routed layers or by the path of their experts or blocks.
        recording: For modules in memory: a `RoutingRecorder` that has recorded calls of the module,
            or its frame, which shows how many experts each token chose.

    Raises:
        InputError: The model, its configuration or its files can't be used.
        UntraceableError: This transformers has no class for it, and there are no files to read.
        UsageError: An option has no such choice, a revision was given for something that is not on
            the Hub, or an argument has the wrong type.
    """
    source = choose(source, AskedSource, name="source")
    trust_remote_code = take_flag(trust_remote_code, name="trust_remote_code")
    if not isinstance(model, str | PathLike | ModelReference) and hasattr(model, "named_modules"):
        return _inspect_module(
            model, source=source, revision=revision, top_k=top_k, recording=recording
        )
    if top_k is not None or recording is not None:
        raise UsageError(
            "top_k and recording are for modules in memory.",
            hint="Leave them out: configurations and files state how many experts a token chooses.",
        )
    reference = _resolve(model)
    revision = reference.choose_revision(revision)
    if reference.kind is ModelKind.REPORTED:
        return _inspect_reported(reference, source)
    if reference.is_gguf or _has_gguf_weights(reference, source):
        from moetool.inspection.gguf.from_gguf import inspect_gguf

        return inspect_gguf(
            reference, source=source, revision=revision, trust_remote_code=trust_remote_code
        )
    subject = find_subject(reference, source=source, revision=revision)
    table: HeaderTable | None = None
    if subject.headers is not None:
        table = count_headers(subject.headers, subject.config, stated_by=subject.stated_by)
        if subject.adapter is not None:
            return add_base(
                inspect_headers(subject, table), subject, _inspect_base(subject.adapter)
            )
        if source is AskedSource.HEADERS or subject.layout is not None:
            return inspect_headers(subject, table)
    # Imported late because it imports torch: errors in the files are reported at once.
    from moetool.inspection.sources.from_skeleton import inspect_skeleton

    try:
        return inspect_skeleton(subject, table, trust_remote_code=trust_remote_code)
    except (InputError, UntraceableError) as error:
        if table is None:
            raise
        return inspect_headers(subject, table, instead_because=note_instead(error))


def _has_gguf_weights(reference: ModelReference, source: AskedSource) -> bool:
    """Return whether a folder with a config.json has its weights in GGUF files."""
    if reference.kind is not ModelKind.FOLDER or source is AskedSource.SKELETON:
        return False
    assert reference.path is not None
    return find_lone_gguf(reference.path) is not None


def _resolve(model: object) -> ModelReference:
    if isinstance(model, str | PathLike | ModelReference):
        return resolve_model(model)
    raise UsageError(
        f"A model can't be named by something of type {type(model).__name__}.",
        hint="Give its name or folder as a text, what resolve_model made of it, or a module.",
    )


def _inspect_module(
    model: nn.Module,
    *,
    source: AskedSource,
    revision: str | None,
    top_k: int | Mapping[str, int] | None,
    recording: Recording | pd.DataFrame | None,
) -> Inspection:
    if source is AskedSource.HEADERS or revision is not None:
        what = "files" if source is AskedSource.HEADERS else f"revision '{revision}'"
        raise UsageError(
            f"A model in memory has no {what}.", hint="Give the name or folder of its checkpoint."
        )
    from moetool.inspection.sources.from_module import inspect_module

    return inspect_module(model, top_k=top_k, recording=recording)


def _inspect_base(adapter: Mapping[str, object]) -> Inspection | None:
    """Return the inspection of an adapter's base model; None if the catalogue does not have it."""
    _, name = find_base(adapter)
    if name is None or not read_published_models()[name].can_be_counted:
        return None
    return inspect_model(name)


def _inspect_reported(reference: ModelReference, source: AskedSource) -> Inspection:
    system = read_reported_systems()[reference.text.lower()]
    if source is not AskedSource.AUTO:
        raise InputError(
            f"{system.title} is known from reports alone: there is nothing to count.",
            hint="Leave out --source to see the reported figures.",
        )
    notes = ("Reported, never computed.", *((system.notes,) if system.notes else ()))
    return Inspection(
        model=reference.text,
        source=Source.REPORTED,
        reported=system,
        notes=notes,
    )
