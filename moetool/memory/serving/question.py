"""A question to an engine's rules, and the parts of their answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.catalogue.gpus import Gpu
from moetool.checkpoint.stated.quantization import find_method
from moetool.memory.answers.figures import Basis
from moetool.memory.loaded.loaded_model import LoadedModel
from moetool.memory.scenario import Scenario
from moetool.memory.serving.answer import Capacity, ServingOptions
from moetool.memory.serving.deployment import Deployment
from moetool.memory.serving.geometry import CacheGeometry
from moetool.quantized.kinds import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_published_method(model: LoadedModel) -> str | None:
    """Return the files' quantization, as config.json names it; None for plain files and for copies."""
    if model.stored is None or model.stored.basis is Basis.COPY:
        return None
    return find_method(model.skeleton.config) or model.stored.method


@dataclass(frozen=True)
class Question:
    """A model that an engine would serve.

    Attributes:
        model: The model as the scenario loads it.
        geometry: What its layers cache; None if that is unknown.
        scenario: Its prompt and new tokens are the length of a sequence.
        gpu: Each of the GPUs.
    """

    model: LoadedModel
    geometry: CacheGeometry | None
    scenario: Scenario
    gpu: Gpu
    options: ServingOptions
    deployment: Deployment

    @property
    def skeleton(self) -> PreTrainedModel:
        """The model with each parameter as a GPU holds it, as far as that is known."""
        return self.model.held or self.model.skeleton

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.scenario.num_prompt_tokens + self.scenario.num_new_tokens

    @property
    def has_bitsandbytes(self) -> bool:
        """Whether the scenario quantizes the weights by bitsandbytes."""
        return self.scenario.quantization is not Quantization.NONE

    @property
    def published_method(self) -> str | None:
        """The files' quantization, see `find_published_method`."""
        return find_published_method(self.model)


@dataclass(frozen=True)
class Parts:
    """The sizes that an engine's rules give for each GPU.

    Attributes:
        weights_bytes: The weights of the GPU with the most; None if unknown.
        token_bytes: The cache of one token; None if unknown.
        fill: Returns what fits into a number of bytes, weights included; None if unknown.
        count_compute: Counts the compute buffer for a number of sequences; None if it is unknown, or
            if only the engine's own profiling finds it.
        least_compute_bytes: The part of that buffer that is known in any case.
        confirmed_on: What confirmed the sizes; None if nothing did.
        notes: What is unknown, and why, one sentence each.
    """

    weights_bytes: int | None
    token_bytes: int | None = None
    fill: Callable[[int], Capacity] | None = None
    count_compute: Callable[[int], int] | None = None
    least_compute_bytes: int | None = None
    confirmed_on: str | None = None
    notes: tuple[str, ...] = ()
