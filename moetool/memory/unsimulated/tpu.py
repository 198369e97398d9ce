"""The estimate for a TPU: what is true of any chip, and nothing of what holds for CUDA alone.

The figures of a run are those of torch's allocator for CUDA and of transformers' kernels there. On a
TPU, XLA compiles a run into buffers that it plans itself, for which there is no model here.
"""

from __future__ import annotations

from dataclasses import replace

from moetool.catalogue.gpus import Gpu
from moetool.errors import UsageError
from moetool.memory.answers.figures import MemoryFigures, Method
from moetool.memory.answers.on_gpus import Fit
from moetool.memory.loaded.loaded_model import ModelLoader
from moetool.memory.notes.estimate_notes import WEIGHTS_UNKNOWN
from moetool.memory.result import Estimate
from moetool.memory.scenario import Scenario, Task
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.memory.speed.bounds import bound_speed
from moetool.memory.speed.experts_touched import find_choices
from moetool.quantizing.kinds import Quantization

_ONLY_HELD = (
    "For a TPU, only the bytes of weights and cache are known, without the padding of XLA's tiles. "
    "Peaks, reserved memory and context are those of CUDA's allocator and are null: XLA plans its own "
    "buffers."
)
_AT_LEAST = (
    "Whether it fits on one chip is unknown: weights and cache fit, and what XLA needs besides is "
    "unknown."
)
_TOO_LARGE = "Weights and cache alone are larger than the chip's memory, so it does not fit."
_UNKNOWN = "Whether it fits on one chip is unknown, because the size of the weights is."


def refuse_on_tpu(tpu: Gpu, scenario: Scenario, *, options: tuple[str, ...]) -> None:
    """Refuse what is only estimated for GPUs.

    Args:
        tpu: The chip.
        scenario: The run.
        options: Further options that were given.

    Raises:
        UsageError: Something was asked for that needs CUDA, or has no model for TPUs.
    """
    asked = list(options)
    if scenario.quantization is not Quantization.NONE:
        asked.append(f"--quantization {scenario.quantization}")
    if scenario.task is Task.TRAIN:
        asked.append("--task train")
    if scenario.assistant is not None:
        asked.append("--assistant")
    if asked:
        raise UsageError(
            f"{asked[0]} is for GPUs, and {tpu.title} is a TPU.",
            hint=f"Leave out {asked[0]}, or name a GPU.",
        )


def estimate_on_tpu(loader: ModelLoader, scenario: Scenario, tpu: Gpu) -> Estimate:
    """Return the estimate of one scenario on one chip.

    Args:
        loader: Loads the model as on a GPU, whose weights have the same bytes.
        scenario: The run.
        tpu: The chip.

    Raises:
        InputError: The model's code can't run without data.
    """
    runs = ModelRuns(loader)
    model = loader.load(scenario)
    plain_run, run = runs.simulate(scenario), runs.run(scenario)
    weights_bytes = run.figures.weights_bytes if run and model.stored is None else None
    cache_bytes = plain_run.figures.cache_bytes
    held_bytes = None if weights_bytes is None else weights_bytes + cache_bytes
    is_too_large = held_bytes is not None and held_bytes > tpu.memory_bytes
    fit = Fit(
        gpu=tpu.id,
        memory_bytes=tpu.memory_bytes,
        quantization=scenario.quantization,
        num_gpus=None,
        fits=False if is_too_large else None,
        headroom_bytes=tpu.memory_bytes - held_bytes if held_bytes and is_too_large else None,
    )
    speed = None
    if model.held is not None and weights_bytes is not None:
        plain = loader.load_plain(scenario).routed
        bound = bound_speed(
            model.held,
            scenario,
            tpu,
            cache_bytes=plain_run.prompt_cache_bytes,
            choices=find_choices(plain),
            unquantized=plain,
        )
        speed = replace(bound, gpu=tpu.id)
    verdict = _UNKNOWN if held_bytes is None else _TOO_LARGE if is_too_large else _AT_LEAST
    return Estimate(
        model=loader.builder.subject.model,
        scenario=scenario,
        method=Method.APPROXIMATE,
        gpu=tpu.id,
        is_gpu_named=True,
        figures=MemoryFigures(weights_bytes, cache_bytes, None, None, None),
        context_bytes=None,
        fits=(fit,),
        speed=speed,
        loaded_dtype=str(loader.builder.find_dtype(scenario)).removeprefix("torch."),
        notes=(
            *loader.builder.subject.notes,
            _ONLY_HELD,
            verdict,
            *([WEIGHTS_UNKNOWN] if weights_bytes is None else []),
        ),
    )
