"""Skeletons of a model, as scenarios would load it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from moetool.anatomy.config_fields import find_context
from moetool.anatomy.headers.published_format import find_quantization
from moetool.anatomy.skeleton.build import (
    build_model,
    build_skeleton,
    find_dtype,
    find_whole_class,
    refuse_unbuildable,
)
from moetool.anatomy.skeleton.copies import copy_skeleton
from moetool.anatomy.skeleton.dtype_plan import hold_as_loaded
from moetool.checkpoint.config import make_config
from moetool.checkpoint.subject import Subject
from moetool.errors import UsageError
from moetool.memory.loaded.cache_refusals import refuse_quantized_cache
from moetool.memory.loaded.rotary_frequencies import laying_out_frequencies_once
from moetool.memory.scenario import CacheKind, Dtype, Scenario, Task
from moetool.quantizing.kinds import Quantization
from moetool.simulation.attention.flash import is_flash, set_flash

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class SkeletonBuilder:
    """Builds the skeletons of one model.

    Attributes:
        subject: The model.
        trust_remote_code: Run its repository's own code.
    """

    subject: Subject
    trust_remote_code: bool = False
    # Copied and never changed: building takes several times as long as copying.
    _in_dtypes: dict[torch.dtype, PreTrainedModel] = field(
        default_factory=dict, repr=False, compare=False
    )

    def make_config(self) -> PreTrainedConfig:
        """Return the model's configuration as transformers reads it.

        Raises:
            InputError: It isn't a configuration, or its numbers are implausible.
        """
        self.subject.check_buildable()
        return make_config(
            self.subject.config,
            name=self.subject.model,
            label=self.subject.label,
            code=self.subject.code,
            revision=self.subject.revision,
            trust_remote_code=self.trust_remote_code,
            by_architecture=True,
        )

    def build(self, scenario: Scenario, *, device: str = "meta") -> PreTrainedModel:
        """Return the model that a scenario runs, in evaluation mode.

        That is everything in the checkpoint, including the towers of a multimodal model, if it can
        generate; otherwise the language model. Parameters have the dtypes in which transformers
        would hold them.

        Args:
            device: The model's device; on others than `meta` its weights are random.

        Raises:
            InputError: No model can be built from the configuration.
            UntraceableError: transformers has no class for it.
            UsageError: The model can't be run as the scenario asks.
        """
        if scenario.quantization is not Quantization.NONE:
            self._refuse_quantized()
        dtype = self.find_dtype(scenario)
        if device != "meta" or find_quantization(self.subject) is not None:
            # transformers won't quantize it again, so that one copy is all that is asked for.
            skeleton = self._build_in(dtype, device=device)
        else:
            if dtype not in self._in_dtypes:
                self._in_dtypes[dtype] = self._build_in(dtype, device=device)
            skeleton = copy_skeleton(self._in_dtypes[dtype])
        if is_flash(scenario.attention) and dtype is torch.float32:
            raise UsageError(
                f"Flash attention takes bfloat16 or float16, and {self.subject.model} is loaded in "
                "float32.",
                hint="Give --dtype bfloat16, or choose --attention sdpa.",
            )
        _set_implementations(skeleton, scenario, model=self.subject.model)
        _refuse_generation(skeleton, scenario, model=self.subject.model)
        if scenario.cache is CacheKind.QUANTIZED:
            refuse_quantized_cache(skeleton, scenario, model=self.subject.model)
        if scenario.quantization is not Quantization.NONE:
            from moetool.quantizing.on_meta.skeleton import quantize_skeleton

            quantize_skeleton(
                skeleton,
                scenario.quantization,
                is_double_quantized=scenario.is_double_quantized,
                experts=scenario.experts,
            )
        return skeleton

    def _build_in(self, dtype: torch.dtype, *, device: str) -> PreTrainedModel:
        """Return the model in a dtype, as far as it is the same in all scenarios."""
        config = self.make_config()
        with refuse_unbuildable(
            self.subject.model, config, trust_remote_code=self.trust_remote_code
        ):
            skeleton = self._build(config, dtype, device=device)
        hold_as_loaded(skeleton, dtype)
        return skeleton

    def clip_scenario(self, scenario: Scenario, sizes: Collection[str]) -> Scenario:
        """Return a scenario with some sizes reduced to what the model's context allows.

        Args:
            sizes: Those of `SIZES_IN_CONTEXT` that may be reduced; the others stay.
        """
        most_tokens = self.most_tokens
        return scenario if most_tokens is None else scenario.clip(most_tokens, sizes=sizes)

    def refuse_scenario(self, scenario: Scenario) -> None:
        """Refuse a scenario that is past the model's context.

        Raises:
            UsageError: The scenario has more tokens than the context.
        """
        context = self.context
        num_tokens = scenario.num_prompt_tokens + scenario.num_new_tokens
        if context is not None and num_tokens > context and not self._config.is_encoder_decoder:
            raise UsageError(
                f"{scenario.num_prompt_tokens:,} prompt and {scenario.num_new_tokens:,} new tokens "
                f"are past the context of {self.subject.model}, {context:,} tokens.",
                hint=f"Give --prompt-tokens {context - scenario.num_new_tokens} or fewer."
                if scenario.num_new_tokens < context
                else "Give fewer --new-tokens.",
            )

    @property
    def context(self) -> int | None:
        """The most tokens of a sequence; None if the model doesn't say."""
        return find_context(self._config)

    @property
    def most_tokens(self) -> int | None:
        """The most tokens of a run; None if the model doesn't limit them."""
        return None if self._config.is_encoder_decoder else self.context

    @cached_property
    def _config(self) -> PreTrainedConfig:
        # Only read: building a model changes its configuration, and makes its own.
        return self.make_config()

    def find_dtype(self, scenario: Scenario) -> torch.dtype:
        """Return the dtype in which a scenario loads weights that no quantization holds.

        Raises:
            UsageError: The scenario doesn't name one, and neither does the configuration.
        """
        if scenario.dtype != Dtype.AUTO:
            return _DTYPES[scenario.dtype]
        dtype = find_dtype(self._config, headers=self.subject.headers)
        if dtype is None:
            raise UsageError(
                f"The config.json of {self.subject.model} doesn't say which dtype its weights are.",
                hint="Give --dtype, such as bfloat16.",
            )
        return dtype

    def _build(
        self, config: PreTrainedConfig, dtype: torch.dtype, *, device: str
    ) -> PreTrainedModel:
        whole = find_whole_class(config)
        # If config.json names no class, this one may be for the text model's configuration only.
        takes_config = whole is not None and whole.config_class is type(config)
        if whole is not None and takes_config and whole.can_generate():
            with laying_out_frequencies_once() if device == "meta" else nullcontext():
                return build_model(whole, config, dtype=dtype, device=device)
        for holder in (config, config.get_text_config()):
            holder.dtype = dtype
        skeleton = build_skeleton(config, trust_remote_code=self.trust_remote_code, device=device)
        skeleton.train(False)
        return skeleton

    def _refuse_quantized(self) -> None:
        method = find_quantization(self.subject)
        if method is not None:
            raise UsageError(
                f"The weights are quantized already ({method.partition(',')[0]}): transformers won't "
                "quantize them again.",
                hint="Leave out --quantization, or name a checkpoint in bfloat16.",
            )


def _set_implementations(skeleton: PreTrainedModel, scenario: Scenario, *, model: str) -> None:
    for what, option, name, choose in (
        ("attention", "--attention", scenario.attention, partial(_set_attention, skeleton)),
        (
            "experts",
            "--experts-implementation",
            scenario.experts_implementation,
            partial(_set_experts, skeleton),
        ),
    ):
        if name is None:
            continue
        try:
            choose(name)
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"{model} can't run with '{name}' {what}.",
                hint=f"Leave out {option} to use the one that transformers chooses.",
            ) from error


def _set_attention(skeleton: PreTrainedModel, name: str) -> None:
    if is_flash(name):
        set_flash(skeleton, name)
    else:
        skeleton.set_attn_implementation(name)


def _set_experts(skeleton: PreTrainedModel, name: str) -> None:
    if not skeleton._can_set_experts_implementation():
        raise ValueError(name)
    skeleton.set_experts_implementation(name)


def _refuse_generation(skeleton: PreTrainedModel, scenario: Scenario, *, model: str) -> None:
    if scenario.task is Task.GENERATE and not skeleton.can_generate():
        raise UsageError(
            f"{model} doesn't generate text.",
            hint="Give --task forward to estimate one call.",
        )
