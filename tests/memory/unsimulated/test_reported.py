"""Estimates of systems known from reports: a lower bound on weights, and null for all else."""

from __future__ import annotations

import pytest

from moetool.catalogue.published import read_reported_systems
from moetool.errors import UsageError
from moetool.memory.estimate import estimate_memory
from moetool.memory.scenario import Dtype, Scenario
from moetool.memory.serving.answer import Engine, ServingOptions
from moetool.quantizing.kinds import Quantization
from moetool.report.memory import data

# The least that the reports allow for, by hand: 1.6T, and 1.15T, which rounds to 1.2T.
LEAST = {"gpt-4": 1_600_000_000_000, "glam-64b-64e": 1_150_000_000_000}
# By scenario, half bytes of a parameter.
HALF_BYTES = [
    (Scenario(), 4),
    (Scenario(dtype=Dtype.FLOAT32), 8),
    (Scenario(quantization=Quantization.INT8), 2),
    (Scenario(quantization=Quantization.NF4), 1),
]


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize(("scenario", "half_bytes"), HALF_BYTES)
def test_weights_have_a_lower_bound_and_its_assumption(
    name: str, scenario: Scenario, half_bytes: int
) -> None:
    (found,) = estimate_memory(name, [scenario], gpu="h200")

    reported = found.reported
    assert reported is not None
    assert reported.weights_bytes_least == LEAST[name] * half_bytes // 2
    assert reported.bits_per_parameter == 4 * half_bytes
    assert found.method == "reported"
    assert any(f"at {4 * half_bytes} bits each" in note for note in found.notes)


def test_what_is_not_reported_is_null() -> None:
    (found,) = estimate_memory("gpt-4", gpu="h200")

    assert found.figures.weights_bytes is None
    assert found.figures.cache_bytes is None
    assert found.figures.total_device_bytes is None
    assert found.speed is None
    assert found.fit is not None
    assert found.fit.fits is False
    assert found.reported is not None
    assert found.reported.num_gpus_least == 22


def test_a_system_without_a_reported_size_has_no_bound() -> None:
    (found,) = estimate_memory("gemini", gpu="24GiB")

    assert found.reported is not None
    assert found.reported.weights_bytes_least is None
    assert found.reported.num_gpus_least is None
    assert found.does_fit is None
    assert any("nothing is reported" in note for note in found.notes)


def test_the_least_parameters_lie_in_the_reported_range() -> None:
    for system in read_reported_systems().values():
        least, most = system.total_params_least, system.total_params_most
        assert (least is None) == (most is None) == (system.total is None)
        assert least is None or most is None or least < most


def test_a_measurement_is_refused() -> None:
    with pytest.raises(UsageError, match="known from reports alone"):
        estimate_memory("gpt-4", measure=True)


def test_an_engine_is_refused() -> None:
    serving = ServingOptions(engine=Engine.VLLM)

    with pytest.raises(UsageError, match="known from reports alone"):
        estimate_memory("gpt-4", gpu="h200", serving=serving)


def test_the_page_says_that_the_figures_are_reported() -> None:
    text = data.render_table_text(estimate_memory("gpt-4", gpu="h200"))

    assert "at least 2.91 TiB, if the reports are right: 22 × h200" in text
    assert "1.6–1.8T, reported" in text
    assert "All else is unknown." in text
