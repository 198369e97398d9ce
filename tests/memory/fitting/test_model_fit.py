"""One model on one GPU: which facts are asked for, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from moetool.catalogue.gpus import Gpu, find_gpu
from moetool.catalogue.published import read_published_models
from moetool.errors import InputError, OutOfMemoryError, UntraceableError, UsageError
from moetool.memory.estimate import estimate_memory
from moetool.memory.fitting.known_facts import (
    ModelSize,
    RunFacts,
    read_facts,
    read_size,
    write_facts,
    write_size,
)
from moetool.memory.fitting.model_fit import FitSort, ModelFit, find_model_fit, sort_fits
from moetool.memory.fitting.simulated_model import SimulatedModel
from moetool.memory.fitting.worker import FitTask, answer
from moetool.memory.gpu_overhead import CONTEXT_BYTES
from moetool.memory.scenario import Scenario
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.quantizing.kinds import Quantization

GIB = 2**30
SIZE = ModelSize(params=7, active_params=2, most_tokens=None)
SCENARIO = Scenario(num_prompt_tokens=1000, num_new_tokens=10)


class FakeSimulation:
    """A model whose weights take 4 GiB, and whose run takes a MiB more for each prompt token."""

    def __init__(
        self,
        facts: RunFacts,
        *,
        context: int | None = None,
        refused: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self.facts = facts
        self.context = context
        self.refused = refused
        self.asked: list[str] = []

    def count_params(self) -> ModelSize:
        raise AssertionError("they are known")

    def weigh(self) -> None:
        self.asked.append("weigh")
        self.facts.is_weighed = True
        self.facts.context = self.context
        self.facts.weights_bytes = 4 * GIB

    def run(self) -> None:
        self.asked.append("run")
        self.facts.total_bytes = self._take(SCENARIO.num_prompt_tokens)

    def run_within(self, memory_bytes: int) -> None:
        self.asked.append("run within")
        self.facts.limited_bytes[str(memory_bytes)] = None

    def try_prompt(self, num_tokens: int) -> None:
        self.asked.append(f"try {num_tokens}")
        if self.refused(num_tokens):
            self.facts.prompt_refusals[str(num_tokens)] = "it reads a value."
            return
        self.facts.prompt_bytes[str(num_tokens)] = self._take(num_tokens)

    def try_prompt_within(self, num_tokens: int, memory_bytes: int) -> None:
        self.asked.append("try within")
        self.facts.prompt_fits[f"{num_tokens}/{memory_bytes}"] = False

    def _take(self, num_tokens: int) -> int:
        return 5 * GIB + num_tokens * 2**20


def find(gpu: str | Gpu, facts: RunFacts, simulation: FakeSimulation | None) -> ModelFit:
    def simulate() -> FakeSimulation:
        assert simulation is not None, "every fact is known"
        return simulation

    return find_model_fit(
        "fake",
        size=SIZE,
        facts=facts,
        gpu=find_gpu(gpu) if isinstance(gpu, str) else gpu,
        scenario=SCENARIO,
        simulate=simulate,
    )


def test_weights_that_are_too_large_rule_a_model_out_without_a_run() -> None:
    facts = RunFacts()
    simulation = FakeSimulation(facts)
    fit = find("4GiB", facts, simulation)
    assert simulation.asked == ["weigh"]
    assert (fit.fits, fit.headroom_bytes, fit.longest_prompt_tokens) == (False, None, 0)
    assert fit.shortage_bytes == fit.least_shortage_bytes == CONTEXT_BYTES
    assert (fit.params, fit.active_params, fit.weights_bytes) == (7, 2, 4 * GIB)


def test_a_model_that_fits_has_its_headroom_and_its_longest_prompt() -> None:
    facts = RunFacts()
    fit = find("8GiB", facts, FakeSimulation(facts))
    assert (fit.fits, fit.reason) == (True, None)
    assert fit.headroom_bytes == 3 * GIB - 1000 * 2**20
    assert fit.longest_prompt_tokens is not None
    assert 3 * 1024 - 64 < fit.longest_prompt_tokens <= 3 * 1024
    assert (fit.is_whole_context, fit.may_be_longer) == (False, False)
    assert fit.shortage_bytes is None


def test_the_context_ends_the_search() -> None:
    facts = RunFacts()
    fit = find("8GiB", facts, FakeSimulation(facts, context=2000))
    assert (fit.longest_prompt_tokens, fit.is_whole_context) == (1990, True)


def test_a_run_that_does_not_fit_lacks_memory_and_may_have_a_shorter_prompt() -> None:
    facts = RunFacts()
    simulation = FakeSimulation(facts)
    memory_bytes = 5 * GIB + 500 * 2**20
    fit = find(replace(find_gpu("6GiB"), memory_bytes=memory_bytes), facts, simulation)
    assert (fit.fits, fit.headroom_bytes) == (False, -500 * 2**20)
    assert fit.shortage_bytes == 500 * 2**20
    assert simulation.asked[:3] == ["weigh", "run", "run within"]
    assert fit.longest_prompt_tokens is not None
    assert 436 < fit.longest_prompt_tokens <= 500


def test_the_same_card_and_any_that_is_too_small_need_no_further_simulation() -> None:
    facts = RunFacts()
    first = find("8GiB", facts, FakeSimulation(facts))
    kept = read_facts(write_facts(facts))
    assert kept == facts
    assert find("8GiB", kept, None) == first
    assert find("4GiB", kept, None).fits is False


def test_another_card_only_needs_the_prompts_that_were_not_tried() -> None:
    facts = RunFacts()
    find("8GiB", facts, FakeSimulation(facts))
    again = FakeSimulation(facts)
    find("16GiB", facts, again)
    assert again.asked
    assert all(asked.startswith("try") for asked in again.asked)


def test_what_is_unknown_has_its_reason() -> None:
    facts = RunFacts(unknown_because="It has no class.")
    fit = find("8GiB", facts, None)
    assert (fit.fits, fit.reason, fit.longest_prompt_tokens) == (None, "It has no class.", None)
    unweighed = RunFacts(
        is_weighed=True, weights_basis="unknown", unknown_because="The layout is unknown."
    )
    assert find("8GiB", unweighed, None).reason == "The layout is unknown."


def test_without_a_search_the_longest_prompt_is_unknown() -> None:
    facts = RunFacts(no_search_because="it takes too long.")
    fit = find("8GiB", facts, FakeSimulation(facts))
    assert (fit.fits, fit.longest_prompt_tokens) == (True, None)
    assert fit.reason == "The longest prompt is unknown: it takes too long."


def test_a_long_prompt_that_is_refused_ends_the_search() -> None:
    facts = RunFacts()
    fit = find("8GiB", facts, FakeSimulation(facts, refused=lambda number: number > 2000))
    assert (fit.reason, fit.may_be_longer) == (None, True)
    assert fit.longest_prompt_tokens is not None
    assert 1000 <= fit.longest_prompt_tokens <= 2000


def test_the_order_in_which_cards_are_asked_changes_no_answer() -> None:
    """A small card looks at prompts that are shorter than the scenario's, and a large one doesn't."""
    small = replace(find_gpu("6GiB"), memory_bytes=5 * GIB + 500 * 2**20)

    def simulate(facts: RunFacts) -> FakeSimulation:
        return FakeSimulation(facts, refused=lambda number: number < 1000)

    alone = RunFacts()
    expected = find("8GiB", alone, simulate(alone))
    assert (expected.fits, expected.reason) == (True, None)
    shared = RunFacts()
    refused = find(small, shared, simulate(shared))
    assert refused.reason == "The longest prompt is unknown: it reads a value."
    assert find("8GiB", shared, simulate(shared)) == expected
    assert find(small, alone, simulate(alone)) == refused


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"params": "7", "active_params": 2, "most_tokens": None},
        {"params": 7, "active_params": 2.5, "most_tokens": None},
        {"params": 7, "active_params": 2, "most_tokens": "5"},
        {"params": True, "active_params": None, "most_tokens": None},
        {"params": 7, "active_params": 2},
        {"params": 7, "active_params": 2, "most_tokens": None, "more": 1},
    ],
)
def test_a_size_that_was_not_written_is_not_read(value: object) -> None:
    assert read_size(value) is None
    assert read_size(write_size(SIZE)) == SIZE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total_bytes", "5"),
        ("is_weighed", 1),
        ("needs_data", 3),
        ("prompt_bytes", [1]),
        ("prompt_bytes", {"5": None}),
        ("prompt_refusals", {"5": 6}),
        ("prompt_fits", {"5/6": 1}),
    ],
)
def test_facts_that_were_not_written_are_not_read(field: str, value: object) -> None:
    assert read_facts(write_facts(RunFacts()) | {field: value}) is None


def test_fits_are_sorted_by_what_runs_and_then_by_size() -> None:
    fits = [
        ModelFit("unknown"),
        ModelFit("small", params=1, fits=True, headroom_bytes=9),
        ModelFit("none", params=99, fits=False, least_shortage_bytes=1),
        ModelFit("large", params=5, active_params=3, fits=True, headroom_bytes=1),
        ModelFit("middle", params=3, active_params=3, fits=True, longest_prompt_tokens=7),
    ]
    orders = {
        FitSort.TOTAL: ["large", "middle", "small"],
        FitSort.ACTIVE: ["large", "middle", "small"],
        FitSort.HEADROOM: ["small", "large", "middle"],
        FitSort.PROMPT: ["middle", "large", "small"],
        FitSort.NAME: ["large", "middle", "small"],
    }
    for sort, order in orders.items():
        assert [fit.model for fit in sort_fits(fits, sort)] == [*order, "none", "unknown"]


SHORT = Scenario(num_prompt_tokens=64, num_new_tokens=4)
CASES = [
    ("granite-3.0-1b-a400m", "4GiB", SHORT),
    ("granite-3.0-1b-a400m", "rtx-4090", replace(SHORT, quantization=Quantization.NF4)),
    ("gpt-oss-20b", "16GiB", SHORT),
    ("qwen3-30b-a3b-fp8", "l40s", SHORT),
]


@pytest.mark.parametrize(("model", "gpu", "scenario"), CASES)
def test_every_figure_is_that_of_an_estimate(model: str, gpu: str, scenario: Scenario) -> None:
    found = answer(FitTask(model, find_gpu(gpu), scenario, (), None))
    (estimate,) = estimate_memory(model, [scenario], gpu=gpu)
    assert estimate.fit is not None
    assert found.fits is estimate.fit.fits
    assert found.headroom_bytes == estimate.fit.headroom_bytes
    assert found.weights_bytes == estimate.figures.weights_bytes
    basis = estimate.stored.basis if estimate.stored else None
    assert found.weights_basis == basis
    assert estimate.limits is not None
    assert found.longest_prompt_tokens == estimate.limits.largest_prompt_tokens
    assert found.is_whole_context is estimate.limits.is_whole_context


def test_sizes_that_were_not_given_are_reduced_as_in_an_estimate() -> None:
    scenario = Scenario(num_prompt_tokens=4090)
    sizes = ("num_new_tokens",)
    gpu = find_gpu("h200")
    found = answer(FitTask("granite-3.0-1b-a400m", gpu, scenario, sizes, None))
    (estimate,) = estimate_memory(
        "granite-3.0-1b-a400m", [scenario], clipped_sizes=sizes, gpu="h200"
    )
    assert estimate.fit is not None
    assert (found.fits, found.headroom_bytes) == (True, estimate.fit.headroom_bytes)
    assert estimate.limits is not None
    assert found.longest_prompt_tokens == estimate.limits.largest_prompt_tokens
    assert found.note is not None
    assert found.note in estimate.notes
    given = answer(FitTask("granite-3.0-1b-a400m", gpu, scenario, (), None))
    assert given.fits is None
    assert "past the context" in (given.reason or "")


def test_a_refusal_of_another_prompt_is_kept_for_that_prompt_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("it reads a value.", hint="Ask for another.")

    facts = RunFacts()
    model = read_published_models()["granite-3.0-1b-a400m"]
    simulated = SimulatedModel(model, find_gpu("24GiB"), SHORT, facts)
    monkeypatch.setattr(ModelRuns, "run", refuse)
    simulated.try_prompt(8)
    simulated.try_prompt(128)
    assert facts == RunFacts(prompt_refusals={"8": "it reads a value.", "128": "it reads a value."})


def test_running_out_of_memory_is_not_a_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OutOfMemoryError("there is too little.", hint="Use less.")

    facts = RunFacts()
    model = read_published_models()["granite-3.0-1b-a400m"]
    monkeypatch.setattr(ModelRuns, "run", refuse)
    with pytest.raises(OutOfMemoryError):
        SimulatedModel(model, find_gpu("24GiB"), SHORT, facts).run()
    assert facts == RunFacts()


def test_a_model_without_a_class_has_that_as_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> ModelSize:
        raise UntraceableError("There is no class for it.", hint="Update transformers.")

    monkeypatch.setattr(SimulatedModel, "count_params", refuse)
    found = answer(FitTask("granite-3.0-1b-a400m", find_gpu("24GiB"), SHORT, (), None))
    assert found == ModelFit("granite-3.0-1b-a400m", reason="There is no class for it.")


def test_a_quantized_checkpoint_is_not_quantized_again() -> None:
    scenario = replace(SHORT, quantization=Quantization.NF4)
    found = answer(FitTask("gpt-oss-20b", find_gpu("24GiB"), scenario, (), None))
    assert found.fits is None
    assert found.reason is not None
    assert "quantized already" in found.reason
    with pytest.raises(UsageError, match="quantized already"):
        estimate_memory("gpt-oss-20b", [scenario], gpu="24GiB")
