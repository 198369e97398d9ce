"""A model before anything is counted: its configuration, and the headers of its weight files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from moetool.catalogue.names import find_published_name
from moetool.catalogue.published import PublishedModel, read_published_config, read_published_models
from moetool.checkpoint.files import read_json
from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.checkpoint.headers.tensor_headers import TensorHeaders
from moetool.checkpoint.headers.weight_files import PickledWeightsError
from moetool.checkpoint.hub import UnreachableHubError
from moetool.checkpoint.layouts.distributed import read_distributed
from moetool.checkpoint.layouts.found import FoundCheckpoint
from moetool.checkpoint.layouts.kinds import Layout, without_config
from moetool.checkpoint.layouts.loose import read_loose_file
from moetool.checkpoint.layouts.mergekit import ExpertSources, read_expert_sources
from moetool.checkpoint.layouts.read import read_without_config
from moetool.checkpoint.reference import ModelKind, ModelReference
from moetool.errors import InputError

_PICKLED = (
    "The weights on the Hub are pickled, and were not read: their headers are only read from a local "
    "copy."
)


class AskedSource(StrEnum):
    """The source that figures are asked from.

    Attributes:
        AUTO: The skeleton, compared with the headers of the files where there are any.
        HEADERS: Only the headers, without torch.
        SKELETON: Only the skeleton, without reading any weight file.
    """

    AUTO = "auto"
    HEADERS = "headers"
    SKELETON = "skeleton"


@dataclass(frozen=True)
class Subject:
    """A model before anything is counted.

    Attributes:
        model: The name it was asked for by.
        config: Its config.json.
        label: That config.json, for error messages.
        headers: Of its weight files; None if there are none, or if they were not asked for.
        code: The folder or Hub id that may hold Python code for the model; None if there is none.
        revision: The commit on the Hub; None elsewhere.
        published: Its entry in the catalogue, if it has one.
        is_from_catalogue: Whether the configuration is the catalogue's, which for some models is
            that of another class of the same shapes.
        notes: About files that could not be read.
        layout: The format of its files, if it is not Hugging Face's. Then `config` has facts from
            other files, and no model can be built.
        adapter: The configuration of an adapter; None for models.
        expert_sources: The models that mergekit made the experts of; None if it did not.
    """

    model: str
    config: Mapping[str, object]
    label: str
    headers: TensorHeaders | None
    code: str | None
    revision: str | None
    published: PublishedModel | None = None
    is_from_catalogue: bool = False
    notes: tuple[str, ...] = ()
    layout: Layout | None = None
    adapter: Mapping[str, object] | None = None
    expert_sources: ExpertSources | None = None

    @property
    def stated_by(self) -> str | None:
        """The name of the file that the configuration is from; None if there is none."""
        if self.layout is None:
            return "config.json"
        if self.adapter is not None and self.config:
            return "the base model's config.json"
        return self.layout.stated_by

    def check_buildable(self) -> None:
        """Check that the configuration is that of a model, from which a skeleton can be built.

        Raises:
            InputError: There is no config.json.
        """
        if self.layout is not None:
            raise InputError(
                f"'{self.model}' is {self.layout.name}: there is no config.json to build a model from.",
                hint=f"{self.layout.convert}; `moetool inspect` counts its parameters.",
            )


def find_subject(
    reference: ModelReference, *, source: AskedSource, revision: str | None
) -> Subject:
    """Return a model's configuration, and its headers if they are asked for and there are any.

    Args:
        reference: What the user named.
        source: The source that figures are asked from.
        revision: Branch, tag or commit, for Hub ids.

    Raises:
        InputError: The configuration or a file is missing or broken, or the Hub can't be reached.
    """
    match reference.kind:
        case ModelKind.PUBLISHED:
            subject = _find_in_catalogue(reference.text, reference.text.lower())
        case ModelKind.HUB:
            try:
                subject = _find_on_hub(reference, revision=revision, source=source)
            except UnreachableHubError as error:
                subject = _replace_hub(error, reference, revision=revision, source=source)
        case ModelKind.GGUF | ModelKind.HUB_GGUF:
            raise InputError(
                f"'{reference.text}' is a GGUF model, without a config.json of transformers.",
                hint="Name the original checkpoint; inspect, memory-estimate and route-trace read GGUF "
                "files.",
            )
        case ModelKind.CONFIG:
            assert reference.path is not None
            subject = Subject(
                model=reference.text,
                config=read_json(reference.path, missing=f"'{reference.path}' is not a file."),
                label=str(reference.path),
                headers=None,
                code=str(reference.path.parent) if reference.path.name == "config.json" else None,
                revision=None,
            )
        case ModelKind.WEIGHTS:
            assert reference.path is not None
            subject = _as_subject(reference, read_loose_file(reference.path))
        case _:
            assert reference.path is not None
            if not os.path.isfile(reference.path / "config.json"):
                if source is AskedSource.SKELETON:
                    raise without_config(reference.path)
                return _as_subject(reference, read_without_config(reference.path))
            subject = _find_in_folder(reference.text, reference.path, source=source)
    if source is AskedSource.SKELETON:
        subject.check_buildable()
    if source is AskedSource.HEADERS and subject.headers is None:
        raise InputError(
            f"'{reference.text}' has no weight files with readable headers.",
            hint="Leave out --source to count by the configuration."
            if reference.kind is not ModelKind.PUBLISHED
            else f"Name its repository on the Hub, {reference.hub_id}, or leave out --source.",
        )
    return subject


def _as_subject(reference: ModelReference, found: FoundCheckpoint) -> Subject:
    return Subject(
        model=reference.text,
        config=found.config,
        label=reference.text,
        headers=found.headers,
        code=None,
        revision=None,
        notes=found.notes,
        layout=found.layout,
        adapter=found.adapter,
    )


def _find_in_catalogue(model: str, name: str, *, notes: tuple[str, ...] = ()) -> Subject:
    return Subject(
        model=model,
        config=read_published_config(name),
        label=name,
        headers=None,
        code=None,
        revision=None,
        published=read_published_models()[name],
        is_from_catalogue=True,
        notes=notes,
    )


def _replace_hub(
    error: UnreachableHubError,
    reference: ModelReference,
    *,
    revision: str | None,
    source: AskedSource,
) -> Subject:
    """Return the catalogue's entry for a Hub repository that can't be reached.

    Raises:
        UnreachableHubError: The catalogue does not have it, or something was asked for that only
            the repository has: a revision, or headers.
    """
    assert reference.hub_id is not None
    name = find_published_name(reference.hub_id)
    if name is None or not read_published_models()[name].can_be_counted:
        raise error
    if revision is not None or source is AskedSource.HEADERS:
        asked = "--source" if revision is None else "the revision"
        raise UnreachableHubError(
            error.message,
            hint=f"Leave out {asked} to use the catalogue's configuration, or name a local folder.",
            facts=error.facts,
        ) from error
    note = (
        f"The Hub could not be reached: the configuration is the catalogue's ({name}), and the "
        "files on the Hub were not looked at."
    )
    return _find_in_catalogue(reference.text, name, notes=(note,))


def _find_in_folder(model: str, folder: Path, *, source: AskedSource) -> Subject:
    config = read_json(folder / "config.json", missing=f"'{folder}' holds no config.json.")
    headers = None if source is AskedSource.SKELETON else _read_headers(folder)
    return Subject(
        model=model,
        config=config,
        label=str(folder / "config.json"),
        headers=headers,
        code=str(folder),
        revision=None,
        expert_sources=read_expert_sources(folder),
    )


def _read_headers(folder: Path) -> TensorHeaders | None:
    """Return the tensors next to a config.json: in weight files, or as torch's checkpoints."""
    headers = read_local_headers(folder)
    if headers is None and os.path.isfile(folder / ".metadata"):
        return read_distributed(folder).headers
    return headers


def _find_on_hub(
    reference: ModelReference, *, revision: str | None, source: AskedSource
) -> Subject:
    from moetool.checkpoint.headers.hub_headers import read_hub_headers

    hub_id = reference.hub_id
    assert hub_id is not None
    wants_headers = source is not AskedSource.SKELETON
    notes: list[str] = []
    try:
        found = read_hub_headers(hub_id, revision=revision, with_weights=wants_headers)
    except PickledWeightsError:
        if source is AskedSource.HEADERS:
            raise
        found = read_hub_headers(hub_id, revision=revision, with_weights=False)
        notes.append(_PICKLED)
    if found.is_cached:
        has_weights = found.headers is not None or not wants_headers
        notes.append(
            "The Hub could not be reached: these figures are from the local cache"
            f"{'.' if has_weights else ', which has no weights.'}"
        )
    name = find_published_name(hub_id)
    return Subject(
        model=reference.text,
        config=found.config,
        label=f"{hub_id}/config.json",
        headers=found.headers,
        code=hub_id,
        revision=found.commit,
        published=None if name is None else read_published_models()[name],
        notes=tuple(notes),
    )
