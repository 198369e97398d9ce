"""Paths that a run writes for a trace, checked before any work is done for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from moetool.errors import UsageError
from moetool.output.targets import check_names, check_target_file, saying_what_failed
from moetool.trace.companions import (
    check_companions,
    probabilities_path,
    saliency_path,
    sidecar_path,
)
from moetool.trace.writing.partial import check_partial_folder, partial_folder
from moetool.trace.writing.unfinished.resuming import may_replace

FILE_SUFFIXES = (".parquet", ".csv")


def list_places(target: Path) -> list[Path]:
    """Return every path that a run may write for a trace at a target."""
    return [
        target,
        sidecar_path(target),
        probabilities_path(target),
        saliency_path(target),
        partial_folder(target),
    ]


def check_target(
    target: Path,
    *,
    replace_existing: bool,
    with_probabilities: bool = False,
    with_saliency: bool = False,
    inputs: Iterable[Path] = (),
    is_running: bool = False,
    resume: bool = False,
) -> None:
    """Check that a trace can be written to a path, before any work is done for it.

    Args:
        target: Path of the trace.
        replace_existing: Accept an existing trace, and the parts of an unfinished run. A resumed
            run replaces what the unfinished one would have.
        with_probabilities: The run also writes probabilities.
        with_saliency: The run also writes saliency.
        inputs: Files that the run reads.
        is_running: The run already holds the folder of the parts.
        resume: The run goes on from the parts of an unfinished one.

    Raises:
        UsageError: The path exists, an earlier run left parts there or, to resume, left none,
            another run writes there, or its folder cannot be used.
    """
    if target.suffix not in FILE_SUFFIXES:
        raise UsageError(
            f"The format of '{target}' is unknown.", hint="End the name in .parquet or .csv."
        )
    if resume:
        replace_existing = may_replace(partial_folder(target))
        _check_resumed(target, may_replace=replace_existing)
    check_target_file(target, replace_existing=replace_existing, inputs=inputs)
    check_names(
        [
            partial_folder(target),
            *([sidecar_path(target)] if target.suffix == ".csv" else []),
            *([probabilities_path(target)] if with_probabilities else []),
            *([saliency_path(target)] if with_saliency else []),
        ]
    )
    check_companions(
        target,
        replace_existing=replace_existing,
        with_probabilities=with_probabilities,
        with_saliency=with_saliency,
    )
    if not is_running:
        with saying_what_failed(target):
            check_partial_folder(target, discard=replace_existing and not resume, resume=resume)


def _check_resumed(target: Path, *, may_replace: bool) -> None:
    if not os.path.lexists(target) or may_replace:
        return
    if not os.path.lexists(partial_folder(target)):
        raise UsageError(
            f"'{target}' is finished, and no run left '{partial_folder(target)}': there is nothing "
            "to resume.",
            hint="Leave out --resume and choose another name, or give --force instead to trace "
            "again.",
        )
    raise UsageError(
        f"'{target}' exists, next to the parts of an unfinished run.",
        hint="Move it elsewhere and resume again.",
    )
