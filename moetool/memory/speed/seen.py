"""Recorded runs: how far above their lower bounds they were, on the cards that could be measured."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

from moetool.catalogue.gpus import Gpu, read_gpus
from moetool.memory.answers.on_gpus import SeenSpeed, SpeedBound
from moetool.memory.scenario import Dtype, Scenario, Task
from moetool.wording import join_words

# A recorded run says something about sizes up to this factor away.
_LARGEST_FACTOR = 4
_UNKNOWN = "How far above these bounds runs were is unknown: {}."
_OTHER_GPU = "only runs on {} are recorded"
_NOTHING_RECORDED = "no runs are recorded"
_OTHER_OPTIONS = "the recorded runs are of generate with transformers' defaults"
_OTHER_WEIGHTS = "the recorded runs hold their weights in 16 bits"
_OTHER_SIZES = "no recorded run has a batch and a prompt within a factor of 4 of these"
_SIZES = ("batch_size", "num_prompt_tokens", "num_new_tokens")


@dataclass(frozen=True)
class RecordedSpeed:
    """One recorded run: its times over their lower bounds.

    Attributes:
        gpu: The card's id in the catalogue.
        config_sha256: Hash of the configuration that ran.
        prefill_over_bound: The time of the prefill over its bound.
        decode_over_bound: The time of a decoding step over its bound; None if nothing was decoded.
    """

    gpu: str
    model: str
    config_sha256: str
    task: str
    batch_size: int
    num_prompt_tokens: int
    prefill_over_bound: float
    decode_over_bound: float | None


@cache
def read_recorded_speeds() -> tuple[RecordedSpeed, ...]:
    """Return all recorded runs, which `tools/collect_receipts.py` takes from receipts."""
    text = files("moetool.memory.speed").joinpath("recorded.json").read_text(encoding="utf-8")
    return tuple(RecordedSpeed(**row) for row in json.loads(text))


def add_seen_speed(
    bound: SpeedBound,
    scenario: Scenario,
    gpu: Gpu,
    *,
    is_in_16_bits: bool,
    recorded: Sequence[RecordedSpeed] | None = None,
) -> SpeedBound:
    """Return a bound with how far above theirs recorded runs of about the same size were.

    Where there are none, the returned notes say why.

    Args:
        is_in_16_bits: Whether the run holds all its weights in 16 bits.
        recorded: The recorded runs; None for those of the package.
    """
    recorded = read_recorded_speeds() if recorded is None else recorded
    reason = _find_reason(scenario, gpu, recorded, is_in_16_bits=is_in_16_bits)
    if reason is not None:
        return replace(bound, notes=(*bound.notes, _UNKNOWN.format(reason)))
    near = _find_nearest([each for each in recorded if each.gpu == gpu.id], scenario)
    if not near:
        return replace(bound, notes=(*bound.notes, _UNKNOWN.format(_OTHER_SIZES)))
    has_steps = bound.decode_s_per_token is not None
    return replace(
        bound,
        prefill_seen=None
        if bound.prefill_s is None
        else _sum_up(near, [each.prefill_over_bound for each in near]),
        decode_seen=_sum_up(near, [each.decode_over_bound for each in near]) if has_steps else None,
    )


def _find_reason(
    scenario: Scenario, gpu: Gpu, recorded: Sequence[RecordedSpeed], *, is_in_16_bits: bool
) -> str | None:
    """Return why no recorded run is like a scenario; None if sizes alone decide."""
    cards = list(dict.fromkeys(each.gpu for each in recorded))
    if not cards:
        return _NOTHING_RECORDED
    if gpu.id not in cards:
        titles = [read_gpus()[card].title for card in cards]
        return _OTHER_GPU.format(join_words(titles, last="and"))
    if not is_in_16_bits:
        return _OTHER_WEIGHTS
    if scenario.task is Task.GENERATE:
        default = Scenario(**{name: getattr(scenario, name) for name in _SIZES})
        if replace(scenario, dtype=Dtype.AUTO) == default:
            return None
    return _OTHER_OPTIONS


def _find_nearest(recorded: Sequence[RecordedSpeed], scenario: Scenario) -> list[RecordedSpeed]:
    """Return the recorded runs of the batch and prompt that are nearest to a scenario's."""

    def find_distances(run: RecordedSpeed) -> tuple[float, float]:
        return (
            abs(math.log2(run.batch_size / scenario.batch_size)),
            abs(math.log2(run.num_prompt_tokens / scenario.num_prompt_tokens)),
        )

    near = [each for each in recorded if max(find_distances(each)) <= math.log2(_LARGEST_FACTOR)]
    if not near:
        return []
    best = min(near, key=lambda run: (sum(find_distances(run)), run.batch_size))
    sizes = (best.batch_size, best.num_prompt_tokens)
    return [each for each in near if (each.batch_size, each.num_prompt_tokens) == sizes]


def _sum_up(runs: Sequence[RecordedSpeed], ratios: Sequence[float | None]) -> SeenSpeed | None:
    known = [ratio for ratio in ratios if ratio is not None]
    if not known:
        return None
    pairs = zip(runs, ratios, strict=True)
    return SeenSpeed(
        least_over_bound=min(known),
        most_over_bound=max(known),
        num_geometries=len({run.config_sha256 for run, ratio in pairs if ratio is not None}),
        num_runs=len(known),
        batch_size=runs[0].batch_size,
        num_prompt_tokens=runs[0].num_prompt_tokens,
    )
