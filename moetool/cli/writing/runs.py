"""Choose the files of a run of route-trace, and show on stderr what it recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.cli.observer import TerminalObserver

if TYPE_CHECKING:
    from moetool.trace.writing.sink_choice import SinkChoice
    from moetool.tracing.options import GenerationOptions
    from moetool.tracing.run import TracedRun
    from moetool.tracing.running.texts import TextFile


def choose_files(
    output: Path | None,
    output_format: str | None,
    texts: Path | None,
    *,
    generation: GenerationOptions | None,
    with_probabilities: bool,
    with_saliency: bool,
    force: bool,
    resume: bool,
    inputs: Sequence[Path],
    is_first: bool,
) -> tuple[SinkChoice, Callable[[], TextFile] | None]:
    """Return the place of a run's rows, and what opens the file of its texts; None without one.

    Raises:
        UsageError: They can't be written there.
    """
    from moetool.trace.writing.sink_choice import choose_sink
    from moetool.tracing.running.texts import choose_texts

    sink = choose_sink(
        output,
        output_format,
        replace_existing=force,
        resume=resume,
        with_probabilities=with_probabilities,
        with_saliency=with_saliency,
        inputs=inputs,
        is_first=is_first,
    )
    open_texts = choose_texts(
        texts,
        generation=generation,
        output=sink.target,
        replace_existing=force,
        resume=resume,
        inputs=inputs,
        is_first=is_first,
    )
    return sink, open_texts


def summarize_run(
    run: TracedRun, observer: TerminalObserver, *, sink: SinkChoice, texts: Path | None
) -> None:
    """Print the summary of a run, unless asked to be quiet.

    Args:
        run: The finished run.
        observer: Followed it.
        sink: The place of its rows.
        texts: The file of generated texts, if there is one.
    """
    from moetool.analysis.routing_summary import summarize_routing
    from moetool.report.trace_summary import render_trace_summary

    if observer.is_quiet:
        return
    summary = render_trace_summary(
        run.metadata,
        summarize_routing(run.counts),
        num_rows=run.num_rows,
        elapsed_s=run.timings.elapsed_s,
        wrote=sink.target,
        wrote_bytes=sink.target.stat().st_size if sink.target else 0,
        streamed=sink.target is None and sink.keeps_rows,
        texts=texts,
        excerpts=run.excerpts,
        view=observer.view,
    )
    sys.stderr.write(summary)


def show_timings(run: TracedRun) -> None:
    """Print where the time of a run went, on one line."""
    from moetool.report.trace_summary import render_timings

    sys.stderr.write(render_timings(run.timings))
