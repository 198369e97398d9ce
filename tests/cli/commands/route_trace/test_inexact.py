"""Two families whose experts don't carry out their router's choice: refused, or traced with a warning."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from moetool import RoutingRecorder, read_trace
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.rules import RoutingRule
from moetool.errors import UntraceableError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.reader import open_trace
from moetool.tracing.recording.calls import RecordedCall
from tests.cli.bad_input.refusals import Attempt, Refusal, assert_refused
from tests.cli.conftest import VOCABULARY_OF_DEMO, TryAll
from tests.families.tiny.dense_reference import ObservedExperts, observe_experts
from tests.families.tiny.gemm_audit import GemmAudit
from tests.families.tiny.models import available, build_family, text_inputs

REASONS = {
    "doge": "the rule 'retrieval' reads experts that are rows of embeddings, which need not be those",
    "nllb-moe": "transformers 5 runs experts 0 and 1 of NLLB-MoE on every token, whatever its",
}
# In transformers 5.17 Doge with experts fails in its own forward.
FAMILIES = [family for family in REASONS if family in available()]
# One is traced quietly, and one goes on to write, so that its decoder runs too.
OPTIONS = {"doge": ("--quiet",), "nllb-moe": ("--max-new-tokens", "3")}
TOLERANCE = 1e-5


# On the command line.


@dataclass(frozen=True)
class Attempts:
    """Checkpoints by family, and what became of tracing them, with the flag and without."""

    folders: Mapping[str, Path]
    results: Mapping[str, Attempt]

    def metadata(self, family: str) -> TraceMetadata:
        metadata = open_trace(self.results[f"{family} allowed"].target).metadata
        assert metadata is not None
        return metadata

    def rows(self, family: str) -> pd.DataFrame:
        return read_trace(self.results[f"{family} allowed"].target)


@pytest.fixture(scope="module")
def attempts(demo: Path, try_all: TryAll, tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    commands: dict[str, tuple[str | Path, ...]] = {}
    for family, folder in folders.items():
        build_family(family, vocab_size=VOCABULARY_OF_DEMO).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo / name, folder)
        command = ("route-trace", folder, "--prompt", "hello world", "--device", "cpu")
        commands[f"{family} refused"] = command
        commands[f"{family} allowed"] = (*command, "--allow-inexact", *OPTIONS[family])
    return Attempts(folders, try_all(commands))


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_refused_with_the_reason(family: str, attempts: Attempts) -> None:
    attempt = attempts.results[f"{family} refused"]
    expected = Refusal(5, error=f"exactly: {REASONS[family]}", hint="--allow-inexact")
    assert_refused(attempt.completed, expected, target=attempt.target)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_the_flag_it_is_traced_and_marked(family: str, attempts: Attempts) -> None:
    metadata = attempts.metadata(family)
    assert metadata.complete
    assert not metadata.exact
    (note,) = (note for note in metadata.notes if note.startswith("Not exact: "))
    assert note.startswith(f"Not exact: {REASONS[family]}")
    rows = attempts.rows(family)
    assert len(rows) > 0
    assert set(rows["stack"]) == ({"decoder"} if family == "doge" else {"encoder", "decoder"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_warning_is_seen_also_in_a_quiet_run(family: str, attempts: Attempts) -> None:
    completed = attempts.results[f"{family} allowed"].completed
    assert completed.returncode == 0, completed.stderr
    warning, *summary = completed.stderr.splitlines()
    assert warning.startswith(
        f"warning: {attempts.folders[family]} is not traced exactly: {REASONS[family]}"
    )
    assert bool(summary) == (family != "doge")  # which was quiet


def test_the_summary_says_it_too(attempts: Attempts) -> None:
    words = attempts.results["nllb-moe allowed"].completed.stderr.split()
    assert f" Not exact: {REASONS['nllb-moe']}" in " ".join(words)


# What is recorded.


@dataclass(frozen=True)
class Recorded:
    """One call of each stack, and what its layers' parts received or returned, by module path."""

    calls: tuple[RecordedCall, ...]
    seen: Mapping[str, Any]
    observed: Mapping[str, ObservedExperts]
    audit: GemmAudit

    @property
    def layers(self) -> list[tuple[MoeLayer, torch.Tensor, torch.Tensor]]:
        return [
            (layer.layer, torch.from_numpy(layer.experts).long(), torch.from_numpy(layer.weights))
            for call in self.calls
            for layer in call.layers
        ]


@cache
def record_family(family: str) -> Recorded:
    # So little room that some tokens are dropped.
    room: dict[str, Any] = {"moe_eval_capacity_token_fraction": 0.2} if family == "nllb-moe" else {}
    model = build_family(family, **room)
    seen: dict[str, Any] = {}

    def keep_output(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Any) -> None:
            seen[path] = output

        return hook

    def keep_input(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[path] = args[0]

        return hook

    recorder = RoutingRecorder(model, allow_inexact=True)
    for path, module in model.named_modules():
        if path.endswith(".router"):
            module.register_forward_hook(keep_output(path))
        elif path.endswith((".down_embed", ".up_embed")):
            module.register_forward_pre_hook(keep_input(path))
    with (
        GemmAudit(model, recorder.layers) as audit,
        observe_experts(model, recorder.layers) as observed,
        recorder,
        torch.inference_mode(),
    ):
        model(**text_inputs(model))
    return Recorded(tuple(recorder.calls), seen, observed, audit)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recorder_refuses_it_too(family: str) -> None:
    with pytest.raises(UntraceableError, match=REASONS[family]):
        RoutingRecorder(build_family(family))


def check_that_nllb_records_its_routers_choice() -> None:
    recorded = record_family("nllb-moe")
    assert len(recorded.layers) == 2  # one in each stack
    for place, ids, weights in recorded.layers:
        assert place.rule is RoutingRule.ROUTER_CHOICE
        # What it multiplies each expert's output by, zero where it chose none.
        combine = recorded.seen[f"{place.block_path}.router"][1]
        table = torch.zeros(len(ids), place.num_experts + 1)
        table.scatter_(1, ids.masked_fill(ids < 0, place.num_experts), weights)
        assert torch.equal(table[:, :-1], combine)
        assert (ids >= 0).sum() == (combine != 0).sum() > 0
        assert (ids == -1).any()


def check_that_nllb_runs_experts_0_and_1_on_every_token() -> None:
    """Its experts one-hot the mask of zeros and ones as if it held ids.

    On the day this fails, upstream has mended it: `RoutingRule.ROUTER_CHOICE` can go.
    """
    recorded = record_family("nllb-moe")
    for place, ids, weights in recorded.layers:
        pairs = recorded.audit.pairs(place)
        assert {expert for _, expert in pairs} == {0, 1}
        assert {token for token, _ in pairs} == set(range(len(ids)))
        assert set(ids.flatten().tolist()) - {-1, 0, 1}
        assert recorded.observed[place.experts_path].relative_error(ids, weights) > 0.1


def check_that_doge_records_the_rows_that_it_looked_up() -> None:
    recorded = record_family("doge")
    assert len(recorded.layers) == 4
    for place, ids, weights in recorded.layers:
        assert place.rule is RoutingRule.RETRIEVAL
        for name in ("down_embed", "up_embed"):
            looked_up = recorded.seen[f"{place.block_path}.{name}"]
            assert torch.equal(ids, looked_up.reshape(ids.shape))
        # These rows with these weights are all that the block adds to its dense part.
        observed = recorded.observed[place.experts_path]
        assert observed.relative_error(ids, weights) <= TOLERANCE
        wrong = ids.roll(1, dims=0)
        assert observed.relative_error(wrong, weights) > 100 * TOLERANCE


def first_layers_ids(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    with RoutingRecorder(model, allow_inexact=True) as recorder, torch.inference_mode():
        model(input_ids=input_ids)
    (call,) = recorder.calls
    return torch.from_numpy(call.layers[0].experts)


def check_that_doge_lets_later_tokens_choose_for_earlier_ones() -> None:
    """It splits the router's outputs by token where it means to split them by key.

    On the day this fails, upstream has mended it: `RoutingRule.RETRIEVAL` is exact.
    """
    model = build_family("doge")
    tokens = text_inputs("doge", num_rows=1)["input_ids"]
    other = tokens.clone()
    other[:, 4:] = other[:, 4:].flip(1) + 1
    first, second = (first_layers_ids(model, ids) for ids in (tokens, other))
    assert not torch.equal(first[:4], second[:4])


RECORDED: dict[str, Callable[[], None]] = {
    "doge": check_that_doge_records_the_rows_that_it_looked_up,
    "nllb-moe": check_that_nllb_records_its_routers_choice,
}
DEFECTS: dict[str, Callable[[], None]] = {
    "doge": check_that_doge_lets_later_tokens_choose_for_earlier_ones,
    "nllb-moe": check_that_nllb_runs_experts_0_and_1_on_every_token,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_recorded_is_what_the_reason_says(family: str) -> None:
    RECORDED[family]()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_upstream_defect_is_still_there(family: str) -> None:
    DEFECTS[family]()
