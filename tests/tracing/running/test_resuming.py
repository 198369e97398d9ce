"""Interrupted runs that are resumed: their outputs are those of a run that was left alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moetool import trace_model
from moetool.errors import ResumableInterrupt, UsageError
from moetool.trace.companions import probabilities_path, saliency_path
from moetool.trace.reading.reader import open_trace, read_trace
from moetool.trace.writing.partial import partial_folder
from tests.trace.writing.runs import names_in

# Of several lengths, so that batches do not run in the order of the prompts.
PROMPTS = pd.DataFrame(
    {
        "id": [f"p{number}" for number in range(9)],
        "domain": ["python", "prose", "shell"] * 3,
        "text": ["def add(a, b): return a" * (1 + 2 * number % 5) for number in range(9)],
    }
)
EVERYTHING: dict[str, Any] = {
    "batch_size": 1,
    "max_new_tokens": 3,
    "temperature": 2.0,
    "seed": 5,
    "probabilities": True,
    "saliency": True,
}
NUM_BATCHES = len(PROMPTS)


@pytest.fixture(scope="module")
def pair(demo: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(demo)
    return model.eval(), AutoTokenizer.from_pretrained(demo)


def run(
    pair: tuple[Any, Any], folder: Path, *, stop_after: int | None = None, **options: Any
) -> None:
    """Trace the prompts, and press Ctrl-C after a number of batches."""
    left = [NUM_BATCHES + 1 if stop_after is None else stop_after]

    def count(_words: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    trace_model(
        pair,
        PROMPTS,
        output=folder / "t.parquet",
        save_text=folder / "t.jsonl",
        on_progress=count,
        **{**EVERYTHING, **options},
    )


def hash_outputs(folder: Path) -> dict[str, str]:
    """Return a hash of each output's content."""
    target = folder / "t.parquet"
    observed = torch.load(saliency_path(target), weights_only=True)
    contents = {
        "rows": pq.read_table(target).to_pydict(),
        "metadata": pq.read_metadata(target).metadata[b"moetool"],
        "probabilities": pq.read_table(probabilities_path(target)).to_pydict(),
        "saliency": {
            (layer, name): value.numpy().tobytes()
            for layer, values in observed.items()
            for name, value in values.items()
        },
        "texts": (folder / "t.jsonl").read_bytes(),
    }
    return {
        name: hashlib.sha256(repr(content).encode()).hexdigest()
        for name, content in contents.items()
    }


@pytest.fixture(scope="module")
def expected(pair: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    run(pair, folder)
    return hash_outputs(folder)


def interrupt(pair: tuple[Any, Any], folder: Path, *, after: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(pair, folder, stop_after=after, **options)
    assert not (folder / "t.parquet").exists()


def count_kept(folder: Path) -> int:
    """Return the prompts in the partial folder, after reading all of it."""
    partial = partial_folder(folder / "t.parquet")
    if not partial.exists():
        return 0
    frame = read_trace(partial)
    assert len(pd.read_parquet(partial)) == len(frame)
    return frame["prompt_id"].nunique()


@pytest.mark.parametrize("after", [1, 5, NUM_BATCHES])
def test_a_slow_run_loses_no_batch(
    pair: tuple[Any, Any],
    expected: dict[str, str],
    after: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moetool.trace.writing.unfinished.store.SECONDS_PER_BATCH", 0.0)
    interrupt(pair, tmp_path, after=after)
    kept = count_kept(tmp_path)
    assert kept >= after - 1
    run(pair, tmp_path, resume=kept > 0)
    assert hash_outputs(tmp_path) == expected
    assert names_in(tmp_path) == sorted(
        ["t.jsonl", "t.parquet", "t.probabilities.parquet", "t.saliency.pt"]
    )


def test_a_run_interrupted_at_random_again_and_again_loses_no_window(
    pair: tuple[Any, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    random, kept, num_interrupts = Random(3), 0, 0
    while kept < NUM_BATCHES // 2 or num_interrupts < 3:
        interrupt(pair, tmp_path, after=random.randrange(1, NUM_BATCHES), resume=kept > 0)
        assert count_kept(tmp_path) >= kept
        kept, num_interrupts = count_kept(tmp_path), num_interrupts + 1
    run(pair, tmp_path, resume=True)
    assert hash_outputs(tmp_path) == expected


def test_a_run_whose_windows_are_all_there_is_finished_without_the_model(
    pair: tuple[Any, Any],
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt_finish(*_args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("moetool.trace.writing.writer.TraceFile.finish", interrupt_finish)
        interrupt(pair, tmp_path, after=NUM_BATCHES + 1)
    calls: list[object] = []
    hook = pair[0].register_forward_pre_hook(lambda module, _: calls.append(module))
    run(pair, tmp_path, resume=True)
    hook.remove()
    assert calls == []
    assert hash_outputs(tmp_path) == expected


def test_another_model_other_prompts_and_options_are_refused_before_anything_runs(
    pair: tuple[Any, Any], expected: dict[str, str], tmp_path: Path
) -> None:
    interrupt(pair, tmp_path, after=NUM_BATCHES - 1)
    kept = count_kept(tmp_path)
    assert kept > 0
    changed = AutoModelForCausalLM.from_pretrained(pair[0].name_or_path).eval()
    with torch.no_grad():
        changed.lm_head.weight[0, 0] += 1
    for other, options, difference in (
        ((changed, pair[1]), {}, "files of the model"),
        (pair, {"limit": 5}, "prompts (SHA-256)"),
        (pair, {"temperature": 3.0}, "temperature: 3.0 here, 2.0 there"),
        (pair, {"seed": 6}, "seed: 6 here, 5 there"),
        (pair, {"batch_size": 2}, "batch size: 2 here, 1 there"),
        (pair, {"layers": [0]}, "layers: [0] here, none there"),
        (pair, {"probabilities": False}, "probabilities: false here, true there"),
        (pair, {"save_text": None}, "generated texts: false here, true there"),
    ):
        with pytest.raises(UsageError) as caught:
            trace_model(
                other,
                PROMPTS,
                output=tmp_path / "t.parquet",
                resume=True,
                on_progress=lambda words: pytest.fail(words),
                **{**EVERYTHING, "save_text": tmp_path / "t.jsonl", **options},
            )
        assert difference in caught.value.message
    assert count_kept(tmp_path) == kept
    run(pair, tmp_path, resume=True)
    assert hash_outputs(tmp_path) == expected


def test_an_interrupt_names_what_goes_on(pair: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ResumableInterrupt, match="Interrupted") as caught:
        run(pair, tmp_path, stop_after=NUM_BATCHES - 1)
    assert "--resume" in caught.value.hint
    metadata = open_trace(partial_folder(tmp_path / "t.parquet")).metadata
    assert metadata is not None
    assert not metadata.complete
    assert metadata.layers


def test_only_files_are_resumed(pair: tuple[Any, Any], tmp_path: Path) -> None:
    for options, message in (
        ({}, "Only a run that writes to a file can be resumed"),
        ({"output": tmp_path / "t.csv", "overwrite": True}, "exclude each other"),
        ({"output": tmp_path / "t.csv"}, "there is nothing to resume"),
    ):
        with pytest.raises(UsageError, match=message):
            trace_model(pair, PROMPTS, resume=True, **options)
    assert names_in(tmp_path) == []
