"""A trace of a model whose experts choose tokens says so, and no question takes it for top-k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from moetool import (
    compare_traces,
    measure_balance,
    place_experts,
    read_trace,
    render_report,
    trace_model,
    validate_trace,
)
from moetool.trace.companions import sidecar_path
from moetool.trace.reading.counts import count_experts
from moetool.trace.reading.reader import open_trace
from tests.tiny_models import build_model
from tests.tracing.recording.operations.blocks import HIDDEN_SIZE, NUM_EXPERTS, ExpertChoice

NUM_LAYERS = 3
# In texts of three tokens, each of which all experts choose, and in longer ones.
PROMPTS = pd.DataFrame(
    {
        "id": [f"p{number}" for number in range(12)],
        "domain": ["short"] * 4 + ["prose", "code"] * 4,
        "text": ["a b"] * 4
        + ["the cat sat on the mat and looked at the moon", "def f(x): return x + 1"] * 4,
    }
)


def make_model(tokenizer: Any, *, seed: int) -> Any:
    model: Any = build_model(
        "mixtral",
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in model.model.layers:
            layer.mlp = ExpertChoice().eval()
    return model


@pytest.fixture(scope="module")
def traced(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """Two traces of the same prompts, a batch for each, and what tracing the first returned."""
    folder = tmp_path_factory.mktemp("expert_choice")
    tokenizer = AutoTokenizer.from_pretrained(demo)
    paths = folder / "first.parquet", folder / "second.csv"
    results = [
        trace_model(
            (make_model(tokenizer, seed=seed), tokenizer), PROMPTS, output=path, batch_size=1
        )
        for seed, path in enumerate(paths)
    ]
    return *paths, results[0]


def count_chosen(path: Path) -> pd.Series[int]:
    """Return the number of experts of each decision."""
    frame = read_trace(path)
    keys = [frame["prompt_id"].astype(str), frame["position"], frame["layer"]]
    return (frame["expert"] >= 0).astype(int).groupby(keys).sum()


def test_the_metadata_says_that_experts_choose(traced: tuple[Path, Path, Any]) -> None:
    first, second, result = traced
    sidecar = json.loads(sidecar_path(second).read_text(encoding="utf-8"))
    for layers in (read_trace(first).attrs["moetool"]["layers"], sidecar["layers"]):
        assert len(layers) == NUM_LAYERS
        for layer in layers:
            assert layer["routing"] == "expert_choice"
            assert (layer["top_k"], layer["num_experts"]) == (NUM_EXPERTS, NUM_EXPERTS)
            assert layer["min_rows"] < NUM_EXPERTS
    assert f"up to {NUM_EXPERTS} of {NUM_EXPERTS} experts, which choose tokens" in repr(result)


def test_decisions_of_any_size_are_a_valid_trace(traced: tuple[Path, Path, Any]) -> None:
    first, second, result = traced
    chosen = count_chosen(first)
    assert chosen.min() == 0
    assert chosen.max() == NUM_EXPERTS
    for path in (first, second):
        assert validate_trace(path).is_valid
    # Counted while the model ran, and from the rows on disk.
    counted = count_experts(open_trace(first), by="domain")
    assert result.counts.groups == counted.groups
    num_tokens = chosen.groupby(["prompt_id", "position"]).ngroups
    for mine, theirs in zip(result.counts.layers, counted.layers, strict=True):
        np.testing.assert_array_equal(mine.assignments, theirs.assignments)
        np.testing.assert_array_equal(mine.decisions, theirs.decisions)
        assert mine.decisions.sum() == num_tokens
        # Four prompts of three tokens.
        assert mine.prompt_sums is not None
        assert mine.prompt_sums.squared_decisions[counted.groups.index("short")] == 4 * 3**2


def test_a_place_that_no_expert_filled_is_not_a_choice(traced: tuple[Path, Path, Any]) -> None:
    first, _, _ = traced
    chosen = count_chosen(first)
    words = (
        f"In 3 layers experts choose tokens: a token has 0 to {NUM_EXPERTS} experts, and "
        f"{(chosen == 0).sum()} of {len(chosen)} decisions have none."
    )
    for result in (measure_balance(first), place_experts(first, num_gpus=2)):
        assert words in result.notes
        assert "ran no expert" not in " ".join(result.notes)


def test_capacity_and_losses_are_left_out(traced: tuple[Path, Path, Any]) -> None:
    first, _, _ = traced
    balance = measure_balance(first)
    assert balance.capacity == ()
    assert all(layer.dropped == () for layer in balance.layers)
    assert "as even as they make it" in " ".join(balance.notes)
    loads = {layer.load for layer in balance.layers}
    # Each expert takes three tokens of each of the twelve prompts.
    assert loads == {(3 * len(PROMPTS),) * NUM_EXPERTS}


def test_sets_of_any_size_are_compared_as_they_are(traced: tuple[Path, Path, Any]) -> None:
    first, second, _ = traced
    compared = compare_traces(first, second)
    sets = [
        read_trace(path)
        .query("expert >= 0")
        .groupby(["prompt_id", "position", "layer"])["expert"]
        .agg(frozenset)
        for path in (first, second)
    ]
    both = pd.concat(sets, axis=1, keys=["one", "other"]).map(
        lambda each: each if isinstance(each, frozenset) else frozenset()
    )
    overlaps = [
        len(one & other) / max(len(one), len(other)) for one, other in both.itertuples(index=False)
    ]
    assert sum(layer.num_decisions for layer in compared.layers) == len(both)
    assert compared.overall.overlap == pytest.approx(np.mean(overlaps))
    assert "always differ" not in " ".join(compared.notes)


def test_the_page_does_not_call_it_top_k(traced: tuple[Path, Path, Any]) -> None:
    page = render_report(traced[0])
    assert "experts choose tokens" in page
    assert f"top-{NUM_EXPERTS}" not in page
