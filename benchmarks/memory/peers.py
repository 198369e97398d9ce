"""Compare other estimators, and moetool, with the runs that were measured on a GPU.

    python -m benchmarks.memory.peers OUT.jsonl [MODEL ...] [--hf-mem PYTHON]
        [--aiconfigurator PYTHON]

Each PYTHON is the interpreter of an environment with that package; without it, its answers are left
out. accelerate is a dependency of moetool. Neither a GPU nor a network is needed: accelerate and
hf-mem read only repositories, so they are served one on the loopback address, with the model's
published configuration and a weight file that has a true header and no data, in the dtype that was
measured. The script writes one line for each run and prints the same as Markdown.

accelerate is asked for exact bytes, of which it prints two decimals; hf-mem is run with its
experimental cache; aiconfigurator with a static batch on one H200, everything in bfloat16, and
defaults otherwise. Its latencies come from their theoretical bound (`SOL`), because it refuses where
its measured ones have gaps; memory does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.inspecting import REPOSITORY, serve
from benchmarks.memory.accuracy import prepare_case
from moetool.catalogue.gpus import find_gpu
from moetool.catalogue.published import read_published_config
from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_workspace_bytes
from moetool.memory.simulated.runs import run_scenario

MEASURED = REPOSITORY / "benchmarks" / "memory" / "measured" / "memory_h200.jsonl"
# Batch size, prompt tokens, new tokens.
SCENARIOS = ((1, 128, 32), (8, 2048, 16), (32, 512, 16))
SIZES = ("batch_size", "num_prompt_tokens", "num_new_tokens")
PEERS = ("accelerate", "hf-mem", "aiconfigurator")
FILE_DTYPES = {"bfloat16": "BF16", "float32": "F32", "int64": "I64"}

# Each prints, as its last line, the answers to all scenarios of one model.
ACCELERATE = """
import argparse, json, sys
from accelerate.commands.estimate import gather_data
wishes = argparse.Namespace(
    model_name="org/model", library_name="transformers", trust_remote_code=False, dtypes=["float16"]
)
((_, _, num_bytes, _),) = gather_data(wishes)
answer = {"weights_bytes": round(num_bytes), "allocated_bytes": round(num_bytes)}
print(json.dumps([answer for _ in json.loads(sys.argv[1])]))
"""

# hf-mem asks the Hub itself, whatever HF_ENDPOINT says.
HF_MEM = """
import json, os, sys, httpx2
from hf_mem.run import run
request = httpx2.AsyncClient.request
async def ask(self, method, url, **wishes):
    url = str(url).replace("https://huggingface.co", os.environ["HF_ENDPOINT"])
    return await request(self, method, url, **wishes)
httpx2.AsyncClient.request = ask
answers = []
for batch, prompt, new in json.loads(sys.argv[1]):
    said = run("org/model", experimental=True, max_model_len=prompt + new, batch_size=batch)
    answers.append({
        "weights_bytes": said.memory,
        "cache_bytes": said.kv_cache,
        "allocated_bytes": said.total_memory,
    })
print(json.dumps(answers))
"""

AICONFIGURATOR = """
import json, logging, sys
from aiconfigurator.cli.api import cli_estimate
logging.disable(logging.CRITICAL)
modes = ("gemm_quant_mode", "moe_quant_mode", "kvcache_quant_mode", "fmha_quant_mode")
answers = []
for batch, prompt, new in json.loads(sys.argv[1]):
    result = cli_estimate(
        sys.argv[2], "h200_sxm", mode="static", database_mode="SOL", isl=prompt, osl=new,
        batch_size=batch, moe_tp_size=1, moe_ep_size=1, **dict.fromkeys(modes, "bfloat16"),
    )
    gib = result.summary.get_memory()
    parts = {name: round(gib[name] * 2**30) for name in ("weights", "kvcache", "activations")}
    answers.append({
        "weights_bytes": parts["weights"],
        "cache_bytes": parts["kvcache"],
        "activation_bytes": parts["activations"],
        "allocated_bytes": sum(parts.values()),
        "device_bytes": round(gib["total"] * 2**30),
    })
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Answer:
    """A tool's answer for one run. Figures that it does not report are None.

    Attributes:
        cache_bytes: Keys, values and states.
        activation_bytes: Everything that the run itself adds.
        allocated_bytes: The sum of these, comparable with the peak that torch allocated.
        device_bytes: The sum and an allowance for the driver and its libraries.
        refused: The tool's message, if it has no answer.
    """

    tool: str
    version: str
    weights_bytes: int | None = None
    cache_bytes: int | None = None
    activation_bytes: int | None = None
    allocated_bytes: int | None = None
    device_bytes: int | None = None
    refused: str | None = None


def main() -> None:
    """Ask every tool about every run; write and print the answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--hf-mem", help="interpreter of an environment with hf-mem")
    parser.add_argument("--aiconfigurator", help="interpreter of one with aiconfigurator")
    arguments = parser.parse_args()
    pythons = dict(
        zip(PEERS, (sys.executable, arguments.hf_mem, arguments.aiconfigurator), strict=True)
    )
    tools = ("moetool", *PEERS)
    print(f"| model | batch × prompt + new | measured, GB | {' | '.join(tools)} |")
    print("|---|---|---:|" + "---:|" * len(tools))
    with arguments.file.open("w", encoding="utf-8") as stream:
        for model, lines in read_measured(MEASURED).items():
            if arguments.models and model not in arguments.models:
                continue
            for line, answers in zip(lines, ask_tools(model, lines, pythons), strict=True):
                stream.write(json.dumps(compare(line, answers)) + "\n")
                stream.flush()
                print(_format_row(line, answers, tools), flush=True)


def read_measured(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the runs to ask about, by model: those of `SCENARIOS` without further options."""
    lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    by_model: dict[str, list[dict[str, Any]]] = {}
    for sizes in SCENARIOS:
        wanted = dict(zip(SIZES, sizes, strict=True))
        for line in lines:
            if line["options"] == wanted:
                by_model.setdefault(line["model"], []).append(line)
    return by_model


def ask_tools(
    model: str, lines: Sequence[Mapping[str, Any]], pythons: Mapping[str, str | None]
) -> list[list[Answer]]:
    """Return the answers of all tools, for each run of a model in turn."""
    scenarios = [[line["options"][name] for name in SIZES] for line in lines]
    by_tool = [[estimate(model, line["options"]) for line in lines]]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_header(checkpoint, model, lines[0]["options"])
        with serve(checkpoint) as endpoint:
            environment = {
                **os.environ,
                "HF_ENDPOINT": endpoint,
                "HF_HOME": folder,
                "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_OFFLINE": "0",
            }
            codes = dict(zip(PEERS, (ACCELERATE, HF_MEM, AICONFIGURATOR), strict=True))
            for tool, python in pythons.items():
                if python is not None:
                    command = [python, "-c", codes[tool], json.dumps(scenarios), str(checkpoint)]
                    by_tool.append(ask_peer(tool, command, environment, times=len(lines)))
    return [list(answers) for answers in zip(*by_tool, strict=True)]


def ask_peer(
    tool: str, command: Sequence[str], environment: Mapping[str, str], *, times: int
) -> list[Answer]:
    """Return a peer's answers for all runs of a model, or the message with which it refuses them."""
    version = _find_version(command[0], tool)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1].split(". ")[0]
        return [Answer(tool, version, refused=words)] * times
    answers = json.loads(done.stdout.strip().splitlines()[-1])
    return [Answer(tool, version, **answer) for answer in answers]


def estimate(model: str, options: Mapping[str, Any]) -> Answer:
    """Return moetool's answer for a run."""
    builder, scenario = prepare_case(model, options)
    figures = run_scenario(
        builder.build(scenario),
        scenario,
        workspace_bytes=find_workspace_bytes(find_gpu("h200")),
        context_bytes=CONTEXT_BYTES,
    ).figures
    return Answer(
        "moetool",
        _find_version(sys.executable, "moetool"),
        weights_bytes=figures.weights_bytes,
        cache_bytes=figures.cache_bytes,
        allocated_bytes=figures.peak_allocated_bytes,
        device_bytes=figures.total_device_bytes,
    )


def write_header(folder: Path, model: str, options: Mapping[str, Any]) -> None:
    """Write a model's configuration, and a weight file with a header of what is loaded but no data."""
    config = {**read_published_config(model), "dtype": "bfloat16"}
    # Bfloat16 is served, whatever the publisher's files hold.
    config.pop("quantization_config", None)
    builder, scenario = prepare_case(model, options)
    tensors = builder.build(scenario).state_dict(keep_vars=True)
    header: dict[str, object] = {}
    end = 0
    for name, tensor in {id(tensor): (name, tensor) for name, tensor in tensors.items()}.values():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": FILE_DTYPES[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    content = json.dumps(header).encode()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)


def compare(line: Mapping[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    """Return a run's line: its measurement, and each answer with its error."""
    names = ("weights_bytes", "cache_bytes", "peak_allocated_bytes", "total_device_bytes")
    peak_bytes = line["peak_allocated_bytes"]
    return {
        "model": line["model"],
        "options": line["options"],
        "gpu": line["gpu"],
        "measured": {name: line[name] for name in names},
        "answers": [
            {**asdict(answer), "share_off": _find_share_off(answer, peak_bytes)}
            for answer in answers
        ],
    }


def _find_share_off(answer: Answer, peak_bytes: int) -> float | None:
    if answer.allocated_bytes is None:
        return None
    return round(answer.allocated_bytes / peak_bytes - 1, 6)


def _format_row(line: Mapping[str, Any], answers: Sequence[Answer], tools: Sequence[str]) -> str:
    batch, prompt, new = (line["options"][name] for name in SIZES)
    peak_bytes = line["peak_allocated_bytes"]
    shares = {answer.tool: _find_share_off(answer, peak_bytes) for answer in answers}
    cells = []
    for tool in tools:
        share = shares.get(tool)
        digits = 3 if tool == "moetool" else 1
        cells.append("—" if share is None else f"{share:+.{digits}%}".replace("%", " %"))
    return (
        f"| {line['model']} | {batch} × {prompt} + {new} | {peak_bytes / 1e9:.2f} | "
        f"{' | '.join(cells)} |"
    )


@cache
def _find_version(python: str, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
