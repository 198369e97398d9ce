"""Whole pages at several widths, as they were when someone last read them.

After a change that is meant, run `pytest tests/report/test_layout.py --snapshot-update -n 0` and
read the difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from syrupy.assertion import SnapshotAssertion

from moetool import Scenario, estimate_memory, inspect_model
from moetool.analysis.routing_summary import summarize_routing
from moetool.catalogue.gpus import read_gpus
from moetool.catalogue.published import read_published_models, read_reported_systems
from moetool.catalogue.selection import select_models
from moetool.inspection.result import Inspection
from moetool.interchange.imports.detect import Detection
from moetool.interchange.imports.write import ImportResult
from moetool.memory.result import Estimate
from moetool.report import gpus, imports
from moetool.report import models as catalogue
from moetool.report.inspect import data as inspect
from moetool.report.inspect import summary
from moetool.report.memory import data as memory
from moetool.report.renderer import View
from moetool.report.text.lines import WholeLine
from moetool.report.trace_summary import render_trace_summary
from moetool.trace.excerpt import PromptExcerpt
from moetool.trace.metadata import NOT_EXACT, TraceMetadata
from tests.report.examples import (
    make_counts,
)
from tests.report.questions.pages import QUESTION_PAGES
from tests.report.trace.excerpts import describe_layers, make_prompt, make_wide_stack

VIEWS = {
    **{f"{width} columns": View(width=width) for width in (60, 80, 120, 200)},
    "80 columns with colour": View(width=80, has_color=True),
    "no terminal": View(),
}
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@cache
def inspect_models(*names: str) -> Sequence[Inspection]:
    return tuple(map(inspect_model, names))


@cache
def estimate(*batch_sizes: int, gpu: str | None = None) -> Sequence[Estimate]:
    scenarios = [Scenario(batch_size=size, num_prompt_tokens=512) for size in batch_sizes]
    return estimate_memory("olmoe-1b-7b", scenarios, gpu=gpu)


def sweep() -> Sequence[Estimate]:
    return estimate(1, 8, 32)


def show_model(view: View) -> str:
    return inspect.render_table_text(inspect_models("mixtral-8x7b"), view)


def show_layers(view: View) -> str:
    layers = View(per_layer=True, width=view.width, has_color=view.has_color)
    return inspect.render_table_text(inspect_models("deepseek-v3"), layers)


def show_models(view: View) -> str:
    names = ("gpt-oss-20b", "qwen3-30b-a3b", "deepseek-v3", "gpt-4")
    return inspect.render_table_text(inspect_models(*names), view)


def show_rows_of_models(view: View) -> str:
    return summary.render_table_text(inspect_models("gpt-oss-20b", "gpt-4"), view)


def show_estimate(view: View) -> str:
    return memory.render_table_text(sweep()[1:2], view)


def show_estimate_on_gpu(view: View) -> str:
    return memory.render_table_text(estimate(8, gpu="12GiB"), view)


def show_sweep(view: View) -> str:
    return memory.render_table_text(sweep(), view)


def show_catalogue(view: View) -> str:
    everything = select_models(read_published_models().values(), read_reported_systems().values())
    return catalogue.render_table_text(everything, view)


def show_gpus(view: View) -> str:
    names = ("t4", "rtx-4070-ti-super", "a100-80gb-pcie", "dgx-spark", "mi325x")
    return gpus.render_table_text([read_gpus()[name] for name in names], view)


def show_run(view: View) -> str:
    stack = make_wide_stack(24, num_experts=128, top_k=8)
    return render_run(view, make_prompt(stack, prompt="Once upon a time " * 9, written="there was"))


def show_run_of_prompts(view: View) -> str:
    encoder, decoder = (
        replace(make_wide_stack(24, num_experts=128, top_k=2), stack=name)
        for name in ("encoder", "decoder")
    )
    return render_run(
        view,
        make_prompt(encoder, decoder, prompt_id="task/001", domain="code", written=""),
        make_prompt(encoder, decoder, prompt_id="stories/in-many-words/" * 4 + "7", domain="prose"),
    )


def render_run(view: View, *excerpts: PromptExcerpt) -> str:
    counts = make_counts(["code", "prose"], prompts_per_domain=12)
    return render_trace_summary(
        TraceMetadata(
            model="org/model",
            layers=tuple(
                layer
                for stack in excerpts[0].stacks
                for layer in describe_layers(24, num_experts=128, top_k=8, stack=stack.stack)
            ),
            num_prompts=24,
            num_tokens=4_800,
            num_decisions=115_200,
            num_new_tokens=1,
            max_new_tokens=1,
            num_cut_prompts=2,
            max_prompt_tokens=200,
        ),
        summarize_routing(counts),
        num_rows=921_600,
        elapsed_s=12.34,
        wrote=Path("trace.parquet"),
        wrote_bytes=5_000_000,
        excerpts=excerpts,
        view=view,
    )


def show_import(view: View) -> str:
    result = ImportResult(
        path=Path("trace.parquet"),
        format="moe-policylang",
        kind="trace",
        columns=("prompt_id", "domain", "phase", "position", "stack", "layer", "rank", "expert"),
        num_rows=12_288,
        num_bytes=40_000,
        num_layers=24,
        num_prompts=16,
        num_tokens=512,
        num_experts=None,
        top_k=(2,),
        notes=(
            f"{NOT_EXACT} the routing was computed again.",
            "The number of experts is not in the files: --num-experts or --model states it.",
        ),
    )
    return imports.render_result_text(result, view)


def show_detection(view: View) -> str:
    known = Detection(
        path="recordings/imatrix.gguf",
        format="imatrix",
        title="llama.cpp's importance matrix (.gguf)",
        kind="load table",
        gives="counts",
        lacks="tokens, steps",
        command="moetool import imatrix recordings/imatrix.gguf -o loads.parquet",
    )
    return imports.render_detections_text(
        [known, Detection("moe.yaml", None, "a file of no known format")], view
    )


PAGES = (
    show_model,
    show_layers,
    show_models,
    show_rows_of_models,
    show_estimate,
    show_estimate_on_gpu,
    show_sweep,
    show_catalogue,
    show_gpus,
    show_run,
    show_run_of_prompts,
    show_import,
    show_detection,
    *QUESTION_PAGES,
)


@dataclass(frozen=True)
class Shown:
    """A page, and those of its lines that are meant to be copied."""

    text: str
    lines_to_copy: frozenset[str]


@cache
def render(show: Callable[[View], str], view: str) -> Shown:
    lines = set[str]()

    class Recorded(WholeLine):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            lines.add(self.line.rstrip())
            yield from super().__rich_console__(console, options)

    with patch("moetool.report.text.lines.WholeLine", Recorded):
        return Shown(show(VIEWS[view]), frozenset(lines))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("show", PAGES)
def test_a_page_is_laid_out_like_this(
    show: Callable[[View], str], view: str, snapshot: SnapshotAssertion
) -> None:
    assert render(show, view).text == snapshot


@pytest.mark.parametrize("show", PAGES)
def test_every_line_fits_the_terminal_unless_it_is_to_be_copied(
    show: Callable[[View], str],
) -> None:
    for name, view in VIEWS.items():
        if view.width is not None:
            shown = render(show, name)
            lines = ESCAPES.sub("", shown.text).splitlines()
            too_wide = {line for line in lines if cell_len(line) > view.width}
            assert too_wide <= shown.lines_to_copy


@pytest.mark.parametrize("show", PAGES)
def test_a_wider_terminal_never_needs_more_lines(show: Callable[[View], str]) -> None:
    heights = [
        render(show, name).text.count("\n")
        for name, view in VIEWS.items()
        if view.width and not view.has_color
    ]
    assert heights == sorted(heights, reverse=True)
