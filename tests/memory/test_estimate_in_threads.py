"""Estimates and inspections in several threads, one of which computes something else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from moetool.inspection.inspect import inspect_model
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Scenario
from tests.memory.saved_configs import save_config

SCENARIO = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=6, dtype="float32")


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Configurations of three families."""
    found = []
    for family in ("olmoe", "mixtral", "jamba"):
        (tmp_path / family).mkdir()
        found.append(save_config(family, tmp_path / family))
    return found


@contextmanager
def running(module: nn.Module) -> Iterator[list[int]]:
    """Call a module in another thread until the block ends, and count the calls."""
    num_calls = [0]
    is_over = threading.Event()

    def run() -> None:
        given = torch.ones(2, 4, dtype=torch.float32)
        while not is_over.is_set():
            module(given)
            num_calls[0] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield num_calls
    finally:
        is_over.set()
        thread.join()


def test_threads_get_the_answers_that_they_get_one_after_another(paths: list[str]) -> None:
    replaced = torch.tensor, torch.Tensor.__iter__, torch.Tensor.__format__
    alone = [(estimate_memory(path, [SCENARIO]), inspect_model(path)) for path in paths]
    with ThreadPoolExecutor(2 * len(paths)) as pool:
        estimates = [pool.submit(estimate_memory, path, [SCENARIO]) for path in paths]
        inspections = [pool.submit(inspect_model, path) for path in paths]
        found = [
            (estimate.result(), inspection.result())
            for estimate, inspection in zip(estimates, inspections, strict=True)
        ]
    assert found == alone
    assert (torch.tensor, torch.Tensor.__iter__, torch.Tensor.__format__) == replaced


def test_modules_that_another_thread_calls_are_not_part_of_a_run(paths: list[str]) -> None:
    alone = estimate_memory(paths[0], [SCENARIO])
    module = nn.Sequential(nn.Linear(4, 4, dtype=torch.float32), nn.ReLU())
    with running(module) as num_calls:
        assert estimate_memory(paths[0], [SCENARIO]) == alone
    assert num_calls[0] > 0
