"""Inputs that `moetool inspect` can't use, and Python code that it was not allowed to run."""

from __future__ import annotations

import json
import os
import pty
import shutil
from pathlib import Path

import pytest

from tests.checkpoint.gguf.writer import moe_metadata, moe_tensors, write_gguf
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.cli.commands.test_remote_code import (
    HIDDEN_SIZE,
    INNER_SIZE,
    MAX_POSITIONS,
    MODELING,
    NUM_EXPERTS,
    NUM_LAYERS,
    write_checkpoint,
)
from tests.cli.conftest import VOCABULARY_OF_DEMO
from tests.command import Completed, RunMoetool, run_main

HEADERS = ("--source", "headers")

# The checkpoint with its own code: norm, router and experts of a layer, then everything else.
_LAYER = 2 * HIDDEN_SIZE + NUM_EXPERTS * HIDDEN_SIZE + NUM_EXPERTS * 3 * HIDDEN_SIZE * INNER_SIZE
OWN_TOTAL = NUM_LAYERS * _LAYER + (2 * VOCABULARY_OF_DEMO + MAX_POSITIONS) * HIDDEN_SIZE


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        pytest.param(
            ["./nowhere"],
            Refusal(3, error="No model at './nowhere'", hint="org/name"),
            id="no path",
        ),
        pytest.param(
            ["mixtral-8x8b", *HEADERS],
            Refusal(3, error="No model 'mixtral-8x8b'", hint="'mixtral-8x7b'"),
            id="a misspelt name",
        ),
        pytest.param(
            ["mixtral-8x7b", *HEADERS],
            Refusal(3, error="'mixtral-8x7b' has no weight files", hint="mistralai/Mixtral-8x7B"),
            id="headers of a catalogue name",
        ),
        pytest.param(
            ["gpt-4", *HEADERS],
            Refusal(3, error="GPT-4 is known from reports alone", hint="--source"),
            id="headers of a reported system",
        ),
        pytest.param(
            ["demo", "--revision", "v1"],
            Refusal(2, error="'demo' is local: it has no revision 'v1'", hint="--revision"),
            id="a revision of a folder",
        ),
        pytest.param(
            ["kimi-k3"], Refusal(3, error="Kimi-K3 can't be counted", hint=""), id="not counted"
        ),
        pytest.param(
            ["nobody/no-such-model"],
            Refusal(3, error="nobody/no-such-model", hint="HF_HUB_OFFLINE"),
            id="a Hub id offline",
        ),
        pytest.param(["demo", "--source", "hearsay"], Refusal(2, error="hearsay"), id="a source"),
        pytest.param(
            ["demo", "-o", "demo.yaml"],
            Refusal(2, error="'demo.yaml'", hint=".json"),
            id="a suffix",
        ),
        pytest.param([], Refusal(2, error="MODEL"), id="nothing"),
    ],
)
def test_what_can_not_be_inspected_is_named(
    arguments: list[str],
    refusal: Refusal,
    run_moetool: RunMoetool,
) -> None:
    assert_refused(run_moetool("inspect", *arguments), refusal, target=None)


def test_a_gguf_file_that_breaks_off_is_refused(run_moetool: RunMoetool, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    refusal = Refusal(3, error=f"'{path}' is not a complete GGUF file", hint="Download it again")
    assert_refused(run_moetool("inspect", path), refusal, target=None)


def test_a_gguf_file_is_not_quantized_by_transformers(
    run_moetool: RunMoetool, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", moe_metadata(), moe_tensors())
    target = tmp_path / "quantized"
    done = run_moetool("quantize", path, "-o", target)
    refusal = Refusal(3, error=f"'{path}' is a GGUF file", hint="original checkpoint")
    assert_refused(done, refusal, target=target)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "can't be read as JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "names no model_type"),
        ('{"model_type": "mixtral", "num_hidden_layers": -1}', "num_hidden_layers is -1"),
        ('{"model_type": "mixtral", "model_type": "llama"}', "twice"),
    ],
)
def test_a_config_json_of_no_model_is_refused_by_its_path(
    text: str, error: str, run_moetool: RunMoetool, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    completed = run_moetool("inspect", path, "--format", "json")
    assert_refused(
        completed,
        Refusal(
            3,
            error=f"'{path}'",
            hint="config.json" if "model" in error or "layers" in error else "",
        ),
        target=None,
    )
    assert error in completed.stderr


def test_a_broken_weight_file_is_refused_before_torch_is_asked(
    run_moetool: RunMoetool, demo: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(demo, tmp_path / "model")
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size - 1)
    refusal = Refusal(3, error=str(weights), hint="again")
    assert_refused(run_moetool("inspect", folder), refusal, target=None)


# Python code in the checkpoint


@pytest.fixture(scope="module")
def own_code(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its own code, which leaves a file behind when it runs."""
    folder = tmp_path_factory.mktemp("own-code") / "own"
    mark = f"from pathlib import Path\nPath({str(folder / 'was-run')!r}).touch()\n"
    return write_checkpoint(folder, demo=demo, modeling=mark + MODELING)


def run_on_a_terminal(*args: str | Path) -> Completed:
    """Run moetool with a terminal for its input, on which nobody answers."""
    controller, terminal = pty.openpty()
    try:
        with os.fdopen(terminal, encoding="utf-8") as stdin:
            return run_main(*args, stdin=stdin)
    finally:
        os.close(controller)


def test_code_that_was_not_allowed_is_not_run_and_the_headers_are_shown(own_code: Path) -> None:
    completed = run_on_a_terminal("inspect", own_code, "--format", "json")
    assert (completed.returncode, completed.stderr) == (0, "")
    (model,) = json.loads(completed.stdout)["models"]
    assert model["source"] == "headers"
    assert "needs the Python code in its own repository" in model["notes"][0]
    assert model["parameters"]["total"] == OWN_TOTAL
    assert not (own_code / "was-run").exists()


def test_without_weights_code_that_was_not_allowed_is_refused(own_code: Path) -> None:
    completed = run_on_a_terminal("inspect", own_code, "--source", "skeleton")
    refusal = Refusal(3, error="needs the Python code in its own", hint="--trust-remote-code")
    assert_refused(completed, refusal, target=None)
    assert not (own_code / "was-run").exists()


def test_code_that_was_allowed_builds_the_skeleton(
    demo: Path, run_moetool: RunMoetool, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "own", demo=demo)
    completed = run_moetool("inspect", folder, "--trust-remote-code", "--format", "json")
    assert (completed.returncode, completed.stderr) == (0, "")
    (model,) = json.loads(completed.stdout)["models"]
    assert (model["source"], model["model_class"]) == ("skeleton and headers", "OwnForCausalLM")
    assert (model["num_moe_layers"], model["num_experts"]) == (3, 6)
    assert model["parameters"]["total"] == OWN_TOTAL
    assert model["files"]["differences"] == []
