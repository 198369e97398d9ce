"""Two processes that share a model record what one process records, and each carries out its part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch

from moetool import read_trace, trace_model
from moetool.trace.writing.unfinished import store
from moetool.tracing import run
from moetool.tracing.plans import ParallelPlan
from moetool.tracing.running.passes import read_batch
from tests.command import run_main
from tests.tiny_models import build_model
from tests.tracing.parallel.shared_models import (
    FAMILIES,
    NUM_PADS,
    TAMPERED,
    Recorded,
    catch_refusals,
    load,
    record,
    record_shared,
)
from tests.tracing.parallel.two_processes import NUM_PROCESSES, run_in_both

PROMPTS = [
    {"text": "The cat sat on the mat.", "domain": "english"},
    {"text": "Der Hund schläft.", "domain": "german"},
    {"text": "for i in range(10): print(i)", "domain": "code"},
]
# At a batch size of 1, a window of four, and another one.
MORE_PROMPTS = [{**PROMPTS[index % 3], "id": str(index)} for index in range(6)]
LAST_BATCH = 6
DECISION = ["call", "batch_index", "position", "stack", "layer", "module", "rank", "expert"]
# Sums over halves round differently than sums over the whole.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Seen:
    """The results of one process.

    Attributes:
        shared: By family and plan.
        refusals: The recorder's errors, by what its experts received.
        num_traced: Rows of the trace that `trace_model` returned, by plan.
        exit_code: Of the command.
        num_batches: Batches of an interrupted run, and of the one that went on with it.
    """

    shared: dict[tuple[str, ParallelPlan], Recorded]
    refusals: dict[str, str]
    num_traced: dict[ParallelPlan, int]
    exit_code: int
    num_batches: list[int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checkpoints are."""
    folder = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        build_model(family).save_pretrained(folder / family)
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[Seen]:
    """The results of each process."""

    def act(_rank: int) -> Seen:
        return Seen(
            shared={
                (family, plan): record_shared(folder / family, plan)
                for family in FAMILIES
                for plan in ParallelPlan
            },
            refusals=catch_refusals(folder / "mixtral"),
            num_traced={
                plan: trace_model(
                    "demo", PROMPTS, parallel=plan, output=folder / f"{plan}.parquet"
                ).num_rows
                for plan in ParallelPlan
            },
            exit_code=run_main(
                *("route-trace", "demo", "--prompt", "Hello", "--max-new-tokens", "3"),
                *("--parallel", "expert", "-o", folder / "by-command.parquet"),
            ).returncode,
            num_batches=resume(folder / "resumed.parquet"),
        )

    return run_in_both(act, folder)


class Interrupted(Exception):  # noqa: N818 - a user's Ctrl-C, in both processes
    """Ends a run."""


def resume(target: Path) -> list[int]:
    """Interrupt a run, let another go on, and return how many batches each put through the model."""
    batches: list[int] = []

    def count(*args: Any, **kwargs: Any) -> Any:
        batches[-1] += 1
        if len(batches) == 1 and batches[-1] == LAST_BATCH:
            raise Interrupted
        return read_batch(*args, **kwargs)

    def trace(*, goes_on: bool) -> None:
        batches.append(0)
        trace_model(
            "demo", MORE_PROMPTS, parallel="expert", batch_size=1, output=target, resume=goes_on
        )

    # Every batch is kept as soon as it has run.
    with patch.object(store, "SECONDS_PER_BATCH", 0.0), patch.object(run, "read_batch", count):
        with pytest.raises(Interrupted):
            trace(goes_on=False)
        # The first process holds the trace until its own run has ended.
        torch.distributed.barrier()
        trace(goes_on=True)
    return batches


CASES = [(family, plan) for family in FAMILIES for plan in ParallelPlan]


@pytest.mark.parametrize(("family", "plan"), CASES)
def test_processes_record_what_one_process_records(
    family: str, plan: ParallelPlan, folder: Path, seen: list[Seen]
) -> None:
    alone = record(load(folder / family, None))
    # A prefill, and one call for each new token that is routed.
    assert alone.frame["call"].nunique() > 2
    last = alone.frame.query("call == 0 and batch_index == 2")["position"].max()
    assert last + 1 == 19 - NUM_PADS
    for process in seen:
        shared = process.shared[family, plan]
        assert shared.num_experts == alone.num_experts
        pd.testing.assert_frame_equal(shared.frame[DECISION], alone.frame[DECISION])
        pd.testing.assert_series_equal(
            shared.frame["weight"], alone.frame["weight"], rtol=TOLERANCE, atol=TOLERANCE
        )
    first, second = (process.shared[family, plan].frame for process in seen)
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize(("family", "plan"), CASES)
def test_the_experts_of_each_process_receive_their_part_of_what_is_recorded(
    family: str, plan: ParallelPlan, seen: list[Seen]
) -> None:
    """This is seen in the code of the experts' class, whatever the recorder watches."""
    frame = seen[0].shared[family, plan].frame
    num_layers = frame["layer"].nunique()
    calls = zip(*(process.shared[family, plan].received for process in seen), strict=True)
    received = list(calls)
    assert len(received) == num_layers * frame["call"].nunique()
    # The prefill comes first, one call of each layer's experts after another.
    for (_, rows), parts in zip(
        frame[frame["call"] == 0].groupby("layer"), received[:num_layers], strict=True
    ):
        carried: set[tuple[int, int, float]] = set()
        first = 0
        for part in parts:
            slots, places = torch.where((part.experts < part.num_held) & (part.weights > 0))
            ids, weights = part.experts[slots, places] + first, part.weights[slots, places]
            found = set(zip(slots.tolist(), ids.tolist(), weights.tolist(), strict=True))
            assert found
            if part.num_held < seen[0].shared[family, plan].num_experts[0]:
                assert not found & carried, "two processes ran the same choice"
                first += part.num_held
            carried |= found
        slots_of_rows = rows["batch_index"] * 19 + rows["position"]
        recorded = set(zip(slots_of_rows, rows["expert"], rows["weight"], strict=True))
        pads = {slot for slot, *_ in carried} - set(slots_of_rows)
        assert len(pads) == NUM_PADS
        assert {choice for choice in carried if choice[0] not in pads} == recorded


def test_experts_are_divided_by_the_expert_plan(seen: list[Seen]) -> None:
    for family in FAMILIES:
        held = [p.shared[family, ParallelPlan.EXPERT].received[0].num_held for p in seen]
        assert held == [4] * NUM_PROCESSES


@pytest.mark.parametrize("kind", [*(kind.__name__ for kind in TAMPERED), "all_to_all"])
def test_experts_that_receive_something_else_are_refused(kind: str, seen: list[Seen]) -> None:
    words = {each.__name__: words for each, words in TAMPERED.items()}
    for process in seen:
        assert words.get(kind, "received other tokens") in process.refusals[kind]
        assert 'ep_implementation="all_reduce"' in process.refusals[kind]


@pytest.mark.parametrize("plan", list(ParallelPlan))
def test_the_first_process_writes_the_trace(
    plan: ParallelPlan, folder: Path, seen: list[Seen]
) -> None:
    target = folder / f"{plan}.parquet"
    assert [process.num_traced[plan] for process in seen] == [len(read_trace(target)), 0]
    found, expected = read_trace(target), trace_model("demo", PROMPTS).to_frame()
    others = found.columns.difference(["weight"])
    pd.testing.assert_frame_equal(found[others], expected[others])
    pd.testing.assert_series_equal(
        found["weight"].astype(float), expected["weight"].astype(float), rtol=TOLERANCE
    )
    metadata = found.attrs["moetool"]
    assert (metadata["parallel"], metadata["parallel_size"]) == (plan, NUM_PROCESSES)
    assert metadata["complete"]
    assert expected.attrs["moetool"]["parallel"] is None


def test_a_run_goes_on_where_an_interrupted_one_ended(folder: Path, seen: list[Seen]) -> None:
    # In the last batch the interrupted run ended.
    assert [process.num_batches for process in seen] == [[LAST_BATCH, 1]] * NUM_PROCESSES
    resumed = read_trace(folder / "resumed.parquet")
    assert resumed.attrs["moetool"]["complete"]
    expected = trace_model("demo", MORE_PROMPTS, batch_size=1).to_frame()
    others = resumed.columns.difference(["weight"])
    # The rows of kept batches bring their own dictionaries of tokens.
    pd.testing.assert_frame_equal(resumed[others], expected[others], check_categorical=False)
    pd.testing.assert_series_equal(
        resumed["weight"].astype(float), expected["weight"].astype(float), rtol=TOLERANCE
    )
    assert not list(folder.glob("resumed*.partial"))


def test_the_command_traces_with_both_processes(folder: Path, seen: list[Seen]) -> None:
    assert [process.exit_code for process in seen] == [0] * NUM_PROCESSES
    found = read_trace(folder / "by-command.parquet")
    expected = trace_model("demo", ["Hello"], max_new_tokens=3).to_frame()
    assert set(found["phase"]) == {"prefill", "decode"}
    columns = ["phase", "position", "token_id", "layer", "rank", "expert"]
    pd.testing.assert_frame_equal(found[columns], expected[columns], check_categorical=False)
