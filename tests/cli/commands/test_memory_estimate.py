"""Simulations that `moetool memory-estimate` asks for, and refusals before any of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from moetool.catalogue.gpus import find_gpu
from moetool.cli.commands.models.memory_estimate import memory_estimate
from moetool.cli.options.values import parse_numbers
from moetool.errors import UsageError
from moetool.memory.receipts.reading import read_receipts
from moetool.memory.result import Estimate
from moetool.memory.scenario import (
    Attention,
    CacheKind,
    Dtype,
    ExpertsImplementation,
    Scenario,
    Task,
)
from moetool.quantizing.kinds import Quantization, QuantizedExperts
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool
from tests.memory.receipts.receipts import TIMES, make_measured
from tests.report.memory.estimates import make_estimate


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        pytest.param([], Refusal(2, error="MODEL"), id="nothing"),
        pytest.param(
            ["demo", "--batch-size", "1,many"],
            Refusal(2, error="--batch-size: 'many'", hint="1,8,32"),
            id="words for sizes",
        ),
        pytest.param(
            ["demo", "--prompt-tokens", "1,,2"],
            Refusal(2, error="--prompt-tokens: ''", hint="1,8,32"),
            id="a gap in a list",
        ),
        pytest.param(
            ["demo", "--new-tokens", ""],
            Refusal(2, error="--new-tokens: ''", hint="1,8,32"),
            id="an empty list",
        ),
        pytest.param(
            ["demo", "--batch-size", "8,0"],
            Refusal(2, error="batch size can't be 0", hint="from 1 to 1,048,576"),
            id="batches of nothing",
        ),
        pytest.param(
            ["demo", "--prompt-tokens", "-3"],
            Refusal(2, error="prompt tokens can't be -3", hint="from 1 to"),
            id="prompts of less than nothing",
        ),
        pytest.param(
            ["demo", "--new-tokens", "0"],
            Refusal(2, error="new tokens can't be 0", hint="from 1 to"),
            id="generating nothing",
        ),
        pytest.param(
            ["demo", "--task", "forward", "--new-tokens", "4"],
            Refusal(2, error="forward pass makes no new tokens", hint="generate"),
            id="a forward pass that generates",
        ),
        pytest.param(
            ["demo", "--save", "receipt.json"],
            Refusal(2, error="nothing is measured", hint="Add --measure"),
            id="a receipt of nothing",
        ),
        pytest.param(
            ["demo", "--measure", "--save", "nowhere/receipt.json"],
            Refusal(2, error="'nowhere' is not a folder", hint="Create it first"),
            id="a receipt in no folder",
        ),
        pytest.param(
            ["demo", "--measure", "--save", "r.json", "-o", "r.json"],
            Refusal(2, error="'r.json' is named by --output too", hint="two files"),
            id="a receipt and a report in one file",
        ),
        pytest.param(
            ["demo", "--batch-size", ",".join(map(str, range(1, 1002)))],
            Refusal(2, error="1,001 scenarios", hint="fewer"),
            id="too large a sweep",
        ),
        pytest.param(
            ["demo", "--double-quantization"],
            Refusal(2, error="Double quantization", hint="nf4"),
            id="scales of nothing",
        ),
        pytest.param(
            ["demo", "--gpu", "a100"],
            Refusal(2, error="GPUs begin with 'a100'", hint="a100-40gb, a100-80gb or "),
            id="a name of several GPUs",
        ),
        pytest.param(
            ["demo", "--gpu", "8xh100"],
            Refusal(2, error="'8xh100' names several GPUs", hint="Give h100"),
            id="several GPUs",
        ),
        pytest.param(
            ["demo", "--quantization", "int4"], Refusal(2, error="'int4'"), id="a quantization"
        ),
        pytest.param(["demo", "--dtype", "int8"], Refusal(2, error="'int8'"), id="a dtype"),
        pytest.param(["demo", "--task", "tune"], Refusal(2, error="'tune'"), id="a task"),
        pytest.param(
            ["demo", "--attention", "fast"], Refusal(2, error="'fast'"), id="an attention"
        ),
        pytest.param(
            ["demo", "-o", "demo.yaml"],
            Refusal(2, error="'demo.yaml'", hint=".json"),
            id="a suffix",
        ),
        pytest.param(
            ["mixtral-8x8b"],
            Refusal(3, error="No model 'mixtral-8x8b'", hint="'mixtral-8x7b'"),
            id="a misspelt name",
        ),
    ],
)
def test_what_can_not_be_estimated_is_named(
    arguments: list[str], refusal: Refusal, run_moetool: RunMoetool
) -> None:
    assert_refused(run_moetool("memory-estimate", *arguments), refusal, target=None)


def test_an_output_that_exists_is_kept(run_moetool: RunMoetool, tmp_path: Path) -> None:
    output = tmp_path / "estimate.json"
    output.write_text("mine", encoding="utf-8")
    completed = run_moetool("memory-estimate", "demo", "-o", output)
    assert_refused(completed, Refusal(2, error=str(output), hint="--force"), target=None)
    assert output.read_text(encoding="utf-8") == "mine"


def test_lists_of_numbers_may_have_spaces() -> None:
    assert parse_numbers("8", option="--batch-size") == (8,)
    assert parse_numbers(" 1, 8,32 ", option="--batch-size") == (1, 8, 32)
    assert parse_numbers("-1", option="--batch-size") == (-1,)


@pytest.mark.parametrize("text", ["", "1.5", "1e3", "--1", "+1", "9" * 5000])
def test_what_is_no_list_of_numbers_is_refused_by_its_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--new-tokens: "):
        parse_numbers(text, option="--new-tokens")


class FakeEstimates:
    """Stands in for the simulation, and records its calls."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[Scenario], dict[str, Any]]] = []
        self.estimate = make_estimate()

    def estimate_memory(
        self, model: Any, scenarios: Sequence[Scenario], **options: Any
    ) -> list[Estimate]:
        options.pop("on_progress")(f"[/] {model.text}")
        with options.pop("pausing")():
            pass
        self.asked.append((model.text, list(scenarios), options))
        return [
            replace(self.estimate, model=model.text, scenario=scenario) for scenario in scenarios
        ]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEstimates:
    """A stand-in that `moetool memory-estimate` calls in place of the simulation."""
    estimates = FakeEstimates()
    module = SimpleNamespace(estimate_memory=estimates.estimate_memory)
    monkeypatch.setitem(sys.modules, "moetool.memory.estimate", module)
    return estimates


def test_by_default_one_scenario_is_run_and_shown_as_a_page(
    fake: FakeEstimates, capsys: pytest.CaptureFixture[str]
) -> None:
    memory_estimate(["demo"])
    nothing_asked = {
        "clipped_sizes": ("num_prompt_tokens", "num_new_tokens"),
        "gpu": None,
        "trace": None,
        "measure": False,
        "serving": None,
        "parallel": None,
        "revision": None,
        "trust_remote_code": False,
    }
    assert fake.asked == [("demo", [Scenario()], nothing_asked)]
    printed = capsys.readouterr()
    assert printed.out.startswith("demo needs 21.5 GiB and fits on 1 × big")
    assert printed.err == ""


def test_an_unknown_gpu_is_refused_before_anything_is_simulated(fake: FakeEstimates) -> None:
    with pytest.raises(typer.Exit):
        memory_estimate(["demo"], gpu="24")
    assert fake.asked == []


def test_the_driver_is_asked_once_for_all_models(
    fake: FakeEstimates, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [find_gpu("24GiB")]
    monkeypatch.setattr("moetool.memory.machine.local_gpu.find_local_gpu", answers.pop)
    memory_estimate(["demo", "mixtral-8x7b"], gpu="here")
    assert [options["gpu"] for _, _, options in fake.asked] == [find_gpu("24GiB")] * 2


def test_every_option_is_passed_on(fake: FakeEstimates, tmp_path: Path) -> None:
    output = tmp_path / "estimates.json"
    memory_estimate(
        ["demo", "mixtral-8x7b"],
        batch_size="1,8",
        prompt_tokens="64",
        new_tokens="4,2",
        gpu="24GiB",
        dtype=Dtype.FLOAT16,
        quantization=Quantization.NF4,
        double_quantization=True,
        experts=QuantizedExperts.QUANTIZED,
        attention=Attention.EAGER,
        experts_implementation=ExpertsImplementation.BATCHED_MM,
        cache=CacheKind.STATIC,
        padding=True,
        trace=Path("trace.parquet"),
        measure=True,
        output=output,
        revision="main",
        trust_remote_code=True,
    )
    scenarios = [
        Scenario(
            batch_size=batch_size,
            num_prompt_tokens=64,
            num_new_tokens=num_new_tokens,
            dtype="float16",
            attention="eager",
            experts_implementation="batched_mm",
            cache=CacheKind.STATIC,
            has_padding=True,
            quantization=Quantization.NF4,
            is_double_quantized=True,
            experts=QuantizedExperts.QUANTIZED,
        )
        for batch_size in (1, 8)
        for num_new_tokens in (4, 2)
    ]
    options = {
        "clipped_sizes": (),
        "gpu": find_gpu("24GiB"),
        "trace": Path("trace.parquet"),
        "measure": True,
        "serving": None,
        "parallel": None,
        "revision": "main",
        "trust_remote_code": True,
    }
    assert fake.asked == [("demo", scenarios, options), ("mixtral-8x7b", scenarios, options)]
    estimates = json.loads(output.read_text(encoding="utf-8"))["estimates"]
    assert [estimate["model"] for estimate in estimates] == ["demo"] * 4 + ["mixtral-8x7b"] * 4


def test_only_sizes_that_were_not_given_may_be_reduced(fake: FakeEstimates) -> None:
    memory_estimate(["demo"], prompt_tokens="64,128")
    memory_estimate(["demo"], new_tokens="8")
    assert [options["clipped_sizes"] for _, _, options in fake.asked] == [
        ("num_new_tokens",),
        ("num_prompt_tokens",),
    ]
    prompts = [scenario.num_prompt_tokens for scenario in fake.asked[0][1]]
    assert prompts == [64, 128]
    (usual,) = fake.asked[1][1]
    assert usual == Scenario(num_new_tokens=8)


@pytest.mark.parametrize("task", [Task.FORWARD, Task.TRACE])
def test_only_generating_makes_new_tokens_by_default(task: Task, fake: FakeEstimates) -> None:
    memory_estimate(["demo"], task=task)
    ((_, scenarios, _),) = fake.asked
    assert scenarios == [Scenario(task=task, num_new_tokens=0)]


@pytest.mark.parametrize("quiet", [False, True], ids=["loud", "quiet"])
@pytest.mark.usefixtures("fake")
def test_on_a_terminal_the_work_at_hand_is_shown_unless_quiet(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    memory_estimate(["demo"], quiet=quiet)
    printed = capsys.readouterr()
    assert "demo needs" in printed.out
    assert bool(printed.err) is not quiet


def test_a_receipt_is_saved_next_to_the_report(
    fake: FakeEstimates, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.estimate = make_measured()
    path = tmp_path / "receipt.json"
    memory_estimate(["demo"], measure=True, save=path)
    (receipt,) = read_receipts(path)
    assert receipt.measured.times == TIMES
    assert "measured    on NVIDIA H200" in capsys.readouterr().out
