"""Sizes that a model's configuration states, for questions to a trace that doesn't have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

from moetool.anatomy.config_fields import (
    find_hidden_size,
    find_num_expert_groups,
    find_num_layers,
    read_text_config,
)
from moetool.catalogue.names import find_published_name
from moetool.checkpoint.reference import ModelKind, resolve_model
from moetool.checkpoint.subject import AskedSource, find_subject
from moetool.errors import MoetoolError

_DTYPES = ("dtype", "torch_dtype")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Looked at without asking the network.
_LOCAL = (ModelKind.FOLDER, ModelKind.CONFIG, ModelKind.PUBLISHED)


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a model; None where its configuration doesn't state one.

    Attributes:
        num_hidden_layers: Of the text model, dense ones included.
        num_groups: Groups of experts that the router limits its choice to.
        bytes_per_value: Of a hidden state.
    """

    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_groups: int | None = None
    bytes_per_value: int | None = None


def read_model_sizes(model: str | PathLike[str]) -> ModelSizes:
    """Return the sizes of the model that a user names.

    Raises:
        InputError: There is no such model, or its configuration can't be read.
    """
    subject = find_subject(resolve_model(model), source=AskedSource.SKELETON, revision=None)
    return _read_sizes(subject.config)


def find_model_sizes(model: str | None) -> ModelSizes:
    """Return the sizes of the model that a trace names, as far as they are known offline.

    A Hub id has those of the catalogue's model, if it is in there.
    """
    if model is None:
        return ModelSizes()
    try:
        reference = resolve_model(model)
        if reference.kind is ModelKind.HUB and reference.hub_id is not None:
            name = find_published_name(reference.hub_id)
            reference = reference if name is None else resolve_model(name)
        if reference.kind not in _LOCAL:
            return ModelSizes()
        subject = find_subject(reference, source=AskedSource.SKELETON, revision=None)
    except (MoetoolError, OSError):
        return ModelSizes()
    return _read_sizes(subject.config)


def _read_sizes(config: Mapping[str, object]) -> ModelSizes:
    text_config = read_text_config(config)
    dtypes = (holder.get(name) for holder in (text_config, config) for name in _DTYPES)
    dtype = next((dtype for dtype in dtypes if isinstance(dtype, str)), "")
    return ModelSizes(
        hidden_size=find_hidden_size(config),
        num_hidden_layers=find_num_layers(config),
        num_groups=find_num_expert_groups(config),
        bytes_per_value=_BYTES.get(dtype),
    )
