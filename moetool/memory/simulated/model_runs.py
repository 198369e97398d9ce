"""One model's simulated runs, each done once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel

from moetool.catalogue.gpus import Gpu
from moetool.errors import InputError
from moetool.memory.loaded.as_stored import build_as_stored, find_stored_weights
from moetool.memory.loaded.skeletons import SkeletonBuilder
from moetool.memory.result import Basis, MemoryFigures, Method, StoredWeights
from moetool.memory.scenario import Dtype, Scenario, Task
from moetool.memory.sharing.device_maps import DeviceMaps
from moetool.memory.simulated.runs import SimulatedRun, run_scenario
from moetool.quantized.kinds import Quantization, QuantizedExperts
from moetool.simulation.meta.generation import CantSimulate

# torch's defaults for cuBLAS: `CUBLAS_WORKSPACE_CONFIG` is :4096:8 from compute capability 9.0 on,
# before :4096:2:16:8, in KiB and how many of them.
_WORKSPACE_BYTES = 4096 * 2**10 * 8
_WORKSPACE_BYTES_BEFORE_HOPPER = (4096 * 2 + 16 * 8) * 2**10
_HOPPER = (9, 0)
_AS_IF = (
    "Everything else is simulated as if they were in full precision; what kernels for such weights "
    "allocate is not simulated."
)
_DEQUANTIZED = "Its weights are published in {method}, and dequantized as they are loaded."
_NOTES = {
    Basis.LOADED: f"Its weights are published in {{method}}. {_AS_IF}",
    Basis.PUBLISHED: "Its weights count as they are published, packed in {method}. " + _AS_IF,
    Basis.UNKNOWN: "Its weights are published in {method}, and what they take on a GPU is unknown. "
    "So are all figures that they are part of.",
}
# A long generation takes up to 100 MB.
_NUM_REPLAYS_KEPT = 4
# An H200's with torch 2.11 and CUDA 13, after a run; 720 to 752 MB were seen.
CONTEXT_BYTES = 738_197_504


@dataclass
class ModelRuns:
    """Builds a model's skeletons and simulates its scenarios, each of them once.

    Attributes:
        builder: Builds the skeletons.
        gpu: The GPU that runs are for.
    """

    builder: SkeletonBuilder
    gpu: Gpu
    _skeletons: dict[Scenario, PreTrainedModel] = field(default_factory=dict)
    _runs: dict[tuple[Scenario, bool], SimulatedRun] = field(default_factory=dict)
    _unshifted: dict[tuple[Scenario, bool], SimulatedRun] = field(default_factory=dict)
    _limited: dict[tuple[Scenario, bool, int], SimulatedRun | None] = field(default_factory=dict)
    _held: dict[int, PreTrainedModel | None] = field(default_factory=dict)
    _device_maps: dict[int, DeviceMaps] = field(default_factory=dict)
    _stored: dict[tuple[str, bool], tuple[StoredWeights | None, tuple[str, ...]]] = field(
        default_factory=dict
    )

    def get_skeleton(self, scenario: Scenario) -> PreTrainedModel:
        """Return the model as a scenario loads it."""
        key = replace(
            scenario,
            batch_size=1,
            num_prompt_tokens=1,
            num_new_tokens=min(scenario.num_new_tokens, 1),
            has_padding=False,
        )
        if key not in self._skeletons:
            self._skeletons[key] = self.builder.build(key)
        return self._skeletons[key]

    def get_device_maps(self, scenario: Scenario) -> DeviceMaps | None:
        """Return transformers' device maps of the model as a scenario loads it; None if unknown."""
        held = self.get_held(scenario)
        if held is None:
            return None
        if id(held) not in self._device_maps:
            self._device_maps[id(held)] = DeviceMaps(held, scenario.quantization)
        return self._device_maps[id(held)]

    def get_held(self, scenario: Scenario) -> PreTrainedModel | None:
        """Return the model with every parameter as a GPU holds it: fp8 checkpoints in fp8.

        Not all of these can run on the meta device; `get_skeleton` can. None where nothing tells
        what each of its parameters takes.
        """
        skeleton = self.get_skeleton(scenario)
        if scenario.quantization is not Quantization.NONE:
            return skeleton
        if id(skeleton) not in self._held:
            stored, _ = self.get_stored(scenario)
            self._held[id(skeleton)] = build_as_stored(self.builder.subject, skeleton, stored)
        return self._held[id(skeleton)]

    def get_stored(self, scenario: Scenario) -> tuple[StoredWeights | None, tuple[str, ...]]:
        """Return what the checkpoint's own quantization makes of it, and what is to be said."""
        key = scenario.dtype, scenario.task is Task.TRACE
        if key not in self._stored:
            plain = replace(scenario, quantization=Quantization.NONE, is_double_quantized=False)
            self._stored[key] = find_stored_weights(
                self.builder.subject,
                self.get_skeleton(plain),
                compute_capability=_find_capability(self.gpu),
                is_traced=scenario.task is Task.TRACE,
                is_copy=scenario.dtype != Dtype.AUTO,
            )
        return self._stored[key]

    def list_stored_variants(
        self, scenario: Scenario, memory_bytes: int | None
    ) -> dict[str, MemoryFigures]:
        """Return the figures of a checkpoint that is quantized already, packed and dequantized.

        Empty if it is not, or if the scenario is about a copy of it in another dtype.

        Args:
            scenario: What is run.
            memory_bytes: As in `run_on`.
        """
        if memory_bytes is None:
            self.run(scenario)
        else:
            self._run_with_replay(scenario, is_brief=False)
        stored, _ = self.get_stored(scenario)
        plain = self._unshifted.get((scenario, False))
        if stored is None or plain is None or stored.basis is Basis.COPY:
            return {}
        variants = {"as_published": stored.packed_bytes, "dequantized": stored.dequantized_bytes}
        held = {
            name: plain.shift_weights(num_bytes - (plain.figures.weights_bytes or 0))
            for name, num_bytes in variants.items()
            if num_bytes is not None
        }
        if memory_bytes is None:
            return {name: run.figures for name, run in held.items()}
        return {name: (run.limit_to(memory_bytes) or run).figures for name, run in held.items()}

    def run(self, scenario: Scenario, *, is_brief: bool = False) -> SimulatedRun:
        """Return what a simulation of a scenario shows.

        A checkpoint that is quantized already runs with the weights that transformers loads, or with
        them as they are published where it depends on the machine how it loads them; where neither
        is known, what they take is None. With a dtype named it is a copy in that dtype.

        Args:
            scenario: What is run.
            is_brief: The first and the last step of decoding are enough.

        Raises:
            InputError: The model's code can't run without data.
        """
        is_brief = is_brief and (scenario, False) not in self._runs
        if (scenario, is_brief) not in self._runs:
            self.builder.refuse_scenario(scenario)
            try:
                run = run_scenario(
                    self.get_skeleton(scenario),
                    scenario,
                    workspace_bytes=find_workspace_bytes(self.gpu),
                    context_bytes=CONTEXT_BYTES,
                    is_brief=is_brief,
                )
            except CantSimulate as error:
                raise InputError(
                    f"{self.builder.subject.model} can't be simulated: {error.reason}.",
                    hint="See what `moetool inspect` counts, or try another version of transformers.",
                ) from error
            self._unshifted[scenario, is_brief] = run
            self._runs[scenario, is_brief] = self._hold_as_stored(run, scenario)
            self._drop_old_replays()
        return self._runs[scenario, is_brief]

    def run_within(
        self, scenario: Scenario, memory_bytes: int, *, is_brief: bool = False
    ) -> SimulatedRun | None:
        """Return what a scenario takes of a GPU with that much memory.

        None if it doesn't fit, or if nothing tells what its weights take.

        Args:
            scenario: What is run.
            memory_bytes: What the GPU has, the CUDA context's part included.
            is_brief: The first and the last step of decoding are enough.

        Raises:
            InputError: The model's code can't run without data.
        """
        is_brief = is_brief and (scenario, False) not in self._runs
        key = (scenario, is_brief, memory_bytes)
        if key not in self._limited:
            run = self.run(scenario, is_brief=is_brief)
            total_bytes = run.figures.total_device_bytes
            if total_bytes is None:
                return None
            if total_bytes > memory_bytes:
                run = self._run_with_replay(scenario, is_brief=is_brief)
            self._limited[key] = run.limit_to(memory_bytes)
        return self._limited[key]

    def run_on(self, scenario: Scenario, memory_bytes: int | None) -> SimulatedRun:
        """Return what a scenario takes on a GPU with that much memory; in full if it doesn't fit.

        Args:
            scenario: What is run.
            memory_bytes: What the GPU has; None for a GPU that has all that is asked for.

        Raises:
            InputError: The model's code can't run without data.
        """
        limited = None if memory_bytes is None else self.run_within(scenario, memory_bytes)
        return limited or self.run(scenario)

    def _run_with_replay(self, scenario: Scenario, *, is_brief: bool) -> SimulatedRun:
        """Return a run that can be replayed, done again if what it did is not kept any more."""
        if self.run(scenario, is_brief=is_brief).replay is None:
            del self._runs[scenario, is_brief]
        return self.run(scenario, is_brief=is_brief)

    def _drop_old_replays(self) -> None:
        """Keep what the last few runs did to memory, and of older ones the figures alone."""
        kept = [key for key, run in self._runs.items() if run.replay is not None]
        for key in kept[:-_NUM_REPLAYS_KEPT]:
            self._runs[key] = replace(self._runs[key], replay=None)
            self._unshifted[key] = replace(self._unshifted[key], replay=None)

    def _hold_as_stored(self, run: SimulatedRun, scenario: Scenario) -> SimulatedRun:
        if scenario.quantization is not Quantization.NONE:
            return run
        stored, _ = self.get_stored(scenario)
        if stored is None:
            return run
        if stored.basis is Basis.COPY:
            note = (
                f"Its weights are published in {stored.method}; the figures are of a copy in "
                f"{scenario.dtype}."
            )
            return replace(run, notes=(*run.notes, note))
        held_bytes, weights_bytes = stored.held_bytes, run.figures.weights_bytes
        assert weights_bytes is not None
        if stored.basis is Basis.LOADED and stored.is_dequantized:
            note = _DEQUANTIZED.format(method=stored.method)
            more_bytes = None if held_bytes is None else held_bytes - weights_bytes
            return replace(run.shift_weights(more_bytes), notes=(*run.notes, note))
        return replace(
            run.shift_weights(None if held_bytes is None else held_bytes - weights_bytes),
            method=Method.APPROXIMATE,
            notes=(*run.notes, _NOTES[stored.basis].format(method=stored.method)),
        )

    def list_variants(self, scenario: Scenario) -> dict[str, Scenario]:
        """Return a quantized scenario with experts as transformers loads them, and with quantized ones.

        Empty without quantization.
        """
        if scenario.quantization is Quantization.NONE:
            return {}
        return {
            "transformers": replace(scenario, experts=QuantizedExperts.AS_LOADED),
            "experts_quantized": replace(scenario, experts=QuantizedExperts.QUANTIZED),
        }


def _find_capability(gpu: Gpu) -> tuple[int, int] | None:
    if gpu.compute_capability is None:
        return None
    major, minor = gpu.compute_capability.split(".")
    return int(major), int(minor)


def find_workspace_bytes(gpu: Gpu) -> int:
    """Return what the first product of matrices takes for good on a GPU, by torch's default."""
    capability = _find_capability(gpu)
    if capability is not None and capability < _HOPPER:
        return _WORKSPACE_BYTES_BEFORE_HOPPER
    return _WORKSPACE_BYTES
