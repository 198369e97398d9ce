"""Writing of a trace: parts first, then the complete target or nothing."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.errors import UsageError
from moetool.trace.companions import probabilities_path, sidecar_path
from moetool.trace.reading.reader import open_trace, read_trace
from moetool.trace.rows import assignment_rows, probability_rows
from moetool.trace.schema import TRACE_SCHEMA, plain_schema
from moetool.trace.writing.partial import partial_folder
from moetool.trace.writing.writer import (
    NoTrace,
    TraceFile,
    TraceStream,
    check_target,
)
from tests.trace.examples import (
    BEFORE,
    HOSTILE_WORDS,
    break_off,
    columns_of,
    describe_layers,
    make_layers,
    make_rows,
    make_tokens,
    write_trace,
)

AFTER = replace(BEFORE, complete=True, layers=describe_layers(), num_tokens=5)


@pytest.fixture(params=[".parquet", ".csv"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"trace{request.param}"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close a part as soon as it has seven rows."""
    monkeypatch.setattr("moetool.trace.writing.parts.ROWS_PER_PART", 7)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupt(target: Path, *tables: pa.Table, replace_existing: bool = False) -> BaseException:
    """Interrupt a run after a few tables, and return the interrupt as it comes out."""
    with pytest.raises(KeyboardInterrupt) as caught:
        break_off(target, *tables, replace_existing=replace_existing)
    return caught.value


def write_with_probabilities(target: Path, *, replace_existing: bool = False) -> None:
    tokens, layers = make_tokens([3, 2]), make_layers(5, top_k=(2, 2))
    with TraceFile(target, metadata=BEFORE, replace_existing=replace_existing) as sink:
        sink.write(assignment_rows(tokens, layers), probability_rows(tokens, layers))
        sink.finish(AFTER)


def test_the_target_appears_only_on_finish(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE) as sink:
        assert names_in(target.parent) == [f"{target.name}.partial"]
        sink.write(make_rows())
        assert names_in(target.parent) == [f"{target.name}.partial"]
        sink.finish(AFTER)
        assert target.is_file()


def test_nothing_but_the_trace_stays(target: Path) -> None:
    write_trace(target, make_rows(), metadata=AFTER)
    beside = [sidecar_path(target).name] if target.suffix == ".csv" else []
    assert names_in(target.parent) == sorted([target.name, *beside])


@pytest.mark.usefixtures("small_parts")
def test_an_unfinished_trace_is_read_from_its_partial_folder(target: Path) -> None:
    rows = make_rows()
    with TraceFile(target, metadata=AFTER) as sink:
        sink.write(rows)
        partial = partial_folder(target)
        assert columns_of(read_trace(partial)) == rows.to_pydict()
        assert open_trace(partial).metadata == replace(AFTER, complete=False)
        sink.finish(AFTER)


def test_after_an_interrupt_everything_written_is_in_the_partial_folder(target: Path) -> None:
    first, second = make_rows(seed=1), make_rows(seed=2, prompt_ids=["p2", "p3"])
    interrupt(target, first, second)
    assert not target.exists()
    partial = partial_folder(target)
    assert columns_of(read_trace(partial)) == pa.concat_tables([first, second]).to_pydict()
    assert open_trace(partial).metadata == BEFORE


@pytest.mark.usefixtures("small_parts")
def test_an_interrupt_carries_a_note_that_names_the_folder_and_counts_its_rows(
    target: Path,
) -> None:
    tables = [make_rows(seed=1), make_rows(seed=2), make_rows((1,))]
    (note,) = interrupt(target, *tables).__notes__
    assert str(partial_folder(target)) in note
    assert f"{sum(table.num_rows for table in tables)} rows" in note


@pytest.mark.parametrize("tables", [(), (make_rows().slice(0, 0),)], ids=["none", "empty"])
def test_an_interrupt_before_the_first_row_leaves_nothing(
    target: Path, tables: tuple[pa.Table, ...]
) -> None:
    caught = interrupt(target, *tables)
    assert not hasattr(caught, "__notes__")
    assert names_in(target.parent) == []


def test_an_interrupt_after_finish_names_no_folder_that_is_gone(target: Path) -> None:
    def finish_and_break_off() -> None:
        with TraceFile(target, metadata=BEFORE) as sink:
            sink.write(make_rows())
            sink.finish(AFTER)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        finish_and_break_off()
    assert columns_of(read_trace(target)) == make_rows().to_pydict()
    assert not hasattr(caught.value, "__notes__")


def test_a_finish_that_fails_leaves_the_parts(target: Path) -> None:
    def finish_where_a_folder_is_in_the_way() -> None:
        with TraceFile(target, metadata=BEFORE) as sink:
            sink.write(make_rows())
            target.mkdir()
            sink.finish(AFTER)

    with pytest.raises(UsageError, match="is a folder") as caught:
        finish_where_a_folder_is_in_the_way()
    assert columns_of(read_trace(partial_folder(target))) == make_rows().to_pydict()
    assert str(partial_folder(target)) in caught.value.__notes__[0]


def test_many_parts_merge_to_the_rows_of_one(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The words differ from window to window, and so do the dictionaries of the parts.
    windows = [
        make_rows(
            (3, 2), seed=seed, prompt_ids=[f"p{seed}.0", f"p{seed}.1"], domains=["same", f"d{seed}"]
        )
        for seed in range(5)
    ]
    whole = write_trace(target.with_stem("whole"), *windows)
    monkeypatch.setattr("moetool.trace.writing.parts.ROWS_PER_PART", 7)
    merged = write_trace(target.with_stem("merged"), *windows)
    assert columns_of(read_trace(merged)) == columns_of(read_trace(whole))
    assert columns_of(read_trace(merged)) == pa.concat_tables(windows).to_pydict()


@pytest.mark.usefixtures("small_parts")
def test_parts_are_closed_as_rows_come_in(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE) as sink:
        for count in range(1, 4):
            sink.write(make_rows(seed=count))
            parts = [f"part-{number:05d}.parquet" for number in range(count)]
            assert names_in(sink.partial) == ["lock", *parts]
        sink.finish(AFTER)


def test_a_part_is_closed_when_enough_time_has_passed(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moetool.trace.writing.parts.SECONDS_PER_PART", 0.0)
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(make_rows())
        assert names_in(sink.partial) == ["lock", "part-00000.parquet"]
        sink.finish(AFTER)


def test_a_trace_without_rows_can_be_written_and_read(target: Path) -> None:
    frame = read_trace(write_trace(target))
    assert list(frame.columns) == TRACE_SCHEMA.names
    assert len(frame) == 0


def test_a_parquet_trace_is_what_pandas_reads(tmp_path: Path) -> None:
    rows = make_rows(pieces=HOSTILE_WORDS[:5])
    path = write_trace(tmp_path / "trace.parquet", rows)
    assert columns_of(pd.read_parquet(path)) == rows.to_pydict()


# Probabilities


def test_probabilities_lie_in_a_parquet_file_beside_the_trace(target: Path) -> None:
    tokens, layers = make_tokens([3, 2]), make_layers(5, top_k=(2, 2))
    probabilities = probability_rows(tokens, layers)
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(assignment_rows(tokens, layers), probabilities)
        sink.finish(AFTER)
    beside = probabilities_path(target)
    assert beside.name == "trace.probabilities.parquet"
    assert pq.read_table(beside).to_pydict() == probabilities.to_pydict()
    assert columns_of(read_trace(target)) == assignment_rows(tokens, layers).to_pydict()
    assert pq.read_metadata(beside).metadata[b"moetool"].decode() == AFTER.to_json()


@pytest.mark.usefixtures("small_parts")
def test_unfinished_probabilities_do_not_disturb_the_unfinished_trace(target: Path) -> None:
    tokens, layers = make_tokens([3, 2]), make_layers(5, top_k=(2, 2))
    rows, probabilities = assignment_rows(tokens, layers), probability_rows(tokens, layers)
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(rows, probabilities)
        assert columns_of(read_trace(sink.partial)) == rows.to_pydict()
        sink.finish(AFTER)


# --force


def test_an_existing_trace_is_kept_until_its_replacement_is_finished(target: Path) -> None:
    old, new = make_rows(seed=1), make_rows(seed=2)
    assert old.to_pydict() != new.to_pydict()
    write_trace(target, old, metadata=AFTER)
    with TraceFile(target, metadata=BEFORE, replace_existing=True) as sink:
        sink.write(new)
        assert columns_of(read_trace(target)) == old.to_pydict()
        assert open_trace(target).metadata == AFTER
        sink.finish(replace(AFTER, model="new"))
    assert columns_of(read_trace(target)) == new.to_pydict()
    assert open_trace(target).metadata == replace(AFTER, model="new")


def test_an_interrupted_replacement_leaves_the_old_trace(target: Path) -> None:
    old, new = make_rows(seed=1), make_rows(seed=2)
    write_trace(target, old, metadata=AFTER)
    interrupt(target, new, replace_existing=True)
    assert columns_of(read_trace(target)) == old.to_pydict()
    assert open_trace(target).metadata == AFTER
    assert columns_of(read_trace(partial_folder(target))) == new.to_pydict()


@pytest.mark.usefixtures("small_parts")
def test_force_discards_the_parts_of_an_unfinished_run(target: Path) -> None:
    interrupt(target, make_rows(seed=1), make_rows(seed=2))
    new = make_rows(seed=3)
    write_trace(target, new, replace_existing=True)
    assert columns_of(read_trace(target)) == new.to_pydict()
    assert not partial_folder(target).exists()


def test_a_replacement_leaves_no_probabilities_of_the_trace_it_replaced(target: Path) -> None:
    write_with_probabilities(target)
    write_trace(target, make_rows(seed=2), replace_existing=True)
    assert not probabilities_path(target).exists()


# Files of others


def probabilities_of_another(target: Path) -> bytes:
    """Put the probabilities of another trace, whose name differs in its suffix, next to a target."""
    other = target.with_suffix(".parquet" if target.suffix == ".csv" else ".csv")
    write_with_probabilities(other)
    return probabilities_path(target).read_bytes()


def test_probabilities_of_another_trace_are_left_alone(target: Path) -> None:
    theirs = probabilities_of_another(target)
    check_target(target, replace_existing=False)
    write_trace(target, make_rows())
    write_trace(target, make_rows(), replace_existing=True)
    assert probabilities_path(target).read_bytes() == theirs


def test_probabilities_of_another_trace_are_never_replaced(target: Path) -> None:
    theirs = probabilities_of_another(target)
    with pytest.raises(UsageError, match=r"exists and belongs to 'trace\.") as early:
        check_target(target, replace_existing=True, with_probabilities=True)
    with pytest.raises(UsageError) as late:
        write_with_probabilities(target, replace_existing=True)
    assert late.value.message == early.value.message
    assert probabilities_path(target).read_bytes() == theirs
    assert len(read_trace(partial_folder(target))) > 0


@pytest.mark.parametrize("content", [b"", b"PAR1 not quite", None], ids=["empty", "broken", "bare"])
def test_probabilities_of_nobody_are_never_replaced(content: bytes | None, target: Path) -> None:
    path = probabilities_path(target)
    if content is None:
        pq.write_table(pa.table({"a": [1]}), path)
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    for force in (False, True):
        with pytest.raises(UsageError, match="does not state that it belongs to"):
            check_target(target, replace_existing=force)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"schema": "moetool.inspect/1"}'])
def test_a_sidecar_that_is_not_a_trace_s_is_never_replaced(content: str, tmp_path: Path) -> None:
    target = tmp_path / "trace.csv"
    sidecar_path(target).write_text(content, encoding="utf-8")
    for force in (False, True):
        with pytest.raises(UsageError, match="is not the metadata of a trace"):
            check_target(target, replace_existing=force)
    assert sidecar_path(target).read_text(encoding="utf-8") == content


@pytest.mark.parametrize("companion_path", [sidecar_path, probabilities_path])
def test_what_goes_with_a_trace_is_never_a_link(
    companion_path: Callable[[Path], Path], target: Path
) -> None:
    target = target.with_suffix(".csv")
    elsewhere = target.with_name("elsewhere.csv")
    write_with_probabilities(elsewhere)
    companion_path(target).symlink_to(companion_path(elsewhere))
    with pytest.raises(UsageError, match="exists and"):
        check_target(target, replace_existing=True)
    assert companion_path(elsewhere).is_file()


@pytest.mark.parametrize(
    "name", ["notes.txt", "part-1.parquet", "probabilities/notes.txt", "sub/a"]
)
def test_a_folder_that_holds_more_than_parts_is_never_emptied(name: str, target: Path) -> None:
    interrupt(target, make_rows())
    kept = partial_folder(target) / name
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(b"kept")
    parts = names_in(partial_folder(target))
    for force in (False, True):
        with pytest.raises(UsageError, match="which no run of moetool wrote"):
            TraceFile(target, metadata=BEFORE, replace_existing=force)
    assert names_in(partial_folder(target)) == parts
    assert kept.read_bytes() == b"kept"


def test_what_someone_puts_among_the_parts_stays(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(make_rows())
        (sink.partial / "notes.txt").write_bytes(b"kept")
        sink.finish(AFTER)
    assert names_in(partial_folder(target)) == ["notes.txt"]
    assert columns_of(read_trace(target)) == make_rows().to_pydict()


@pytest.mark.parametrize("leads_to", ["folder", "missing"])
def test_parts_never_go_through_a_link(leads_to: str, target: Path) -> None:
    elsewhere = target.with_name("folder")
    elsewhere.mkdir()
    (elsewhere / "part-00000.parquet").write_bytes(b"kept")
    partial_folder(target).symlink_to(target.with_name(leads_to))
    with pytest.raises(UsageError, match="is not a folder, but the parts"):
        TraceFile(target, metadata=BEFORE, replace_existing=True)
    assert names_in(elsewhere) == ["part-00000.parquet"]


def test_a_trace_through_a_link_replaces_the_link(target: Path) -> None:
    old, new = make_rows(seed=1), make_rows(seed=2)
    elsewhere = write_trace(target.with_stem("elsewhere"), old)
    target.symlink_to(elsewhere)
    assert refusal(target) == f"'{target}' exists."
    write_trace(target, new, replace_existing=True)
    assert not target.is_symlink()
    assert columns_of(read_trace(target)) == new.to_pydict()
    assert columns_of(read_trace(elsewhere)) == old.to_pydict()


def test_a_target_that_appears_during_the_run_is_kept_and_so_are_the_parts(target: Path) -> None:
    def write_while_another_does() -> None:
        with TraceFile(target, metadata=BEFORE) as sink:
            sink.write(make_rows())
            target.write_bytes(b"kept")
            sink.finish(AFTER)

    with pytest.raises(UsageError, match="exists") as caught:
        write_while_another_does()
    assert target.read_bytes() == b"kept"
    assert str(partial_folder(target)) in caught.value.__notes__[0]
    assert columns_of(read_trace(partial_folder(target))) == make_rows().to_pydict()
    assert names_in(partial_folder(target)) == ["lock", "part-00000.parquet"]


@pytest.mark.usefixtures("small_parts")
def test_an_input_is_refused_as_a_target(target: Path) -> None:
    write_trace(target, make_rows())
    with pytest.raises(UsageError, match="is an input of this command"):
        check_target(target, replace_existing=True, inputs=[target])


# Two runs


@pytest.mark.parametrize("force", [False, True])
def test_a_target_that_another_run_writes_is_refused(force: bool, target: Path) -> None:
    with TraceFile(target, metadata=BEFORE) as sink:
        sink.write(make_rows())
        for attempt in (check_target, partial(TraceFile, metadata=BEFORE)):
            with pytest.raises(UsageError) as caught:
                attempt(target, replace_existing=force)
            assert caught.value.message.startswith(f"Another run (process {os.getpid()}, since "), (
                caught.value.message
            )
        sink.finish(AFTER)
    assert columns_of(read_trace(target)) == make_rows().to_pydict()
    assert not partial_folder(target).exists()


@pytest.mark.usefixtures("small_parts")
def test_without_locks_the_rows_of_two_runs_are_not_mixed_either(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: int) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def write_while_another_does() -> None:
        with TraceFile(target, metadata=BEFORE) as first:
            first.write(make_rows(seed=1))
            with TraceFile(target, metadata=BEFORE, replace_existing=True) as second:
                second.write(make_rows(seed=2))
                first.finish(AFTER)

    monkeypatch.setattr("fcntl.flock", deny)
    with pytest.raises(UsageError, match="Another run wrote to"):
        write_while_another_does()
    assert not target.exists()


def test_a_run_that_ended_early_holds_nothing(target: Path) -> None:
    interrupt(target, make_rows())
    interrupt(target, replace_existing=True)
    interrupt(target, make_rows())
    with TraceFile(target, metadata=BEFORE, replace_existing=True) as sink:
        sink.write(make_rows(seed=2))
        sink.finish(AFTER)
    assert columns_of(read_trace(target)) == make_rows(seed=2).to_pydict()


def test_a_folder_without_parts_is_in_nobody_s_way(target: Path) -> None:
    """The state after a kill before the first part."""
    folder = partial_folder(target)
    folder.mkdir()
    (folder / "lock").write_text('{"pid": 1, "host": "a", "since": "2026"}')
    (folder / "part-00000.unfinished").touch()
    write_trace(target, make_rows())
    assert columns_of(read_trace(target)) == make_rows().to_pydict()
    assert not folder.exists()


# Files removed during the run


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


# A full disk


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
    assert names_in(partial_folder(target)) == ["lock", "part-00000.parquet"]


# Every step of finishing


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


# Targets that cannot be written


def refusal(target: Path) -> str:
    with pytest.raises(UsageError) as caught:
        check_target(target, replace_existing=False)
    return caught.value.message


def test_an_existing_trace_is_not_replaced_without_force(target: Path) -> None:
    target.touch()
    assert refusal(target) == f"'{target}' exists."
    check_target(target, replace_existing=True)


def test_existing_probabilities_are_not_replaced_without_force(target: Path) -> None:
    write_with_probabilities(target)
    target.unlink()
    sidecar_path(target).unlink(missing_ok=True)
    assert refusal(target) == f"'{probabilities_path(target)}' exists."
    check_target(target, replace_existing=True)


def test_parts_of_an_unfinished_run_are_not_discarded_without_force(target: Path) -> None:
    interrupt(target, make_rows())
    assert "unfinished run" in refusal(target)
    check_target(target, replace_existing=True)


def test_a_name_of_no_known_format_is_refused(tmp_path: Path) -> None:
    assert "format" in refusal(tmp_path / "trace.json")


def test_a_folder_is_refused_as_a_target(target: Path) -> None:
    target.mkdir()
    assert "is a folder" in refusal(target)


def test_a_target_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "missing" / "trace.parquet")


@pytest.mark.parametrize(
    ("suffix", "with_probabilities", "spare"),
    [
        (".csv", False, ".meta.json"),
        (".parquet", False, ".partial"),
        (".parquet", True, ".probabilities"),
    ],
)
def test_a_name_that_leaves_no_room_for_what_goes_with_it_is_refused_early(
    suffix: str, with_probabilities: bool, spare: str, tmp_path: Path
) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len(suffix) - len(spare)
    check = partial(check_target, replace_existing=False, with_probabilities=with_probabilities)
    check(tmp_path / f"{'n' * longest}{suffix}")
    with pytest.raises(UsageError, match=r"Can't write .*: File name too long"):
        check(tmp_path / f"{'n' * (longest + 1)}{suffix}")


def test_the_check_leaves_no_mark(target: Path) -> None:
    check_target(target, replace_existing=False)
    assert names_in(target.parent) == []


# CSV on a stream


def test_a_stream_carries_the_rows_under_one_header() -> None:
    tables = [make_rows(seed=seed, pieces=HOSTILE_WORDS[seed : seed + 5]) for seed in range(3)]
    stream = io.BytesIO()
    with TraceStream(stream) as sink:
        for table in tables:
            sink.write(table)
        sink.finish(AFTER)
    text = stream.getvalue().decode()
    header, *lines = csv.reader(io.StringIO(text, newline=""))
    assert header == TRACE_SCHEMA.names
    expected = pa.concat_tables(tables).cast(plain_schema(TRACE_SCHEMA))
    assert [np.float32(line.pop()) for line in lines] == expected.column("weight").to_pylist()
    words = [[str(value) for value in row.values()] for row in expected.to_pylist()]
    assert lines == [row[:-1] for row in words]


def test_a_stream_saved_to_a_file_is_a_trace_without_metadata(tmp_path: Path) -> None:
    rows = make_rows(pieces=HOSTILE_WORDS[-5:])
    path = tmp_path / "piped.csv"
    with path.open("wb") as file, TraceStream(file) as sink:
        sink.write(rows)
        sink.finish(AFTER)
    assert columns_of(read_trace(path)) == rows.to_pydict()
    assert open_trace(path).metadata is None


def test_a_stream_without_rows_has_its_header() -> None:
    stream = io.BytesIO()
    with TraceStream(stream) as sink:
        sink.finish(AFTER)
    assert list(csv.reader([stream.getvalue().decode()])) == [TRACE_SCHEMA.names]


def test_no_trace_takes_rows_and_writes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with NoTrace() as sink:
        sink.write(make_rows())
        sink.finish(AFTER)
    assert names_in(tmp_path) == []
