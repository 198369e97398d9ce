"""The sentence that an estimate's page begins with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moetool.memory.answers.figures import Basis, StoredWeights
from moetool.quantized.kinds import Quantization
from moetool.report.memory.data import render_table_text
from moetool.report.renderer import View
from tests.report.memory.estimates import (
    FIGURES,
    FITS,
    GIB,
    OFFLOAD,
    make_estimate,
    make_fit,
)


def verdict(**changes: Any) -> str:
    page = render_table_text([make_estimate(**changes)], View(width=80))
    return " ".join(page.split("\n\n")[0].split())


def test_without_a_known_fit_the_verdict_is_what_it_needs() -> None:
    assert verdict(fits=()) == "small-4x needs 21.5 GiB on a GPU."
    assert verdict(fits=(replace(FITS[0], fits=None),)) == "small-4x needs 21.5 GiB on a GPU."
    assert verdict(fits=(replace(FITS[0], headroom_bytes=None),)) == (
        "small-4x needs 21.5 GiB and fits on 1 × big (80.0 GiB)."
    )


def test_without_a_total_the_verdict_says_so_and_gives_the_weights() -> None:
    figures = replace(FIGURES, total_device_bytes=None)
    assert verdict(figures=figures, fits=()) == (
        "The memory that small-4x needs is unknown. Its weights alone take 16.0 GiB."
    )


def test_only_ways_that_help_are_offered() -> None:
    too_small = make_fit("small", memory_gib=16, needs_gib=21.5, num_gpus=None)
    in_nf4 = make_fit("small", memory_gib=16, needs_gib=17, quantization=Quantization.NF4)
    expected = "small-4x needs 21.5 GiB and doesn't fit on 1 × small (16.0 GiB): short by 5.5 GiB."
    assert verdict(gpu="small", fits=(too_small, in_nf4)) == expected
    for offload in (
        replace(OFFLOAD, fits=False, fits_computed_on_host=False),
        replace(OFFLOAD, num_offloaded_layers=0),
    ):
        assert verdict(gpu="small", fits=(too_small,), offload=offload) == expected


def test_where_only_computing_experts_on_the_host_helps_that_is_offered() -> None:
    too_small = make_fit("small", memory_gib=16, needs_gib=21.5)
    offload = replace(OFFLOAD, fits=False)
    assert verdict(gpu="small", fits=(too_small,), offload=offload).endswith(
        "short by 5.5 GiB. With the routed experts of 6 of 18 layers computed on the host, as "
        "llama.cpp does, 1 × small is enough."
    )


def test_without_a_gpu_the_smallest_that_is_enough_is_named() -> None:
    medium = make_fit("medium", memory_gib=24, needs_gib=21.5)
    assert verdict(fits=(*FITS, medium)) == (
        "small-4x needs 21.5 GiB and fits on one medium (24.0 GiB), the smallest known GPU that can hold it. "
        "The smallest is the small (16.0 GiB) in nf4."
    )
    in_int8 = replace(medium, quantization=Quantization.INT8)
    assert verdict(fits=(*FITS[:2], medium, in_int8)).endswith("The smallest is the same in int8.")
    assert "smallest" not in verdict(gpu="medium", fits=(medium,))


def test_without_a_gpu_that_is_enough_several_are_named() -> None:
    big = make_fit("big", memory_gib=80, needs_gib=200, num_gpus=3)
    small = make_fit("small", memory_gib=16, needs_gib=200, num_gpus=14)
    assert verdict(fits=(small, big)) == (
        "small-4x needs 21.5 GiB: no known GPU is enough alone, and 3 × big are, with "
        'device_map="auto".'
    )
    uncounted = replace(big, num_gpus=None)
    assert verdict(fits=(small, uncounted)) == ("small-4x needs 21.5 GiB: no known GPU is enough.")
    in_nf4 = replace(big, quantization=Quantization.NF4, fits=True)
    assert verdict(fits=(small, big, in_nf4)).endswith("The smallest is the big (80.0 GiB) in nf4.")
    too_large = replace(big, quantization=Quantization.INT8)
    assert verdict(fits=(*FITS, too_large)).endswith("No known GPU is enough alone in int8.")


def test_without_a_gpu_packed_and_dequantized_weights_each_have_a_smallest_one() -> None:
    stored = StoredWeights(
        method="mxfp4, packed",
        stored_bytes=None,
        loaded_bytes=None,
        is_dequantized=None,
        packed_bytes=9 * GIB,
        dequantized_bytes=16 * GIB,
        basis=Basis.PUBLISHED,
    )
    fits = (FITS[0], make_fit("small", memory_gib=16, needs_gib=12))
    variants = {"as_published": FIGURES, "dequantized": FIGURES}
    assert verdict(fits=fits, stored=stored, variants=variants) == (
        "small-4x needs 21.5 GiB with its weights packed as published, in mxfp4, and fits on one "
        "small (16.0 GiB), the smallest known GPU that can hold it. With its weights dequantized it needs 21.5 "
        "GiB and fits on one big (80.0 GiB)."
    )
