"""Size of a routed expert of each layer, from a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping

from moetool.catalogue.gpus import read_gpus
from moetool.catalogue.names import DEMO, find_published_name
from moetool.checkpoint.reference import ModelKind, ModelReference, resolve_model
from moetool.checkpoint.subject import AskedSource, find_subject
from moetool.errors import InputError, MoetoolError
from moetool.trace.reading.layer_shapes import Place

# Looked at without asking the network.
_LOCAL = (ModelKind.FOLDER, ModelKind.CONFIG, ModelKind.PUBLISHED)


def read_expert_bytes(model: str) -> Mapping[Place, int]:
    """Return the bytes of an expert of each routed layer, in the dtype that the model is loaded in.

    Raises:
        InputError: There is no such model, it can't be built, or the size of its weights is unknown.
    """
    return _measure(resolve_model(model))


def find_expert_bytes(model: str | None) -> Mapping[Place, int] | None:
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
        if reference.kind not in _LOCAL and reference.text != DEMO:
            return None
        return _measure(reference)
    except (MoetoolError, OSError):
        return None


def _measure(reference: ModelReference) -> Mapping[Place, int]:
    # Imported late because they import torch.
    from moetool.memory.estimate_scenario import CALIBRATED_GPU
    from moetool.memory.loaded.loaded_model import ModelLoader
    from moetool.memory.loaded.skeletons import SkeletonBuilder
    from moetool.memory.offload.expert_bytes import list_layer_experts
    from moetool.memory.scenario import Scenario

    revision = reference.choose_revision(None)
    subject = find_subject(reference, source=AskedSource.AUTO, revision=revision)
    builder = SkeletonBuilder(subject, trust_remote_code=False)
    held = ModelLoader(builder, read_gpus()[CALIBRATED_GPU]).load(Scenario()).held
    if held is None:
        raise InputError(
            f"The size of an expert of '{reference.text}' is unknown: its weights are stored in a "
            "format whose size on a GPU is unknown.",
            hint="Give the size with --expert-bytes.",
        )
    sizes = {
        (experts.layer.stack, experts.layer.layer): experts.num_bytes // experts.layer.num_experts
        for experts in list_layer_experts(held)
    }
    if not sizes:
        raise InputError(
            f"'{reference.text}' has no routed experts.", hint="Name a Mixture-of-Experts model."
        )
    return sizes
