"""Description of a run, as far as it is known before the first batch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import moetool
from moetool.trace.metadata import TraceMetadata
from moetool.trace.model_counts import ModelCounts
from moetool.tracing.options import TraceOptions
from moetool.tracing.prompts.prompts import Prompt, hash_prompts
from moetool.tracing.quantization import describe_quantization
from moetool.tracing.running.devices import name_devices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LIBRARIES = ("torch", "transformers", "accelerate", "numpy", "pyarrow")


def describe_run(
    model: PreTrainedModel,
    options: TraceOptions,
    *,
    name: str,
    revision: str | None,
    auto_class: str | None,
    prompts: Sequence[Prompt],
    counted: tuple[ModelCounts, tuple[str, ...]],
    parallel_size: int | None = None,
) -> TraceMetadata:
    """Return the facts about a run that are known before its first batch.

    Args:
        model: The loaded model.
        options: Of the run.
        name: The model's name.
        revision: Commit hash on the Hub; None if there is none.
        auto_class: Name of transformers' class that loaded it; None if unknown.
        prompts: All that are traced.
        counted: Counts of the model, and notes on unknown ones.
        parallel_size: Number of processes that share the model; None if none do.
    """
    config = model.config
    text_config = config.get_text_config()
    generation = options.generation
    counts, notes = counted
    return TraceMetadata(
        moetool=moetool.__version__,
        model=name,
        revision=revision,
        model_type=config.model_type,
        auto_class=auto_class,
        dtype=str(model.dtype).removeprefix("torch."),
        device=name_devices(model),
        device_map=options.device_map,
        parallel=None if options.parallel is None else str(options.parallel),
        parallel_size=parallel_size,
        attention_implementation=getattr(text_config, "_attn_implementation", None),
        **{
            "experts_implementation": getattr(text_config, "_experts_implementation", None),
            **describe_quantization(model),
        },
        special_tokens=options.special_tokens,
        max_prompt_tokens=options.max_prompt_tokens,
        batch_size=options.batch_size,
        max_batch_tokens=options.max_batch_tokens,
        prompts_sha256=hash_prompts(prompts),
        max_new_tokens=generation.max_new_tokens if generation else 0,
        temperature=generation.temperature if generation else None,
        top_p=generation.top_p if generation else None,
        seed=generation.seed if generation and not generation.is_greedy else None,
        cache=generation.cache if generation else None,
        notes=notes,
        **vars(counts),
        versions={library: version(library) for library in _LIBRARIES},
    )
