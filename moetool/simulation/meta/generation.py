"""Prefill and decoding steps of a skeleton, called as `generate` calls them on a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from moetool.anatomy.caches import find_cache_keyword, find_caches, name_fields
from moetool.anatomy.routing.walk import walk_modules
from moetool.simulation.meta.meta_kernels import MetaKernels

# Parts of torch's messages about values that a meta tensor doesn't have, and what was requested.
_ASKS_FOR_DATA = {
    "torch.nonzero()": "it looks up where values are not zero",
    "item() cannot be called on meta tensors": "it reads a value",
    "out of meta tensor": "it reads values",
}


class CantSimulate(Exception):  # noqa: N818  (control flow, always caught)
    """A model's forward can't run without data.

    Attributes:
        reason: The reason, as part of a sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StopSimulation(Exception):  # noqa: N818
    """Raised by observers to end a simulation. Whoever started it catches it."""


class TooManyOperations(StopSimulation):
    """A layer exceeded its operation budget."""


class SimulatedGeneration:
    """Runs a skeleton's own forward over a prompt, then token by token, without data.

        with SimulatedGeneration(skeleton).ready() as generation:
            generation.prefill(num_prompt_tokens=2048)
            generation.decode()

    Prompts are token ids without an attention mask. Only the last position's logits are requested, if
    the model supports that. An encoder-decoder's prompt goes through its encoder.

    Args:
        skeleton: The model, on the meta device.
        batch_size: Number of sequences.
        is_cache_given: Start with an empty cache instead of letting the model make its own. Some
            models read the prompt's positions unless they are given one.
    """

    def __init__(
        self, skeleton: PreTrainedModel, *, batch_size: int = 1, is_cache_given: bool = False
    ) -> None:
        self._skeleton = skeleton
        self._is_cache_given = is_cache_given
        self._batch_size = batch_size
        self._inputs: dict[str, Any] = {}
        # The cache, by the name of the model's argument.
        self._kept: dict[str, Any] = {}
        parameters = inspect.signature(skeleton.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    @contextmanager
    def ready(self) -> Iterator[SimulatedGeneration]:
        """Put the skeleton's modules into evaluation mode, and back afterwards."""
        in_training = [module for _, module in walk_modules(self._skeleton) if module.training]
        if in_training:
            self._skeleton.train(False)
        try:
            with torch.inference_mode(), MetaKernels():
                yield self
        finally:
            for module in in_training:
                module.training = True

    @property
    def cache(self) -> Any:
        """The cache of the tokens so far; None if the model keeps none."""
        return next(iter(self._kept.values()), None)

    @property
    def can_decode(self) -> bool:
        """Whether the prefill left a cache or an encoder's output to continue from."""
        return self.cache is not None or "encoder_outputs" in self._inputs

    def prefill(self, *, num_prompt_tokens: int) -> None:
        """Run the prompt and keep its cache. In an encoder-decoder, run the encoder.

        Raises:
            CantSimulate: The forward needs data, or inputs other than token ids.
        """
        self._refuse_canvas()
        prompt = self._make_tokens(num_prompt_tokens)
        if self._skeleton.config.is_encoder_decoder:
            with without_data(), _experts_as(self._skeleton, "grouped_mm"):
                encoded = self._skeleton.get_encoder()(input_ids=prompt)
            self._inputs, self._kept = {"encoder_outputs": encoded}, {}
            return
        if self._is_cache_given:
            config = self._skeleton.config.get_text_config(decoder=True)
            with without_data():
                self._keep_cache({"new": DynamicCache(config=config)})
        self._forward("grouped_mm", input_ids=prompt)

    def decode(self) -> None:
        """Run one more token.

        Raises:
            CantSimulate: The forward needs data.
        """
        is_encoder_decoder = self._skeleton.config.is_encoder_decoder
        name = "decoder_input_ids" if is_encoder_decoder else "input_ids"
        self._forward("batched_mm", **{name: self._make_tokens(1)})

    def _refuse_canvas(self) -> None:
        has_decoder = "decoder_input_ids" in inspect.signature(self._skeleton.forward).parameters
        if has_decoder and not self._skeleton.config.is_encoder_decoder:
            raise CantSimulate("it refines a canvas of tokens instead of decoding one by one")

    def _forward(self, experts_implementation: str, **tokens: torch.Tensor) -> None:
        inputs = {**self._inputs, **self._kept, **tokens, **self._options, "use_cache": True}
        with without_data(), _experts_as(self._skeleton, experts_implementation):
            output = self._skeleton(**inputs)
        self._keep_cache(find_caches(name_fields(output)))

    def _keep_cache(self, found: Mapping[str, Any]) -> None:
        """Pass the cache that was found to the next call, under the name of the model's argument.

        Raises:
            CantSimulate: There are several caches, or the model takes none.
        """
        if len(found) > 1:
            raise CantSimulate(f"it returns several caches: {', '.join(found)}")
        self._kept = {}
        for name, cache in found.items():
            keyword = find_cache_keyword(self._skeleton.forward, also=[name])
            if keyword is None:
                raise CantSimulate(f"its forward takes no {type(cache).__name__}")
            self._kept = {keyword: cache}

    def _make_tokens(self, num_tokens: int) -> torch.Tensor:
        return torch.zeros((self._batch_size, num_tokens), dtype=torch.long, device="meta")


@contextmanager
def _experts_as(skeleton: PreTrainedModel, implementation: str) -> Iterator[None]:
    """Switch the experts to an implementation if the model supports that, and back afterwards."""
    before = skeleton.get_experts_implementation()
    if not skeleton._can_set_experts_implementation():
        yield
        return
    skeleton.set_experts_implementation(implementation)
    try:
        yield
    finally:
        skeleton.set_experts_implementation(before)


@contextmanager
def without_data() -> Iterator[None]:
    """Turn an error in a model's own code into the reason why it can't be simulated."""
    try:
        yield
    except (StopSimulation, CantSimulate):
        raise
    except Exception as error:
        message = str(error)
        for words, asked in _ASKS_FOR_DATA.items():
            if words in message:
                raise CantSimulate(f"its forward needs data: {asked}") from error
        first_line = (message.splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CantSimulate(f"its forward fails on token ids alone: {first_line}") from error
