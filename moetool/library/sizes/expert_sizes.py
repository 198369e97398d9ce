"""Size of a routed expert of each layer, from a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike

from moetool.catalogue.gpus import read_gpus
from moetool.catalogue.names import find_published_name
from moetool.checkpoint.reference import ModelKind, ModelReference, resolve_model
from moetool.checkpoint.subject import AskedSource, find_subject
from moetool.errors import InputError, MoetoolError
from moetool.trace.reading.layer_shapes import Place

# Looked at without asking the network.
_LOCAL = (ModelKind.FOLDER, ModelKind.CONFIG, ModelKind.PUBLISHED)


@dataclass(frozen=True)
class ExpertSize:
    """An expert of a routed layer.

    Attributes:
        num_bytes: In the dtype that the model is loaded in.
        num_experts: Experts of the layer, without identity experts.
    """

    num_bytes: int
    num_experts: int


def read_expert_sizes(model: str | PathLike[str]) -> Mapping[Place, ExpertSize]:
    """Return the size of an expert of each routed layer.

    Raises:
        InputError: There is no such model, it can't be built, or the size of its weights is unknown.
    """
    reference = resolve_model(model)
    if reference.kind is ModelKind.REPORTED:
        raise InputError(
            f"'{model}' is known from reports alone: the size of its experts is unknown.",
            hint="Give the size with --expert-bytes.",
        )
    return _measure(reference)


def find_expert_sizes(model: str | None) -> Mapping[Place, ExpertSize] | None:
    """Return the sizes of the model that a trace names, if they are known offline; None else.

    A Hub id has those of the catalogue's model, if it is in there.
    """
    if model is None:
        return None
    try:
        reference = resolve_model(model)
        if reference.kind is ModelKind.HUB and reference.hub_id is not None:
            name = find_published_name(reference.hub_id)
            reference = reference if name is None else resolve_model(name)
        if reference.kind not in _LOCAL:
            return None
        return _measure(reference)
    except (MoetoolError, OSError):
        return None


def _measure(reference: ModelReference) -> Mapping[Place, ExpertSize]:
    # Imported late because they import torch.
    from moetool.memory.estimate_scenario import CALIBRATED_GPU
    from moetool.memory.loaded.loaded_model import ModelLoader
    from moetool.memory.loaded.skeletons import SkeletonBuilder
    from moetool.memory.offload.expert_bytes import list_layer_experts
    from moetool.memory.scenario import Scenario

    revision = reference.choose_revision(None)
    subject = find_subject(reference, source=AskedSource.AUTO, revision=revision)
    builder = SkeletonBuilder(subject, trust_remote_code=False)
    held = ModelLoader(builder, read_gpus()[CALIBRATED_GPU]).load(Scenario()).routed_held
    if held is None:
        raise InputError(
            f"The size of an expert of '{reference.text}' is unknown: its weights are stored in a "
            "format whose size on a GPU is unknown.",
            hint="Give the size with --expert-bytes.",
        )
    sizes = {
        (experts.layer.stack, experts.layer.layer): ExpertSize(
            experts.count_read_bytes(num_experts=1), experts.layer.num_experts
        )
        for experts in list_layer_experts(held)
    }
    if not sizes:
        raise InputError(
            f"'{reference.text}' has no routed experts.", hint="Name a Mixture-of-Experts model."
        )
    return sizes
