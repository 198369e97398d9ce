"""One published model, simulated for facts about it that are not known yet."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from moetool.anatomy.parameters import ActiveDefinition
from moetool.anatomy.skeleton.build import build_whole_skeleton, find_dtype
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.anatomy.skeleton.table import add_extra, count_skeleton
from moetool.catalogue.gpus import Gpu
from moetool.catalogue.published import PublishedModel
from moetool.checkpoint.reference import ModelKind, ModelReference
from moetool.checkpoint.subject import AskedSource, find_subject
from moetool.errors import DenseModelError, InputError, UntraceableError, UsageError
from moetool.memory.fitting.known_facts import ModelSize, RunFacts
from moetool.memory.fitting.limits import refuse_search
from moetool.memory.loaded.loaded_model import ModelLoader
from moetool.memory.loaded.skeletons import SkeletonBuilder
from moetool.memory.scenario import Scenario
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.simulation.memory.replay.weight_sizes import list_weight_bytes

# The allocator rounds sizes up to this.
_BLOCK_BYTES = 512
# Errors that hold for every run of the scenario. Running out of memory may be over the next time.
_REFUSALS = (DenseModelError, InputError, UntraceableError, UsageError)


class SimulatedModel:
    """Finds out facts about a model's runs, the same ones as `estimate_memory`.

    Args:
        model: A model of the catalogue.
        gpu: A GPU of the kind that the facts are about.
        scenario: The run.
        facts: What is known already. It is added to.
    """

    def __init__(
        self, model: PublishedModel, gpu: Gpu, scenario: Scenario, facts: RunFacts
    ) -> None:
        reference = ModelReference(text=model.name, kind=ModelKind.PUBLISHED, hub_id=model.hub_id)
        self._published = model
        self._builder = SkeletonBuilder(
            find_subject(reference, source=AskedSource.AUTO, revision=None)
        )
        self._runs = ModelRuns(ModelLoader(self._builder, gpu))
        self._scenario = scenario
        self._facts = facts

    def count_params(self) -> ModelSize:
        """Return the model's parameters, as `inspect` counts them, and the most tokens of a run."""
        config = self._builder.make_config()
        dtype = find_dtype(config)
        skeleton = RoutedSkeleton.of(build_whole_skeleton(config, dtype=dtype))
        table = add_extra(count_skeleton(skeleton, dtype=dtype), self._published.extra_parameters)
        active = table.count_active(ActiveDefinition.ALL)
        return ModelSize(table.total, active.exact if active else None, self._builder.most_tokens)

    def weigh(self) -> None:
        """Find the weights' bytes on the GPU, and the model's context."""
        facts = self._facts
        try:
            self._builder.refuse_scenario(self._scenario)
            loaded = self._runs.loader.load(self._scenario)
        except _REFUSALS as error:
            facts.unknown_because = error.message
            return
        in_blocks = sum(
            -(-size // _BLOCK_BYTES) * _BLOCK_BYTES for size in list_weight_bytes(loaded.skeleton)
        )
        facts.context = self._builder.context
        facts.weights_bytes = loaded.count_held_bytes(simulated_bytes=in_blocks)
        if loaded.stored is not None:
            facts.weights_basis = loaded.stored.basis.value
            if facts.weights_bytes is None:
                facts.unknown_because = (
                    loaded.stored.reason or "The size of its weights is unknown."
                )
        facts.is_weighed = True

    def run(self) -> None:
        """Find the memory of the run on a device with room for everything it asks for."""
        facts = self._facts
        try:
            run = self._runs.run(self._scenario)
        except _REFUSALS as error:
            facts.unknown_because = error.message
            return
        assert run is not None
        facts.total_bytes = run.figures.total_device_bytes
        facts.needs_data = run.needs_data
        try:
            refuse_search(run, most_work=self._runs.most_work)
        except InputError as error:
            facts.no_search_because = error.message

    def run_within(self, memory_bytes: int) -> None:
        """Find the memory of the run on a GPU with that much."""
        run = self._runs.run_within(self._scenario, memory_bytes)
        self._facts.limited_bytes[str(memory_bytes)] = (
            None if run is None else run.figures.total_device_bytes
        )

    def try_prompt(self, num_tokens: int) -> None:
        """Find the memory of a run with another prompt, as a search for limits does."""
        try:
            run = self._resumed.run(self._size(num_tokens), is_brief=True)
        except InputError as error:
            self._facts.prompt_refusals[str(num_tokens)] = error.message
            return
        assert run is not None
        self._facts.prompt_bytes[str(num_tokens)] = run.figures.total_device_bytes

    def try_prompt_within(self, num_tokens: int, memory_bytes: int) -> None:
        """Find out whether a run with another prompt completes on a GPU with that much memory."""
        run = self._resumed.run_within(self._size(num_tokens), memory_bytes, is_brief=True)
        self._facts.prompt_fits[f"{num_tokens}/{memory_bytes}"] = run is not None

    def _size(self, num_tokens: int) -> Scenario:
        return replace(self._scenario, num_prompt_tokens=num_tokens)

    @cached_property
    def _resumed(self) -> ModelRuns:
        """The runs, with what an earlier process learned from the first of them."""
        self._runs.recall(self._scenario, needs_data=self._facts.needs_data)
        return self._runs
