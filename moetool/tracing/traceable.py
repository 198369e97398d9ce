"""Checks on a skeleton that a checkpoint can be traced, before its weights load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moetool.checkpoint.files import Checkpoint
from moetool.checkpoint.stated.quantization import find_method
from moetool.registration import METHOD
from moetool.trace.model_counts import ModelCounts
from moetool.tracing.options import TraceOptions
from moetool.tracing.parallel.model_sharing import ModelSharing
from moetool.tracing.prompts.tokens import count_embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Traceable:
    """Facts that a skeleton shows about a checkpoint that can be traced.

    Attributes:
        auto_class: Name of transformers' class that loads it.
        inexact_because: Why its trace will not be exact; empty if it will be.
        num_token_ids: Token ids of its vocabulary; None if unknown.
        counted: Counts of the whole checkpoint, and notes on unknown ones.
    """

    auto_class: str
    inexact_because: tuple[str, ...]
    num_token_ids: int | None
    counted: tuple[ModelCounts, tuple[str, ...]]


def check_traceable(
    config: PreTrainedConfig,
    checkpoint: Checkpoint,
    options: TraceOptions,
    *,
    device_map: str | dict[str, Any] | None,
    sharing: ModelSharing | None,
) -> Traceable:
    """Return what the skeleton shows, or refuse what could only fail after minutes of loading.

    Args:
        config: The checkpoint's configuration.
        checkpoint: Its files.
        options: Of the run.
        device_map: As `choose_device_map` returns it; None if processes share the model.
        sharing: The way in which processes share it; None if each has its own.

    Raises:
        MoetoolError: The model can't be traced, or not with these options.
    """
    from moetool.anatomy.skeleton.build import build_skeleton, find_auto_class, refuse_unbuildable
    from moetool.inspection.sources.from_skeleton import count_checkpoint
    from moetool.tracing.running.devices import check_device_map

    auto_class = find_auto_class(config)
    with refuse_unbuildable(checkpoint.name, config, trust_remote_code=options.trust_remote_code):
        skeleton = build_skeleton(config, trust_remote_code=options.trust_remote_code)
    reasons = check_recordable(skeleton, options)
    if device_map is not None and options.device_map is not None:
        check_device_map(device_map, skeleton, name=options.device_map)
    traceable = Traceable(
        auto_class=auto_class,
        inexact_because=reasons,
        num_token_ids=count_embeddings(skeleton),
        counted=count_checkpoint(config, skeleton),
    )
    if options.quantization is not None:
        from moetool.tracing.quantization import check_loadable

        check_loadable(
            config,
            skeleton,
            options.quantization,
            name=checkpoint.name,
            device_map=device_map,
            dtype=options.dtype,
        )
    elif find_method(config) == METHOD:
        from moetool.quantizing.checks import check_requantized

        check_requantized(config, skeleton, device_map=device_map)
    if sharing is not None:
        sharing.check_model(skeleton, config, name=checkpoint.name, dtype=options.dtype)
    return traceable


def check_recordable(model: PreTrainedModel, options: TraceOptions) -> tuple[str, ...]:
    """Return why a trace of a model will not be exact, or refuse a model that can't be traced."""
    from moetool.tracing.recording.saliency.meter import check_saliency
    from moetool.tracing.recording.scopes import find_recorded_model
    from moetool.tracing.running.generation import check_can_generate
    from moetool.tracing.running.passes import check_can_read

    if options.generation is not None:
        check_can_generate(model)
    recorded = find_recorded_model(
        model, layers=options.layers, allow_inexact=options.allow_inexact
    )
    if options.with_saliency:
        check_saliency(type(model).__name__, recorded.layers)
    if options.generation is None:
        check_can_read(recorded)
    reasons = dict.fromkeys(layer.rule.inexact_because for layer in recorded.layers)
    return tuple(reason for reason in reasons if reason)
