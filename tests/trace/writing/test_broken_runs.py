"""Runs that end on the way: files removed, a full disk, an error in any step of finishing."""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from moetool.errors import UsageError
from moetool.trace.companions import probabilities_path, sidecar_path
from moetool.trace.reading.reader import open_trace, read_trace
from moetool.trace.rows import probability_rows
from moetool.trace.writing.partial import partial_folder
from moetool.trace.writing.writer import TraceFile
from tests.trace.examples import (
    BEFORE,
    columns_of,
    make_layers,
    make_rows,
    make_tokens,
)
from tests.trace.writing.runs import AFTER, names_in


def remove_and_go_on(target: Path, remove: Callable[[TraceFile], object]) -> UsageError:
    """Remove something between two writes, and return the outcome of the run."""

    def run() -> None:
        with TraceFile(target, metadata=BEFORE) as sink:
            sink.write(make_rows(seed=1))
            remove(sink)
            sink.write(make_rows(seed=2))
            sink.finish(AFTER)

    with pytest.raises(UsageError) as caught:
        run()
    assert not target.exists()
    return caught.value


@pytest.mark.parametrize("is_early", [True, False])
def test_a_folder_that_is_removed_ends_the_run(
    is_early: bool, target: Path, request: pytest.FixtureRequest
) -> None:
    if is_early:
        request.getfixturevalue("small_parts")
    error = remove_and_go_on(target, lambda sink: shutil.rmtree(sink.partial))
    assert error.message == f"'{partial_folder(target)}' was removed or changed during the run."
    assert not hasattr(error, "__notes__")
    assert names_in(target.parent) == []


def test_a_folder_above_that_is_removed_ends_the_run(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "trace.csv"
    target.parent.mkdir()
    error = remove_and_go_on(target, lambda _: shutil.rmtree(target.parent))
    assert "was removed" in error.message
    assert names_in(tmp_path) == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("what", ["removed", "damaged"])
def test_a_part_that_is_lost_ends_the_run(what: str, target: Path) -> None:
    part = partial_folder(target) / "part-00000.parquet"
    change = part.unlink if what == "removed" else partial(part.write_bytes, b"damaged")
    error = remove_and_go_on(target, lambda _: change())
    assert error.message == f"'{part}' was removed or changed during the run."


@pytest.mark.usefixtures("small_parts")
def test_a_folder_that_another_run_has_now_is_not_written_to(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE) as first:
        first.write(make_rows(seed=1))
        shutil.rmtree(first.partial)
        with TraceFile(target, metadata=BEFORE) as second:
            second.write(make_rows(seed=2))
            with pytest.raises(UsageError, match="was removed"):
                first.write(make_rows(seed=3))
            second.finish(AFTER)
    assert columns_of(read_trace(target)) == make_rows(seed=2).to_pydict()
    assert not partial_folder(target).exists()


@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_leaves_the_parts_that_were_closed(target: Path) -> None:
    rows = make_rows()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk() -> None:
        with TraceFile(target, metadata=BEFORE) as sink:
            sink.write(rows)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            sink.write(rows)

    try:
        with pytest.raises(UsageError, match=r"Can't write '.*': File too large") as caught:
            fill_the_disk()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(partial_folder(target)) in caught.value.__notes__[0]
    assert columns_of(read_trace(partial_folder(target))) == rows.to_pydict()
    assert names_in(partial_folder(target)) == ["_lock", "part-00000.parquet"]


def models_at(target: Path) -> dict[str, str | None]:
    """Return the model named by each file of a trace; None where there is no file."""

    def model_of(path: Path, read: Callable[[Path], bytes]) -> str | None:
        return json.loads(read(path))["model"] if path.exists() else None

    def read_footer(path: Path) -> bytes:
        return bytes(pq.read_metadata(path).metadata[b"moetool"])

    trace = open_trace(target).metadata if target.exists() else None
    rows = read_trace(target)["weight"].sum() if target.exists() else None
    return {
        "rows": {sum_of(1): "old", sum_of(2): "new", None: None}[rows],
        "trace": trace.model if trace else None,
        "sidecar": model_of(sidecar_path(target), Path.read_bytes),
        "probabilities": model_of(probabilities_path(target), read_footer),
    }


def sum_of(seed: int) -> float:
    return float(make_rows(seed=seed).to_pandas()["weight"].sum())


@pytest.mark.parametrize("is_replaced", [False, True])
def test_at_every_instant_all_files_are_of_one_trace(
    is_replaced: bool, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(seed: int, model: str) -> None:
        tokens, layers = make_tokens([3, 2]), make_layers(5, top_k=(2, 2))
        with TraceFile(target, metadata=BEFORE, replace_existing=True) as sink:
            sink.write(make_rows(seed=seed), probability_rows(tokens, layers))
            sink.finish(replace(AFTER, model=model))

    if is_replaced:
        write(1, "old")
    seen: list[dict[str, str | None]] = [models_at(target)]
    for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "link")):
        step = getattr(owner, name)

        def step_and_look(*args: Any, step: Any = step, **options: Any) -> None:
            step(*args, **options)
            seen.append(models_at(target))

        monkeypatch.setattr(owner, name, step_and_look)
    write(2, "new")

    for models in seen:
        assert len({model for model in models.values() if model}) <= 1, models
        assert models["rows"] is not None or not any(models.values()), models
    whole = {"rows", "trace", "probabilities"} | ({"sidecar"} & {sidecar_of(target)})
    assert {name for name, model in seen[-1].items() if model == "new"} == whole
    assert not is_replaced or seen[0]["rows"] == "old"


def sidecar_of(target: Path) -> str | None:
    return "sidecar" if target.suffix == ".csv" else None
