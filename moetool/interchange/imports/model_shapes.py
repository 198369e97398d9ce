"""Shapes of a model's routed layers, read off the skeleton that its configuration builds."""

from __future__ import annotations

from moetool.checkpoint.reference import ModelKind, resolve_model
from moetool.checkpoint.subject import AskedSource, find_subject
from moetool.errors import DenseModelError, InputError
from moetool.interchange.imports.runs import DECODER
from moetool.interchange.imports.shapes import GivenShapes


def read_model_shapes(model: str) -> GivenShapes:
    """Return the number of layers of a model, and its routed ones with their experts and top-k.

    No weights are read.

    Args:
        model: A folder, a config.json, a Hub id, a catalogue name or `demo`.

    Raises:
        InputError: There is no such model, or its configuration can't be used.
        UntraceableError: This transformers has no class for it.
        DenseModelError: It has no routed layers.
    """
    reference = resolve_model(model)
    if reference.kind is ModelKind.REPORTED:
        raise InputError(
            f"{model} is known from reports alone: its layers aren't known.",
            hint="Give --layers, --num-layers, --num-experts and --top-k by hand.",
        )
    revision = reference.choose_revision(None)
    subject = find_subject(reference, source=AskedSource.SKELETON, revision=revision)
    # Imported late because it imports torch: errors in the configuration are reported at once.
    from moetool.anatomy.config_fields import find_num_layers
    from moetool.anatomy.skeleton.build import build_whole_skeleton, refuse_unbuildable
    from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
    from moetool.checkpoint.config import make_config
    from moetool.inspection.sources.from_skeleton import count_model

    config = make_config(
        subject.config,
        name=subject.model,
        label=subject.label,
        code=subject.code,
        revision=subject.revision,
        trust_remote_code=False,
        by_architecture=True,
    )
    with refuse_unbuildable(subject.model, config, trust_remote_code=False):
        skeleton = RoutedSkeleton.of(build_whole_skeleton(config))
    routed: dict[int, tuple[int | None, int | None]] = {
        layer.layer: (layer.num_experts, skeleton.top_k[layer])
        for layer in skeleton.text_layers
        if layer.stack == DECODER
    }
    if not routed:
        raise DenseModelError(
            f"{model} has no routed layers in its decoder.",
            hint="Name the Mixture-of-Experts model that was recorded.",
        )
    published = subject.published if subject.is_from_catalogue else None
    counts, notes = count_model(
        lambda: skeleton.model, extra=published.extra_parameters if published else ()
    )
    return GivenShapes(
        routed=routed,
        num_layers=find_num_layers(subject.config)
        or find_num_layers(config.get_text_config().to_dict()),
        model=subject.model,
        model_type=config.model_type,
        model_counts=counts,
        notes_on_counts=notes,
        notes=subject.notes,
    )
