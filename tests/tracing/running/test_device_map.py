"""A model spread over devices and disk gives the same rows as one in memory."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moetool import read_trace
from moetool.checkpoint.reference import resolve_model
from moetool.cli.observer import TerminalObserver
from moetool.errors import OutOfMemoryError, UntraceableError, UsageError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.reader import open_trace
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.sink_choice import SinkChoice
from moetool.trace.writing.writer import TraceSink
from moetool.tracing.options import TraceOptions
from moetool.tracing.prompts.prompts import make_prompt
from moetool.tracing.running import load_model as loading
from moetool.tracing.running.devices import choose_device_map
from moetool.tracing.trace_model import trace_model
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool

PROMPT = "The cat sat on the mat, and def add(a, b): return a + b"
NUM_LAYERS = 6
REST = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
EVERY_OTHER: dict[str, Any] = {
    **REST,
    **{f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(NUM_LAYERS)},
}


@dataclass
class Traced:
    """A finished trace, and the number of offloaded files when its first rows came."""

    rows: pd.DataFrame
    metadata: TraceMetadata
    num_offloaded: int


@dataclass(frozen=True)
class Place(SinkChoice):
    """Counts the offloaded files when the sink is opened."""

    counts: list[int] = field(default_factory=list)

    def open(self, metadata: TraceMetadata, identity: RunIdentity | None = None) -> TraceSink:
        assert self.target is not None
        self.counts.append(len(list(self.target.parent.glob("moetool-offload-*/*"))))
        return super().open(metadata, identity)


@dataclass(frozen=True)
class Tracer:
    """Traces the demonstration checkpoint, with temporary files in a separate folder."""

    folder: Path
    counts: list[int] = field(default_factory=list)

    def trace(self, device_map: str | None) -> Traced:
        path = self.folder / "trace.parquet"
        device = "cpu" if device_map is None else None
        with TerminalObserver(is_quiet=True) as observer:
            trace_model(
                resolve_model("demo"),
                make_prompt(PROMPT),
                TraceOptions(device=device, device_map=device_map),
                place=Place(path, replace_existing=True, counts=self.counts),
                observer=observer,
            )
        metadata = open_trace(path).metadata
        assert metadata is not None
        return Traced(read_trace(path), metadata, self.counts[-1])

    def write(self, device_map: object) -> str:
        path = self.folder / "map.json"
        path.write_text(json.dumps(device_map), "utf-8")
        return str(path)

    def find_leftovers(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("moetool-*"))


@pytest.fixture
def tracer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tracer:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Tracer(tmp_path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return Tracer(tmp_path_factory.mktemp("plain")).trace(None)


@pytest.mark.parametrize(
    ("device_map", "devices"),
    [
        pytest.param("cpu", {"cpu"}, id="cpu"),
        pytest.param("auto", {"cpu"}, id="auto"),
        pytest.param({"": "cpu"}, {"cpu"}, id="all on the CPU"),
        pytest.param({"": "disk"}, {"disk"}, id="all on disk"),
        pytest.param(EVERY_OTHER, {"cpu", "disk"}, id="every other layer on disk"),
        pytest.param({**REST, "model.layers": "disk"}, {"cpu", "disk"}, id="all layers on disk"),
    ],
)
def test_the_rows_are_those_of_a_model_in_memory(
    device_map: str | dict[str, str], devices: set[str], plain: Traced, tracer: Tracer
) -> None:
    name = device_map if isinstance(device_map, str) else tracer.write(device_map)
    traced = tracer.trace(name)
    exact = [column for column in plain.rows if column != "weight"]
    pd.testing.assert_frame_equal(traced.rows[exact], plain.rows[exact])
    # Offloaded weights are elsewhere in memory, which may change the rounding of a product.
    weights = [frame["weight"].to_numpy() for frame in (traced.rows, plain.rows)]
    assert abs(weights[0] - weights[1]).max() <= 1e-5
    assert set((traced.metadata.device or "").split(", ")) == devices
    assert traced.metadata.device_map == name
    assert traced.metadata.complete
    assert (traced.num_offloaded > 0) == ("disk" in devices)
    assert tracer.find_leftovers() == []


@pytest.mark.parametrize("error", [UntraceableError, KeyboardInterrupt])
def test_the_offload_folder_goes_when_a_run_fails(
    error: type[BaseException], tracer: Tracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        assert tracer.counts[-1] > 0
        raise error("on purpose", hint="") if error is UntraceableError else error

    monkeypatch.setattr("moetool.tracing.run.trace_prompts", fail)
    with pytest.raises(error):
        tracer.trace(tracer.write(EVERY_OTHER))
    assert tracer.find_leftovers() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "can't be read"),
        ("", "can't be read"),
        ('{"a": ' + "[" * 100_000, "can't be read"),
        ("[]", "is not an object of module paths and devices"),
        ('"cpu"', "is not an object of module paths and devices"),
        ('{"model": ["cpu"]}', "is not an object of module paths and devices"),
        ('{"": 1.5}', "is not an object of module paths and devices"),
        ('{"": true}', "is not an object of module paths and devices"),
        ('{"": null}', "is not an object of module paths and devices"),
        ('{"": "gpu"}', "There is no device 'gpu' here"),
        ('{"": "meta"}', "There is no device 'meta' here"),
        ('{"": 99}', "There is no GPU 99 here"),
        ('{"": -1}', "There is no GPU -1 here"),
        (json.dumps({"": 10**400}), "There is no GPU 1000[0…]{26} here"),
    ],
)
def test_a_device_map_that_means_nothing_is_refused_by_what_is_wrong(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "map.json"
    path.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=message):
        choose_device_map(str(path))


@pytest.mark.parametrize("name", ["nowhere.json", "everywhere", "meta", "disk"])
def test_a_device_map_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        choose_device_map(name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("device_map", "fact"),
    [
        pytest.param({}, "no device for: model.embed_tokens.weight", id="empty"),
        pytest.param(
            {"model.layers": "cpu"}, "no device for: model.embed_tokens.weight", id="layers only"
        ),
        pytest.param(
            {**REST, "model.layers.1": "disk"},
            "no device for: model.layers.0.self_attn.q_proj.weight",
            id="one layer only",
        ),
        pytest.param(
            {**EVERY_OTHER, "model.layers.9": "cpu"},
            "not in the model: model.layers.9",
            id="a layer too many",
        ),
        pytest.param(
            {"": "cpu", "model.layers.1": "disk"}, "not in the model: ''", id="all and one"
        ),
    ],
)
def test_a_device_map_that_does_not_fit_the_model_is_refused_before_it_is_loaded(
    device_map: Mapping[str, str],
    fact: str,
    tracer: Tracer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "load_model", must_not_be_called)
    with pytest.raises(UsageError, match="does not fit MixtralForCausalLM") as caught:
        tracer.trace(tracer.write(device_map))
    assert fact in caught.value.facts
    assert tracer.find_leftovers() == []


def must_not_be_called(*_: object, **__: object) -> None:
    raise OutOfMemoryError("it was loaded", hint="")


def test_device_and_device_map_exclude_each_other(run_moetool: RunMoetool, tmp_path: Path) -> None:
    target = tmp_path / "trace.parquet"
    completed = run_moetool(
        *("route-trace", "demo", "--prompt", "x", "-o", target),
        *("--device", "cpu", "--device-map", "auto"),
    )
    expected = Refusal(
        2,
        error="A device and a device map exclude each other",
        hint="Leave out --device, or --device-map",
    )
    assert_refused(completed, expected, target=target)
