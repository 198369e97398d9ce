"""Choose the files of a run of route-trace, and show on stderr what it recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.cli.observer import TerminalObserver
from moetool.cli.writing.pages import check_page_of_run, make_page_of_run

if TYPE_CHECKING:
    from moetool.trace.writing.sink_choice import SinkChoice
    from moetool.tracing.options import TraceOptions
    from moetool.tracing.run import TracedRun
    from moetool.tracing.running.texts import TextFile


@dataclass(frozen=True)
class RunFiles:
    """Files of a run that is about to start.

    Attributes:
        sink: The place of its rows.
        texts: The file of the generated texts, if they are kept.
        open_texts: Opens that file; None without one.
        page: The page about the trace, if one is to be made.
        force: Whether files are replaced.
    """

    sink: SinkChoice
    texts: Path | None
    open_texts: Callable[[], TextFile] | None
    page: Path | None
    force: bool

    def show(self, run: TracedRun | None, observer: TerminalObserver, *, timings: bool) -> None:
        """Print the summary of a run, unless asked to be quiet, and make its page.

        Args:
            run: The finished run; None for one that has shown itself.
            observer: Followed it.
            timings: Whether to print where its time went, on one line.
        """
        if run is not None and not observer.is_quiet:
            sys.stderr.write(self._summarize(run, observer))
        make_page_of_run(
            self.page, trace=self.sink.target, force=self.force, is_quiet=observer.is_quiet
        )
        if run is not None and timings:
            from moetool.report.trace_summary import render_timings

            sys.stderr.write(render_timings(run.timings))

    def _summarize(self, run: TracedRun, observer: TerminalObserver) -> str:
        from moetool.analysis.routing_summary import summarize_routing
        from moetool.report.trace_summary import render_trace_summary

        target = self.sink.target
        return render_trace_summary(
            run.metadata,
            summarize_routing(run.counts),
            num_rows=run.num_rows,
            elapsed_s=run.timings.elapsed_s,
            wrote=target,
            wrote_bytes=target.stat().st_size if target else 0,
            streamed=target is None and self.sink.keeps_rows,
            texts=self.texts,
            excerpts=run.excerpts,
            view=observer.view,
        )


def choose_files(
    output: Path | None,
    output_format: str | None,
    texts: Path | None,
    page: Path | None,
    *,
    options: TraceOptions,
    force: bool,
    resume: bool,
    inputs: Sequence[Path],
    is_first: bool,
) -> RunFiles:
    """Return the files that a run writes, after checking that it can.

    Args:
        output: Of the rows.
        output_format: Of the rows.
        texts: Of the generated texts.
        page: About the trace.
        options: Of the run: whether it generates texts, and what goes next to the rows.
        force: Replace existing files.
        resume: Go on with an interrupted run.
        inputs: Files that the run reads.
        is_first: Whether this is the first process of the run.

    Raises:
        UsageError: One of them can't be written.
    """
    from moetool.trace.writing.sink_choice import choose_sink
    from moetool.tracing.running.texts import choose_texts

    check_page_of_run(page, trace=output, force=force, inputs=inputs)
    sink = choose_sink(
        output,
        output_format,
        replace_existing=force,
        resume=resume,
        with_probabilities=options.with_probabilities,
        with_saliency=options.with_saliency,
        inputs=inputs,
        is_first=is_first,
    )
    open_texts = choose_texts(
        texts,
        generation=options.generation,
        output=sink.target,
        replace_existing=force,
        resume=resume,
        inputs=inputs,
        is_first=is_first,
    )
    return RunFiles(sink, texts, open_texts, page, force)
