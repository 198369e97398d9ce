"""`moetool tokens` as users run it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from moetool import (
    list_expert_tokens,
    list_token_experts,
    measure_tokens,
    read_trace,
    tabulate_prompt,
)
from moetool.errors import UsageError
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool

PAGES = {
    (): lambda trace: measure_tokens(trace),
    ("--layer", "5", "--expert", "4"): lambda trace: list_expert_tokens(trace, layer=5, expert=4),
    ("--token", " the"): lambda trace: list_token_experts(trace, " the"),
    ("--token-id", "300"): lambda trace: list_token_experts(trace, 300),
    ("--prompt", "english-03"): lambda trace: tabulate_prompt(trace, "english-03"),
}


@pytest.mark.parametrize("arguments", PAGES, ids=" ".join)
def test_json_and_csv_are_the_result_of_the_library(
    run_moetool: RunMoetool, short_demo_trace: Path, arguments: tuple[str, ...]
) -> None:
    result = PAGES[arguments](short_demo_trace)
    completed = run_moetool("tokens", short_demo_trace, *arguments, "--format", "json")
    assert completed.returncode == 0, completed.stderr
    value = json.loads(completed.stdout)
    assert (value.pop("schema"), bool(value.pop("moetool"))) == ("moetool.tokens/1", True)
    assert value == result.to_dict()
    assert list(value["layers"][0])[:5] == ["stack", "layer", "num_experts", "top_k", "num_tokens"]
    assert set(value) >= {"trace", "layers", "notes"}
    completed = run_moetool("tokens", short_demo_trace, *arguments, "--format", "csv")
    rows = list(csv.DictReader(completed.stdout.splitlines()))
    assert list(rows[0]) == list(result.column_types())
    assert len(rows) == len(result.to_rows()) == len(result.to_frame())


@pytest.mark.parametrize("arguments", PAGES, ids=" ".join)
def test_a_frame_gives_what_the_file_gives(
    short_demo_trace: Path, arguments: tuple[str, ...]
) -> None:
    of_file, of_frame = (
        PAGES[arguments](trace).to_dict()
        for trace in (short_demo_trace, read_trace(short_demo_trace))
    )
    assert of_file["trace"].pop("trace") == str(short_demo_trace)
    assert of_frame["trace"].pop("trace") is None
    assert of_file == of_frame


def test_the_piece_and_the_text_are_the_same_token(short_demo_trace: Path) -> None:
    assert (
        list_token_experts(short_demo_trace, "Ġthe").to_dict()
        == list_token_experts(short_demo_trace, " the").to_dict()
        == list_token_experts(short_demo_trace, 300).to_dict()
    )


def test_options_that_contradict_each_other_are_refused(
    run_moetool: RunMoetool, short_demo_trace: Path, tmp_path: Path
) -> None:
    target = tmp_path / "tokens.json"
    for arguments, refusal in (
        (["--expert", "1"], Refusal(2, "not clear without a layer.", "Add --layer")),
        (
            ["--layer", "1"],
            Refusal(2, "--layer has no effect", "Leave out --layer, or add --expert."),
        ),
        (["--token", "a", "--prompt", "b"], Refusal(2, "ask for different pages.", "Give --token")),
        (["--token", " the", "--top", "3"], Refusal(2, "--top has no effect", "Leave out --top")),
        (["--prompt", "english-3"], Refusal(2, "no prompt 'english-3'.", "'english-03'")),
        (["--token", "ĠTHE"], Refusal(2, "is spelled 'ĠTHE'.", "'Ġthe'")),
        (["--layer", "1", "--expert", "8"], Refusal(2, "has no expert 8.", "are 0 to 7")),
    ):
        completed = run_moetool("tokens", short_demo_trace, *arguments, "-o", target)
        assert_refused(completed, refusal, target=target)


def test_rows_without_token_ids_are_refused(run_moetool: RunMoetool, tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("prompt_id,position,layer,expert\np,0,0,1\np,1,0,0\n", encoding="utf-8")
    completed = run_moetool("tokens", path)
    assert completed.returncode != 0
    assert "error: The trace has no column 'token_id'." in completed.stderr
    completed = run_moetool("tokens", path, "--prompt", "p")
    assert completed.returncode == 0, completed.stderr
    assert "Prompt p, domain (none): 2 tokens." in completed.stdout


def test_arguments_of_the_library_are_checked(short_demo_trace: Path) -> None:
    with pytest.raises(UsageError, match="token id"):
        list_token_experts(short_demo_trace, -1)
    with pytest.raises(UsageError, match="named by its id"):
        tabulate_prompt(short_demo_trace, 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="number of occurrences"):
        measure_tokens(short_demo_trace, min_count=0)
