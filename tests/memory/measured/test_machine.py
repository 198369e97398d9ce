"""The machine as a measurement records it; no GPU is needed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

import moetool
from moetool.memory.measured import machine
from moetool.memory.measured.geometry import describe_geometry, hash_config
from moetool.memory.measured.machine import describe_machine, measure_bus


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 80 bytes according to torch."""
    found = SimpleNamespace(total_memory=80)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)


@pytest.mark.usefixtures("gpu")
def test_versions_are_those_that_run() -> None:
    shown = describe_machine(ask=lambda _: "580.95\n580.95\n")
    assert (shown.memory_bytes, shown.driver) == (80, "580.95")
    assert shown.versions["moetool"] == moetool.__version__
    assert shown.versions["torch"] == torch.__version__


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("error", [FileNotFoundError, subprocess.SubprocessError, None])
def test_a_driver_that_does_not_answer_is_unknown(error: type[Exception] | None) -> None:
    def ask(_: Sequence[str]) -> str:
        if error is not None:
            raise error
        return ""

    assert describe_machine(ask=ask).driver is None


def test_a_bus_s_speed_is_the_bytes_over_the_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_COPIED_BYTES", 1_000)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    seconds = [9.0, 1.0, 2.0, 3.0, 4.0, 50.0, 9.0, 10.0, 10.0, 10.0, 10.0, 10.0]
    ticks = iter([tick for end in seconds for tick in (0.0, end)])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    bus = measure_bus("cpu")
    assert bus is not None
    assert (bus.pinned_bytes_per_s, bus.pageable_bytes_per_s) == (1_000 / 3, 100)


def test_a_bus_that_lacks_the_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "empty", refuse)
    assert measure_bus("cpu") is None


def test_a_geometry_is_the_same_whatever_its_fields_order_and_origin() -> None:
    one = {"model_type": "mixtral", "num_hidden_layers": 4, "_name_or_path": "here"}
    other = {"num_hidden_layers": 4, "transformers_version": "5.24.0", "model_type": "mixtral"}
    assert describe_geometry(one) == describe_geometry(other)
    assert describe_geometry(one).num_layers == 4
    assert hash_config(one) != hash_config({**one, "num_hidden_layers": 5})
    nested = {"model_type": "a", "text_config": {"num_hidden_layers": 7}}
    assert describe_geometry(nested).num_layers == 7
    assert describe_geometry({}).num_layers is None
