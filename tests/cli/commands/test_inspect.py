"""`moetool inspect` as users run it."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import REPOSITORY, Completed, RunMoetool

DEADLINE_S = 90

HEADERS = ("--source", "headers")

# Says its address, then that it was asked, and never answers.
SILENT_HUB = """
import socket, time
hub = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{hub.getsockname()[1]}", flush=True)
connection, _ = hub.accept()
print("asked", flush=True)
time.sleep(600)
"""

# From the table: what these models hold, and what a token runs of them.
TOTALS = {
    "Mixtral-8x7B": 46_702_792_704,
    "gpt-oss-20b": 20_914_757_184,
    "switch-base-8": 619_339_008,
}


def read_models(completed: Completed) -> list[dict[str, Any]]:
    """Return the models in a command's JSON, after a look at what goes with it."""
    assert (completed.returncode, completed.stderr) == (0, "")
    models: list[dict[str, Any]] = json.loads(completed.stdout)["models"]
    return models


def start(*args: str | Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "moetool", *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )


# Figures


def test_published_models_have_the_totals_that_are_known(run_moetool: RunMoetool) -> None:
    models = read_models(run_moetool("inspect", *TOTALS, "--format", "json"))
    assert [model["model"] for model in models] == list(TOTALS)
    for model, total in zip(models, TOTALS.values(), strict=True):
        assert model["parameters"]["total"] == total
        assert sum(model["parameters"]["components"].values()) == total
    assert models[0]["parameters"]["active"]["all"] == 12_879_925_248
    assert models[0]["published"]["meets_active"] == ["all"]


def test_headers_and_skeleton_of_the_demonstration_tell_the_same(run_moetool: RunMoetool) -> None:
    (both,) = read_models(run_moetool("inspect", "demo", "--format", "json"))
    (headers,) = read_models(run_moetool("inspect", "demo", *HEADERS, "--format", "json"))
    assert (both["source"], headers["source"]) == ("skeleton and headers", "headers")
    for name in ("total", "active", "components"):
        assert both["parameters"][name] == headers["parameters"][name]
    for name in ("num_layers", "num_moe_layers", "num_experts", "top_k"):
        assert both[name] == headers[name]
    assert both["files"]["differences"] == []


def test_a_dense_model_is_a_result_with_a_note(run_moetool: RunMoetool, dense_model: Path) -> None:
    (model,) = read_models(run_moetool("inspect", dense_model, "--format", "json"))
    assert (model["num_moe_layers"], model["num_experts"], model["top_k"]) == (0, 0, 0)
    assert model["parameters"]["active"]["all"] == model["parameters"]["total"]
    assert any(note.startswith("Dense model") for note in model["notes"])


def test_a_system_known_from_reports_is_labelled_so(run_moetool: RunMoetool) -> None:
    completed = run_moetool("inspect", "GPT-4")
    assert (completed.returncode, completed.stderr) == (0, "")
    assert "1.6–1.8T, reported" in completed.stdout
    assert "Reported, never computed." in completed.stdout


def test_the_table_of_headers_is_this_one(run_moetool: RunMoetool) -> None:
    completed = run_moetool("inspect", "demo", *HEADERS)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert completed.stdout.startswith(
        """\
model       demo
source      the headers of its files
total       2.924M            2,924,160
active      1.155M            1,154,688   all: 39.5% of the total
            1.155M            1,154,688   without input embedding
            892.5K              892,544   without embedding and head
layers      6, all with experts
experts     top-2 of 8; 49.15K parameters each
"""
    )
    assert max(map(len, completed.stdout.splitlines())) <= 80


def test_csv_goes_into_pandas_as_it_is(run_moetool: RunMoetool) -> None:
    completed = run_moetool("inspect", "demo", *HEADERS, "--format", "csv")
    table = pd.read_csv(io.StringIO(completed.stdout))
    assert table["params"].dtype == "int64"
    assert table["params"].sum() == 2_924_160
    assert table["active_params"].sum() == 1_154_688


def test_a_model_named_twice_is_shown_twice(run_moetool: RunMoetool, demo: Path) -> None:
    first, second = read_models(run_moetool("inspect", demo, demo, *HEADERS, "--format", "json"))
    assert first == second


# Where it goes


def test_the_suffix_of_the_output_decides_the_format(
    run_moetool: RunMoetool, tmp_path: Path
) -> None:
    for name in ("demo.json", "demo.csv", "demo.txt"):
        completed = run_moetool("inspect", "demo", *HEADERS, "-o", tmp_path / name)
        assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")
    assert json.loads((tmp_path / "demo.json").read_text("utf-8"))["schema"] == "moetool.inspect/1"
    assert (tmp_path / "demo.csv").read_text("utf-8").startswith("model,stack,layer,component,")
    assert (tmp_path / "demo.txt").read_text("utf-8").startswith("model       demo\n")


def test_an_existing_file_is_replaced_only_if_asked(
    run_moetool: RunMoetool, tmp_path: Path
) -> None:
    output = tmp_path / "demo.json"
    output.write_text("mine", encoding="utf-8")
    completed = run_moetool("inspect", "demo", *HEADERS, "-o", output)
    assert_refused(completed, Refusal(2, error=f"'{output}' exists", hint="--force"), target=None)
    assert output.read_text(encoding="utf-8") == "mine"
    completed = run_moetool("inspect", "demo", *HEADERS, "-o", output, "--force")
    assert completed.returncode == 0
    assert json.loads(output.read_text(encoding="utf-8"))["models"]


def test_a_reader_that_has_had_enough_is_no_error() -> None:
    with start("inspect", "demo", *HEADERS, "--format", "csv") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_ctrl_c_ends_in_a_sentence(tmp_path: Path) -> None:
    """While it waits for a Hub that never answers."""
    with subprocess.Popen(
        [sys.executable, "-c", SILENT_HUB], stdout=subprocess.PIPE, text=True
    ) as hub:
        assert hub.stdout is not None
        environment = {
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": hub.stdout.readline().strip(),
            "HF_HOME": str(tmp_path),
        }
        with start("inspect", "org/model", **environment) as process:
            assert hub.stdout.readline() == "asked\n"
            process.send_signal(signal.SIGINT)
            stdout, stderr = process.communicate(timeout=DEADLINE_S)
        hub.terminate()
    completed = Completed(process.args, process.returncode, stdout.decode(), stderr.decode())
    assert_refused(completed, Refusal(130, error="Interrupted", hint="same command"), target=None)


def test_a_summary_is_one_row_for_each_model(run_moetool: RunMoetool) -> None:
    completed = run_moetool("inspect", "demo", "gpt-4", "--summary", "--format", "csv")
    assert (completed.returncode, completed.stderr) == (0, "")
    rows = list(csv.DictReader(completed.stdout.splitlines()))
    assert [row["model"] for row in rows] == ["demo", "gpt-4"]
    assert rows[0]["num_experts"] == "8"


def test_a_summary_of_every_layer_is_refused(run_moetool: RunMoetool) -> None:
    completed = run_moetool("inspect", "demo", "--summary", "--per-layer")
    assert completed.returncode == 2
    assert completed.stderr.startswith("error: --summary shows one row for each model")
