"""Rarer kinds of broken checkpoints than those tried on the command line.

Through the one library call that the command makes, in this process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moetool.checkpoint.reference import resolve_model
from moetool.cli.observer import TerminalObserver
from moetool.errors import InputError
from moetool.trace.writing.sink_choice import SinkChoice
from moetool.tracing.options import TraceOptions
from moetool.tracing.prompts.prompts import make_prompt
from moetool.tracing.trace_model import trace_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Damage = Callable[[Path], object]


def write(name: str, text: str) -> Damage:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def configure(**changes: object) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")

    return damage


def refusal_of(folder: Path) -> InputError:
    """Return the error that tracing a checkpoint ends in."""
    with TerminalObserver(is_quiet=True) as observer, pytest.raises(InputError) as caught:
        trace_model(
            resolve_model(str(folder)),
            make_prompt("hello"),
            TraceOptions(device="cpu"),
            place=SinkChoice(None, keeps_rows=False),
            observer=observer,
        )
    return caught.value


@pytest.fixture
def checkpoint(demo: Path, tmp_path: Path) -> Path:
    """A copy of the demonstration checkpoint."""
    return shutil.copytree(demo, tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("damage", "message", "fact"),
    [
        pytest.param(
            write("config.json", "[]"), "'{}/config.json' holds no JSON object", "", id="a list"
        ),
        pytest.param(
            write("config.json", "{}"), "'{}/config.json' names no model_type", "", id="empty"
        ),
        pytest.param(
            configure(model_type=7), "'{}/config.json' names no model_type", "", id="a number"
        ),
        pytest.param(
            configure(num_attention_heads=0),
            "No model can be built from the config.json of {}",
            "ZeroDivisionError",
            id="no heads",
        ),
        pytest.param(
            configure(hidden_act="unheard-of"),
            "No model can be built from the config.json of {}",
            "unheard-of",
            id="an unknown activation",
        ),
    ],
)
def test_a_config_json_that_describes_no_model_is_refused(
    damage: Damage, message: str, fact: str, checkpoint: Path
) -> None:
    damage(checkpoint)

    error = refusal_of(checkpoint)

    assert message.replace("{}", str(checkpoint)) in error.message
    assert fact in "\n".join(error.facts)
    assert "config.json" in error.hint or "file again" in error.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "can't be read as JSON", id="not JSON"),
        pytest.param("{}", "has no weight_map of names", id="empty"),
        pytest.param('{"weight_map": ["a"]}', "has no weight_map of names", id="a list"),
        pytest.param('{"weight_map": {"a": 1}}', "", id="numbers for names"),
        pytest.param('{"weight_map": {"a": ["model.safetensors"]}}', "", id="lists for names"),
    ],
)
def test_an_index_that_names_no_files_is_refused(text: str, message: str, checkpoint: Path) -> None:
    write(INDEX, text)(checkpoint)

    error = refusal_of(checkpoint)

    assert f"'{checkpoint / INDEX}'" in error.message
    assert message in error.message
    assert "again" in error.hint


@pytest.mark.parametrize("text", ["", "no tensors at all, but words", "\0" * 100])
def test_weights_that_are_no_safetensors_are_refused(text: str, checkpoint: Path) -> None:
    write(WEIGHTS, text)(checkpoint)

    error = refusal_of(checkpoint)

    assert f"'{checkpoint / WEIGHTS}' is not a complete safetensors file" in error.message
    assert "Download it again" in error.hint
    assert error.facts


def test_weights_of_another_shape_are_refused_by_the_tensors(checkpoint: Path) -> None:
    configure(intermediate_size=64)(checkpoint)

    error = refusal_of(checkpoint)

    assert f"weights of {checkpoint} do not match its config.json" in error.message
    assert "experts.down_proj" in "\n".join(error.facts)


@pytest.mark.parametrize("text", ["{", "{}", "[]"])
def test_a_tokenizer_that_cannot_be_loaded_is_refused(text: str, checkpoint: Path) -> None:
    write("tokenizer.json", text)(checkpoint)

    error = refusal_of(checkpoint)

    assert f"The tokenizer in '{checkpoint}' can't be loaded" in error.message
    assert "tokenizer files" in error.hint
