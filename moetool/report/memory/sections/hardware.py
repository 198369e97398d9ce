"""Show what several GPUs and the host would hold, and how fast one GPU can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType

from moetool.report.memory.python_argument import PythonArgument
from moetool.report.memory.words import word_seconds, word_sizes
from moetool.report.text.lines import make_fact, make_paragraphs, make_whole_lines
from moetool.report.text.page import Block
from moetool.report.text.styles import Style, make_printable
from moetool.report.text.tables import make_table
from moetool.report.text.words import UNKNOWN, word_count, word_range, word_share, word_size
from moetool.wording import format_bytes, join_words, number_of

if TYPE_CHECKING:
    from moetool.memory.answers.on_gpus import (
        ExpertCache,
        Offload,
        RankBytes,
        SeenSpeed,
        SpeedBound,
    )

_TRANSFORMERS = "transformers"
_YES_OR_NO = {True: "yes", False: "no"}


def list_ranks(ranks: Sequence[RankBytes]) -> Block:
    """Return what each of several GPUs holds, one row for each usable sharing strategy."""
    possible = [rank for rank in ranks if rank.reason is None and rank.weights_bytes]
    rows = [
        (
            _word_way(rank),
            f"{rank.num_gpus:,}",
            word_sizes(rank.weights_bytes),
            "" if rank.replicated_bytes is None else format_bytes(rank.replicated_bytes),
            word_range(rank.num_layers) if rank.num_layers else "",
        )
        for rank in possible
    ]
    headers = ("weights shared by", "GPUs", "on each GPU", "replicated", "layers on each")
    tables = [make_table(headers, rows, right=(1, 2, 3, 4))] if rows else []
    refused: dict[tuple[str, str], list[int]] = {}
    for rank in ranks:
        if rank.reason is not None:
            refused.setdefault((_word_way(rank), rank.reason), []).append(rank.num_gpus)
    reasons = [
        f"{way}, {join_words([f'{number:,}' for number in nums_gpus], last='or')} GPUs: {reason}"
        for (way, reason), nums_gpus in refused.items()
    ]
    return [*tables, *make_paragraphs(reasons, Style.MUTED)]


def _word_way(rank: RankBytes) -> str:
    return make_printable(rank.way.replace("_", " "))


def list_offload(offload: Offload, gpu: str) -> Block:
    """Return what goes to host memory, what that costs, and the flags, to copy."""
    if not offload.num_offloaded_layers and offload.fits:
        words = f"not needed: everything fits on 1 × {gpu}"
        return [make_fact("offload", words)]
    moved, computed = offload.num_offloaded_layers, offload.num_host_computed_layers
    read_bytes = offload.computed_on_host_bytes_per_token
    rows = [
        ("engine", "transformers", "llama.cpp"),
        (f"layers, of {offload.num_moe_layers:,}", f"{moved:,}", f"{computed:,}"),
        ("fits", _YES_OR_NO[offload.fits], _YES_OR_NO[offload.fits_computed_on_host]),
        ("GPU memory at the peak", format_bytes(offload.gpu_bytes), ""),
        ("host memory", format_bytes(offload.host_bytes), ""),
        ("over the bus per token", format_bytes(offload.transfer_bytes_per_token), ""),
        ("read on the host per token", "", word_size(read_bytes)),
    ]
    if offload.transfer_s_per_token is not None:
        rows += [
            ("on the bus per token", word_seconds(offload.transfer_s_per_token), ""),
            ("  from page-locked memory", word_seconds(offload.pinned_transfer_s_per_token), ""),
        ]
    headers = (f"experts on the CPU with 1 × {make_printable(gpu)}",)
    table = make_table((*headers, "moved to the GPU", "computed there"), rows, right=(1, 2))
    cache = [] if offload.expert_cache is None else _list_expert_cache(offload.expert_cache)
    notes = make_paragraphs(offload.notes, Style.MUTED)
    return [table, *notes, *_list_flags(offload.flags), *cache]


def _list_expert_cache(cache: ExpertCache) -> list[RenderableType]:
    """Return what single experts on the GPU are worth, in engines that can keep them."""
    kept = (
        f"Engines that move single experts can keep {cache.experts_per_layer:,} of each layer on the "
        f"GPU, {format_bytes(cache.gpu_bytes)}. With a uniform router, "
        f"{word_share(cache.uniform_hit_rate)} of the experts that a token needs are there, and "
        f"{format_bytes(cache.uniform_transfer_bytes_per_token)} per token cross the bus."
    )
    seen = [
        f"{word_share(rate)} with {policy}, {format_bytes(moved)} per token"
        for policy, rate, moved in (
            (
                "the experts that other prompts used most",
                cache.static_hit_rate,
                cache.static_transfer_bytes_per_token,
            ),
            ("those used last", cache.lru_hit_rate, cache.lru_transfer_bytes_per_token),
        )
        if rate is not None and moved is not None
    ]
    measured = f"According to {cache.routing}: {'; '.join(seen)}." if seen else ""
    return [*make_paragraphs([kept, measured])]


def _list_flags(flags_of_engines: Mapping[str, str]) -> Iterator[RenderableType]:
    for engine, flags in flags_of_engines.items():
        yield from make_paragraphs([f"{engine}:"])
        if engine == _TRANSFORMERS:
            yield PythonArgument(flags)
        else:
            yield from make_whole_lines(f"  {line}" for line in flags.splitlines() if line.strip())


def list_speed(speed: SpeedBound, gpu: str) -> Block:
    """Return lower bounds on time, and what bounds them."""
    rows = [
        (
            "prefill of the batch",
            word_seconds(speed.prefill_s),
            speed.prefill_is_bound_by or UNKNOWN,
            word_count(speed.prefill_weight_flops),
            word_size(speed.prefill_read_bytes),
        ),
        (
            "decoding step",
            word_seconds(speed.decode_s_per_token),
            speed.decode_is_bound_by or UNKNOWN,
            word_count(speed.decode_weight_flops),
            word_size(speed.decode_read_bytes),
        ),
    ]
    headers = (
        f"at least, on {make_printable(gpu)}",
        "time",
        "bound by",
        "weights' FLOPs",
        "read",
    )
    seen = [
        f"{_word_seen(phase_seen, gpu)} the bound of {phase}."
        for phase, phase_seen in (
            ("the prefill", speed.prefill_seen),
            ("a step", speed.decode_seen),
        )
        if phase_seen is not None
    ]
    words = (
        "Lower bounds: no run is faster than the GPU's peaks allow, and most are slower. FLOPs are "
        "those of products with weights. `moetool inspect` also counts attention between tokens and "
        "what transformers recomputes from its cache."
    )
    if speed.experts_touched_per_layer is not None:
        words += (
            f" A step reads {speed.experts_touched_per_layer:.1f} experts per layer; "
            f"routing: {speed.routing}."
        )
    notes = make_paragraphs((words, *speed.notes), Style.MUTED)
    return [make_table(headers, rows, right=(1, 3, 4)), *make_paragraphs(seen), *notes]


def _word_seen(seen: SeenSpeed, gpu: str) -> str:
    """Return the first part of a sentence on recorded runs: `… took 1.6 to 3.2 times`."""
    geometries = "geometry" if seen.num_geometries == 1 else "geometries"
    least, most = f"{seen.least_over_bound:.1f}", f"{seen.most_over_bound:.1f}"
    times = least if least == most else f"{least} to {most}"
    return (
        f"{number_of(seen.num_runs, 'run')} of {seen.num_geometries:,} {geometries} on {make_printable(gpu)}, "
        f"at {seen.batch_size:,} × {seen.num_prompt_tokens:,} tokens, took {times} times"
    )
