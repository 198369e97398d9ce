"""GPUs on which a scenario fits, alone or together, under each quantization."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

from moetool.catalogue.gpus import Gpu, read_gpus
from moetool.errors import MoetoolError
from moetool.memory.answers.on_gpus import Fit
from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_capability
from moetool.memory.loaded.loaded_format import OlderGpus
from moetool.memory.scenario import Scenario, Task
from moetool.memory.sharing.device_maps import DeviceMaps
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.memory.simulated.simulated_run import SimulatedRun
from moetool.quantizing.kinds import Quantization
from moetool.wording import format_bytes

QUANTIZATIONS = (Quantization.NONE, Quantization.INT8, Quantization.NF4)


def list_fits_everywhere(
    runs: ModelRuns,
    scenario: Scenario,
    *,
    quantizations: Sequence[Quantization] = QUANTIZATIONS,
    is_counted: bool = True,
) -> tuple[Fit, ...]:
    """Return which of the known GPUs a scenario fits on.

    The number of GPUs that it needs is found for the scenario's own quantization alone.

    Args:
        runs: The model's runs.
        quantizations: The quantizations to simulate in addition to its own; the answers for the
            rest of `QUANTIZATIONS` are unknown.
        is_counted: Whether to find that number.
    """
    return _list_fits(
        runs,
        scenario,
        read_gpus().values(),
        simulated=(scenario.quantization, *quantizations),
        counted=(scenario.quantization,) if is_counted else (),
    )


def list_fits_on(
    runs: ModelRuns,
    scenario: Scenario,
    gpu: Gpu,
    *,
    quantizations: Sequence[Quantization] = QUANTIZATIONS,
) -> tuple[Fit, ...]:
    """Return whether a scenario fits on a GPU, or on how many, under each quantization.

    Args:
        runs: The model's runs.
        quantizations: The quantizations to simulate in addition to its own; the answers for the
            rest of `QUANTIZATIONS` are unknown.
    """
    simulated = (scenario.quantization, *quantizations)
    return _list_fits(
        runs,
        scenario,
        [gpu],
        simulated=simulated,
        counted=() if scenario.is_on_one_gpu else simulated,
    )


def _list_fits(
    runs: ModelRuns,
    scenario: Scenario,
    gpus: Iterable[Gpu],
    *,
    simulated: Sequence[Quantization],
    counted: Sequence[Quantization],
) -> tuple[Fit, ...]:
    """Return answers sorted by memory and then by the GPU's id, quantizations in a fixed order."""
    candidates = [
        _Candidate(
            runs,
            scenario.quantized(quantization),
            is_own=quantization is scenario.quantization,
            is_simulated=quantization in simulated,
            is_counted=quantization in counted,
        )
        for quantization in dict.fromkeys((*QUANTIZATIONS, scenario.quantization))
        # Quantized weights aren't trained.
        if quantization is scenario.quantization or scenario.task is not Task.TRAIN
    ]
    return tuple(
        candidate.fit_on(gpu)
        for gpu in sorted(gpus, key=lambda gpu: (gpu.memory_bytes, gpu.id))
        for candidate in candidates
    )


class _Candidate:
    """A scenario under one quantization, which may fit or not.

    Args:
        runs: The model's runs.
        scenario: The scenario, with that quantization.
        is_own: Whether the estimate is about this quantization.
        is_simulated: Whether the scenario may be simulated.
        is_counted: Whether the number of GPUs is counted if one is not enough.
    """

    def __init__(
        self,
        runs: ModelRuns,
        scenario: Scenario,
        *,
        is_own: bool,
        is_simulated: bool,
        is_counted: bool,
    ) -> None:
        self._runs = runs
        self._scenario = scenario
        self._is_own = is_own
        self._is_simulated = is_simulated
        self._is_counted = is_counted
        self._num_gpus_by_memory: dict[int, int | None] = {}

    def fit_on(self, gpu: Gpu) -> Fit:
        """Return whether it fits on a GPU.

        The GPU's memory is `Gpu.memory_bytes`. Programs see a few hundred MiB less than its vendor
        advertises.
        """
        run = self._in_full
        if self._older is not None and self._older.include(find_capability(gpu)):
            if self._dequantized is not None:
                return self._dequantized.fit_on(gpu)
            # It can't be loaded there at all.
            return Fit(gpu.id, gpu.memory_bytes, self._scenario.quantization, None, False, None)
        if run is None:
            return Fit(gpu.id, gpu.memory_bytes, self._scenario.quantization, None, None, None)
        total_bytes = run.figures.total_device_bytes
        if total_bytes > gpu.memory_bytes:
            limited = self._runs.run_within(
                self._scenario, gpu.memory_bytes, is_brief=not self._is_own
            )
            total_bytes = (limited or run).figures.total_device_bytes
        fits = total_bytes <= gpu.memory_bytes
        return Fit(
            gpu=gpu.id,
            memory_bytes=gpu.memory_bytes,
            quantization=self._scenario.quantization,
            num_gpus=1 if fits else self._count_gpus(run, gpu.memory_bytes),
            fits=fits,
            headroom_bytes=gpu.memory_bytes - total_bytes,
        )

    @cached_property
    def _in_full(self) -> SimulatedRun | None:
        """The run without a limit on memory; None if it is unknown."""
        if not self._is_simulated:
            return None
        try:
            return self._runs.run(self._scenario, is_brief=not self._is_own)
        except MoetoolError:
            if self._is_own:
                raise
            return None

    @cached_property
    def _older(self) -> OlderGpus | None:
        """GPUs on which transformers dequantizes the checkpoint; None if there are none."""
        # What bitsandbytes quantizes is the same on all.
        if self._in_full is None or self._scenario.quantization is not Quantization.NONE:
            return None
        return self._runs.loader.load(self._scenario).older

    @cached_property
    def _dequantized(self) -> _Candidate | None:
        """The same with dequantized weights; None if transformers can't dequantize them."""
        if self._older is None or self._older.failure is not None:
            return None
        dtype = str(self._runs.loader.builder.find_dtype(self._scenario)).removeprefix("torch.")
        return _Candidate(
            self._runs,
            replace(self._scenario, dtype=dtype),
            is_own=self._is_own,
            is_simulated=True,
            is_counted=self._is_counted,
        )

    @cached_property
    def _device_maps(self) -> DeviceMaps | None:
        held = self._runs.loader.load(self._scenario).routed_held
        return None if held is None else DeviceMaps(held, self._scenario.quantization)

    def _count_gpus(self, run: SimulatedRun, memory_bytes: int) -> int | None:
        """Return the number of GPUs of that size that it needs; None if unknown or not counted."""
        if not self._is_counted or self._device_maps is None:
            return None
        numbers = self._num_gpus_by_memory
        if memory_bytes not in numbers:
            loader = self._runs.loader
            loader.say(
                f"sharing {loader.name(self._scenario)} between GPUs of "
                f"{format_bytes(memory_bytes)}"
            )
            numbers[memory_bytes] = self._device_maps.count_gpus(
                gpu_memory_bytes=memory_bytes,
                cache_bytes=run.figures.cache_bytes,
                activation_bytes=run.figures.beyond_weights_and_cache_bytes,
                context_bytes=CONTEXT_BYTES,
            )
        return numbers[memory_bytes]
