"""Run a skeleton as it would run on a GPU, and record its memory."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.simulation.assisted.drafting import Draft, drafting, join_models
from moetool.simulation.attention.flash import standing_in_for_flash
from moetool.simulation.attention.flex import standing_in_for_flex
from moetool.simulation.caches.offloaded import SideStream, count_host_bytes
from moetool.simulation.caches.preparing import preparing_cache
from moetool.simulation.loops.shortened_loops import ShortenedLoops
from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.cache_tensors import find_cache_blocks, find_cache_tensors
from moetool.simulation.memory.ordinary_tokens import find_ordinary_token
from moetool.simulation.memory.seen_runs import GivenTokens, SeenRuns
from moetool.simulation.memory.timeline import Call, Timeline
from moetool.simulation.meta.encoders import encoding_inside_model
from moetool.simulation.meta.generation import StopSimulation, without_data
from moetool.simulation.meta.known_values import KnownValues
from moetool.simulation.meta.meta_kernels import MetaKernels
from moetool.simulation.meta.replaced import replacing_forward
from moetool.simulation.meta.set_order import going_through_sets_in_order
from moetool.simulation.repeated.repeated_layers import RepeatedLayers
from moetool.simulation.repeated.repeated_parts import RepeatedParts
from moetool.simulation.run_options import DEFAULT_BLOCK_BUDGET as DEFAULT_BLOCK_BUDGET
from moetool.simulation.run_options import BlockBudget as BlockBudget
from moetool.simulation.run_options import RunOptions as RunOptions


class _CallsDone(StopSimulation):
    """The requested number of calls was made."""


class MemoryRun:
    """Runs a skeleton without data, under `torch.inference_mode`, and returns its timeline.

    `generate` is transformers' own, with everything it does around the model. Its calls get ordinary
    tokens, and no sequence ends early. Layers that are the same run once.

    Args:
        skeleton: The model on the meta device, in evaluation mode. It is left as it was.
        options: Options of the run.
        routing_modules: The modules whose second and third arguments are the experts that routers
            chose and their weights.
        assistant: The model that drafts tokens for `generate`; None to generate without one.
        seen: Earlier runs of the same model on equal terms, to which this one's are added.
        is_each_layer_run: Also run layers that are the same as one already run. It takes longer and
            gives the same timeline; changes that layers make to themselves then remain.
        on_step: Receives a few words on each pass through the model and each layer in it.
    """

    def __init__(
        self,
        skeleton: PreTrainedModel,
        options: RunOptions,
        *,
        routing_modules: tuple[nn.Module, ...] = (),
        assistant: PreTrainedModel | None = None,
        seen: SeenRuns | None = None,
        is_each_layer_run: bool = False,
        on_step: Callable[[str], None] | None = None,
    ) -> None:
        self._skeleton = skeleton
        self._assistant = assistant
        self._options = options
        self._routing_modules = routing_modules if options.is_routing_kept else ()
        self._token_id = find_ordinary_token(skeleton.config)
        self._seen = SeenRuns() if seen is None else seen
        self._is_each_layer_run = is_each_layer_run
        self._outcomes = self._seen.outcomes
        self._on_step = on_step
        self._num_passes = 0

    @property
    def repeated_layers(self) -> frozenset[str]:
        """Paths of the layers that did not run in one call or more."""
        return frozenset(self._outcomes.repeated_paths)

    @property
    def can_start_later(self) -> bool:
        """Whether a step is the same if the tokens generated before it are given from the start.

        With a static cache it is not: its length is that of the whole generation.
        """
        return not self._options.cache.is_static

    def generate(
        self,
        *,
        num_prompt_tokens: int,
        num_new_tokens: int,
        num_tokens_before: int = 0,
        num_tokens_after: int = 0,
        num_calls: int | None = None,
    ) -> Timeline:
        """Return the timeline of `generate`, which calls the model once for each new token.

        Args:
            num_prompt_tokens: Length of the prompt.
            num_new_tokens: Number of tokens to generate.
            num_tokens_before: Number of tokens generated earlier, which the first call reads at the
                end of the prompt or, in an encoder-decoder, as the decoder's.
            num_tokens_after: Number of tokens that would be generated afterwards. A search with
                beams makes room for them at the start.
            num_calls: Stop after this number of calls. The timeline then ends with one more call,
                which is empty. None for all calls.

        Raises:
            CantSimulate: The model's code needs data, or inputs other than token ids.
            TooManyOperations: A layer goes from token to token, which the options don't allow.
        """
        if self._options.num_beams > 1 and num_tokens_after:
            timeline = self.generate(
                num_prompt_tokens=num_prompt_tokens,
                num_new_tokens=num_new_tokens + num_tokens_after,
                num_tokens_before=num_tokens_before,
                num_calls=num_calls or num_new_tokens,
            )
            return timeline if num_calls else replace(timeline, calls=timeline.calls[:-1])
        num_residual = self._options.cache.count_residual(num_tokens_before)
        options: dict[str, Any] = {"max_new_tokens": num_new_tokens, "disable_compile": True}
        options |= self._options.choose_search()
        if self._assistant is not None:
            options["assistant_model"] = self._assistant
        if self._options.cache.made_by_generate is not None:
            options["cache_implementation"] = self._options.cache.made_by_generate
        generate: Any = self._skeleton.generate
        given = self.count_given(num_prompt_tokens, num_tokens_before)
        is_encoder_decoder = self._skeleton.config.is_encoder_decoder
        if is_encoder_decoder:
            options["decoder_start_token_id"] = self._token_id
        timeline = self._record(
            generate,
            given.num_prompt_tokens,
            options,
            num_decoder_tokens=given.num_decoder_tokens,
            num_calls=num_calls,
            num_residual=0 if is_encoder_decoder else num_residual,
        )
        self._seen.keep(timeline, self._options.batch_size, given)
        return timeline

    def count_given(self, num_prompt_tokens: int, num_tokens_before: int) -> GivenTokens:
        """Return the tokens that the first call reads, as the arguments of `generate` say."""
        return GivenTokens.after(
            num_prompt_tokens,
            num_tokens_before,
            is_encoder_decoder=self._skeleton.config.is_encoder_decoder,
        )

    def forward(self, *, num_prompt_tokens: int) -> Timeline:
        """Return the timeline of one call, with the logits of every position.

        Raises:
            CantSimulate: The model's code needs data, or inputs other than token ids.
            TooManyOperations: A layer goes from token to token, which the options don't allow.
        """
        return self._record(self._call, num_prompt_tokens, {})

    def read(self, *, num_prompt_tokens: int) -> Timeline:
        """Return the timeline of one call without a cache, for the last position's logits.

        Raises:
            CantSimulate: The model's code needs data, or inputs other than token ids.
            TooManyOperations: A layer goes from token to token, which the options don't allow.
        """
        return self._record(
            self._call, num_prompt_tokens, {"use_cache": False, "logits_to_keep": 1}
        )

    def _begin_pass(self) -> None:
        self._num_passes += 1
        if self._on_step is not None:
            self._on_step(f"pass {self._num_passes:,}")

    def _say_layer(self, path: str) -> None:
        # The encoder runs before the first call of the whole model.
        if self._on_step is not None:
            self._on_step(f"pass {max(self._num_passes, 1):,}, {path}")

    def _call(self, input_ids: torch.Tensor, **options: Any) -> Any:
        accepted = inspect.signature(type(self._skeleton).forward).parameters
        given = {name: value for name, value in options.items() if name in accepted}
        return self._skeleton(input_ids, **given)

    def _record(
        self,
        run: Callable[..., Any],
        num_prompt_tokens: int,
        options: dict[str, Any],
        *,
        num_decoder_tokens: int = 0,
        num_calls: int | None = None,
        num_residual: int = 0,
    ) -> Timeline:
        skeleton, batch_size = self._skeleton, self._options.batch_size
        models, stream = join_models(skeleton, self._assistant), SideStream()
        modules = self._seen.modules.of(models)
        recorder = AllocationRecorder(
            modules,
            origins=self._seen.origins,
            workspace_bytes=self._options.workspace_bytes,
            lt_workspace_bytes=self._options.lt_workspace_bytes,
            max_blocks_of_layer=None
            if self._options.may_scan
            else self._options.block_budget.allow(num_prompt_tokens),
            stream=stream,
        )
        known = KnownValues(
            token_id=self._token_id,
            num_beams=self._options.num_beams,
            is_routing_balanced=self._options.is_routing_balanced,
        )
        calls, kept = list[Call](), list[torch.Tensor]()
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(MetaKernels())
            stack.enter_context(known)
            stack.enter_context(going_through_sets_in_order(models))
            attention = getattr(skeleton.config.get_text_config(), "_attn_implementation", "")
            stack.enter_context(standing_in_for_flash(attention))
            stack.enter_context(standing_in_for_flex(attention))
            stack.enter_context(
                preparing_cache(skeleton, self._options.cache, stream, num_residual=num_residual)
            )
            if not self._is_each_layer_run and self._options.may_repeat_layers:
                stack.enter_context(
                    RepeatedLayers(
                        modules,
                        observers=[recorder],
                        outcomes=self._outcomes,
                        parts=RepeatedParts(recorder, known, self._outcomes),
                        on_layer=None if self._on_step is None else self._say_layer,
                    )
                )
                if self._assistant is None:
                    loops = ShortenedLoops(modules, recorder, known, lambda: not calls)
                    stack.enter_context(loops)
            stack.enter_context(recorder)
            draft = stack.enter_context(
                drafting(self._assistant, recorder, known, on_call=self._begin_pass)
            )
            stack.enter_context(
                _watching_calls(
                    skeleton, recorder, known, calls, num_calls, draft, on_call=self._begin_pass
                )
            )
            stack.enter_context(encoding_inside_model(skeleton, known))
            for module in self._routing_modules:
                stack.callback(module.register_forward_pre_hook(_keeping_routing(kept)).remove)
            shape = (batch_size, num_prompt_tokens)
            input_ids = torch.zeros(shape, dtype=torch.long, device="meta")
            known.know_filled(input_ids, self._token_id)
            if num_decoder_tokens:
                decoder_ids = torch.zeros(
                    (batch_size, num_decoder_tokens), dtype=torch.long, device="meta"
                )
                known.know_filled(decoder_ids, self._token_id)
                options = {**options, "decoder_input_ids": decoder_ids}
            if self._options.has_padding:
                mask = torch.ones(shape, dtype=torch.long, device="meta")
                values = torch.ones(shape, dtype=torch.long)
                values[0, 0] = 0
                known.know(mask, values)
                options = {**options, "attention_mask": mask}
            result = None
            with suppress(_CallsDone), without_data():
                result = run(input_ids, **options)
            is_cut = num_calls is not None and len(calls) > num_calls
            # Later deaths occur only because the simulation is over.
            end = calls[-1].first_event if is_cut else len(recorder.events)
            timeline = Timeline(
                events=recorder.events.make_table(end),
                origins=self._seen.origins.found,
                calls=tuple(calls),
                workspace_block=recorder.workspace_block,
                lt_workspace_block=recorder.lt_workspace_block,
                loops=tuple(recorder.loops),
            )
            del result
        return timeline


@contextmanager
def _watching_calls(
    skeleton: PreTrainedModel,
    recorder: AllocationRecorder,
    known: KnownValues,
    calls: list[Call],
    num_calls: int | None,
    draft: Draft,
    *,
    on_call: Callable[[], None],
) -> Iterator[None]:
    """Record every call of the skeleton and the contents of its cache.

    A call begins with the draft that it checks, and its cache includes the assistant's. A call after the first `num_calls` raises `_CallsDone`.
    """
    forward = skeleton.forward

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        first_event = draft.begin(len(recorder.events))
        if len(calls) == num_calls:
            calls.append(Call(first_event, first_event, frozenset(), 0))
            raise _CallsDone
        if calls:
            # What changed in the cache since the last call, such as the order of beams.
            given = find_cache_blocks(kwargs, recorder)
            calls[-1] = replace(calls[-1], cache_blocks=calls[-1].cache_blocks.union(given))
        on_call()
        with known.inside_model():
            output = forward(*args, **kwargs)
        blocks = find_cache_blocks(output, recorder)
        calls.append(
            Call(
                first_event=first_event,
                end_event=len(recorder.events),
                cache_blocks=draft.take_held().union(blocks),
                cache_bytes=sum(blocks.values()) + sum(draft.cache.values()),
                host_cache_bytes=count_host_bytes(find_cache_tensors(output)),
                assistant_cache_bytes=sum(draft.cache.values()),
            )
        )
        return output

    with replacing_forward(skeleton, watched):
        yield


def _keeping_routing(kept: list[torch.Tensor]) -> Callable[..., None]:
    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        _, experts, weights = args
        kept.append(experts.to(torch.int32, copy=True))
        kept.append(weights.to(torch.float32, copy=True))

    return keep
