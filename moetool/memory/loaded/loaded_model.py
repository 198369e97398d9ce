"""A model as a scenario loads it, built once for each set of loading options."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.checkpoint.reference import resolve_model
from moetool.checkpoint.subject import AskedSource, find_subject
from moetool.errors import UsageError
from moetool.memory.answers.figures import Basis, StoredWeights
from moetool.memory.assisting.refusals import refuse_pair
from moetool.memory.gpu_overhead import find_capability
from moetool.memory.loaded.as_stored import hold_as_stored
from moetool.memory.loaded.loaded_format import OlderGpus
from moetool.memory.loaded.packed.kernels_on_meta import offer_kernels_on_meta
from moetool.memory.loaded.skeletons import SkeletonBuilder
from moetool.memory.scenario import Dtype, LoadingOptions, Scenario, Task
from moetool.quantizing.kinds import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from moetool.catalogue.gpus import Gpu

_AS_IF = (
    "Activations and temporary copies are simulated as if the weights were in full precision; "
    "memory that kernels for such weights allocate is not simulated."
)
_DEQUANTIZED = "The checkpoint stores its weights in {method}; they are dequantized on loading."
_COPY = "The checkpoint stores its weights in {method}; these figures are for a copy in {dtype}."
_AS_PACKED = (
    "Activations are simulated with transformers' own modules for such weights, whose kernels count "
    "as their source allocates memory; what compiling and tuning them takes is not simulated."
)
_NOTES = {
    Basis.LOADED: "The checkpoint stores its weights in {method}. ",
    Basis.PUBLISHED: "The weights count as they are published, packed in {method}. ",
    Basis.UNKNOWN: "The checkpoint stores its weights in {method}, and their size on a GPU is "
    "unknown. So are all figures that include them.",
}


@dataclass(frozen=True)
class LoadedModel:
    """A model on the meta device, as a scenario loads it.

    Attributes:
        skeleton: The model that runs in simulation.
        held: The model with every parameter as a GPU holds it, fp8 checkpoints in fp8; not every
            such model can run on the meta device. None if the size of each parameter is unknown.
        stored: The stored weights of a checkpoint that is published quantized.
        stored_notes: Caveats about those weights for the reader, one sentence each.
        packed: The model with the modules that transformers loads packed weights into, which run in
            simulation in place of the skeleton; None if there are none.
        older: GPUs on which it is dequantized; None if there are none, or if this is one of them.
    """

    skeleton: PreTrainedModel
    held: PreTrainedModel | None
    stored: StoredWeights | None = None
    stored_notes: tuple[str, ...] = ()
    packed: PreTrainedModel | None = None
    older: OlderGpus | None = None

    @cached_property
    def routed(self) -> RoutedSkeleton:
        """The skeleton with its routed experts."""
        return RoutedSkeleton.of(self.skeleton)

    @cached_property
    def routed_held(self) -> RoutedSkeleton | None:
        """The model as a GPU holds it, with its routed experts; None if that is unknown."""
        if self.held is self.skeleton:
            return self.routed
        return None if self.held is None else RoutedSkeleton.of(self.held)

    @property
    def simulated(self) -> PreTrainedModel:
        """The model that runs in simulation, under `offer_kernels`."""
        return self.skeleton if self.packed is None else self.packed

    def offer_kernels(self) -> AbstractContextManager[None]:
        """Return a context with stand-ins for the kernels of packed weights, if there are any."""
        return nullcontext() if self.packed is None else offer_kernels_on_meta()

    @property
    def runs_in_full_precision(self) -> bool:
        """Whether the checkpoint's own quantization is gone once the model is loaded."""
        return (
            self.stored is None
            or self.stored.basis is Basis.COPY
            or (self.stored.basis is Basis.LOADED and bool(self.stored.is_dequantized))
        )

    def count_held_bytes(self, *, simulated_bytes: int) -> int | None:
        """Return the weights' bytes on a GPU; None if they are unknown.

        Args:
            simulated_bytes: The weights' bytes in a simulation of the skeleton.
        """
        if self.stored is None or self.stored.basis is Basis.COPY:
            return simulated_bytes
        return self.stored.held_bytes

    def note_stored(self, dtype: str) -> list[str]:
        """Return how the figures relate to the stored weights; nothing for plain ones.

        Args:
            dtype: The dtype that the scenario names.
        """
        if self.stored is None:
            return []
        note = _NOTES.get(self.stored.basis, _COPY)
        if self.stored.basis is Basis.LOADED and self.stored.is_dequantized:
            note = _DEQUANTIZED
        elif self.stored.basis in (Basis.LOADED, Basis.PUBLISHED):
            note += _AS_IF if self.packed is None else _AS_PACKED
        return [note.format(method=self.stored.method, dtype=dtype)]

    def copy_in_full(self, stored: StoredWeights) -> LoadedModel:
        """Return a copy whose weights are in the skeleton's dtypes, of the same skeleton.

        Args:
            stored: The stored weights, which this model has.
        """
        return LoadedModel(
            self.skeleton,
            held=self.skeleton,
            stored=replace(stored, basis=Basis.COPY),
            stored_notes=self.stored_notes,
        )


@dataclass(frozen=True)
class ModelLoader:
    """Loads one model for scenarios; those that share loading options get the same one.

    Attributes:
        builder: Builds the skeletons.
        gpu: The GPU that the model is loaded on.
        say: Receives a few words on each step before it starts.
    """

    builder: SkeletonBuilder
    gpu: Gpu
    say: Callable[[str], None] = field(default=lambda _: None, repr=False, compare=False)
    _loaded: dict[LoadingOptions, LoadedModel] = field(default_factory=dict, repr=False)
    _assistants: dict[str, ModelLoader] = field(default_factory=dict, repr=False)

    def load(self, scenario: Scenario) -> LoadedModel:
        """Return the model as a scenario loads it.

        Raises:
            InputError: No model can be built from the configuration.
            UntraceableError: transformers has no class for it.
            UsageError: The model can't be loaded as the scenario asks.
        """
        options = scenario.loading
        if options not in self._loaded:
            self.say(f"loading {self.name(scenario)}")
            self._loaded[options] = self._load(scenario)
        return self._loaded[options]

    def load_assistant(self, scenario: Scenario) -> LoadedModel | None:
        """Return the model that drafts tokens in a scenario; None if it has none.

        Of the scenario's options on loading, the dtype alone is the assistant's too.

        Raises:
            InputError: It can't be found, or no model can be built from its configuration.
            UsageError: It can't draft tokens for this model.
        """
        name = scenario.assistant
        if name is None:
            return None
        if name not in self._assistants:
            builder = SkeletonBuilder(
                find_subject(resolve_model(name), source=AskedSource.AUTO, revision=None),
                trust_remote_code=self.builder.trust_remote_code,
            )
            self._assistants[name] = ModelLoader(builder, self.gpu, self.say)
        loader = self._assistants[name]
        own = Scenario(
            num_prompt_tokens=scenario.num_prompt_tokens,
            num_new_tokens=scenario.num_new_tokens,
            dtype=scenario.dtype,
        )
        loader.builder.refuse_scenario(own)
        model, target = loader.load(own), self.load(scenario).skeleton
        refuse_pair(target, model.skeleton, names=(self.builder.subject.model, name))
        return model

    def name(self, scenario: Scenario) -> str:
        """Return the model's name, with the quantization in which a scenario loads it."""
        is_plain = scenario.quantization is Quantization.NONE
        return self.builder.subject.model + ("" if is_plain else f" in {scenario.quantization}")

    def load_plain(self, scenario: Scenario) -> LoadedModel:
        """Return the model as a scenario loads it, except that bitsandbytes doesn't quantize it."""
        return self.load(scenario.quantized(Quantization.NONE))

    def _load(self, scenario: Scenario) -> LoadedModel:
        published = self._loaded.get(replace(scenario, dtype=Dtype.AUTO).loading)
        if published is not None and published.stored is not None:
            as_published, named = (
                self.builder.find_dtype(each)
                for each in (replace(scenario, dtype=Dtype.AUTO), scenario)
            )
            if as_published is named:
                # Building the skeleton again and converting it would give the same.
                return published.copy_in_full(published.stored)
        skeleton = self.builder.build(scenario)
        if scenario.quantization is not Quantization.NONE:
            return LoadedModel(skeleton, held=skeleton)
        found = hold_as_stored(
            self.builder.subject,
            skeleton,
            compute_capability=find_capability(self.gpu),
            is_traced=scenario.task is Task.TRACE,
            is_copy=scenario.dtype != Dtype.AUTO,
        )
        if found.failure is not None:
            raise self._refuse(found.failure)
        return LoadedModel(
            skeleton, found.held, found.weights, found.notes, found.simulated, found.older
        )

    def _refuse(self, failure: str) -> UsageError:
        return UsageError(
            f"{self.builder.subject.model} can't be loaded on {self.gpu.id} as it is published: "
            f"{failure}",
            hint="Give --dtype bfloat16 for a dequantized copy, or a GPU with a later compute "
            "capability.",
        )
