"""Check `moetool select` against what ESFT published, and against PEFT.

    python -m benchmarks.questions.selecting esft PATH    scores and choices of ESFT's own tasks
    python -m benchmarks.questions.selecting peft         rows that LoRA changes on a tiny Qwen3-MoE

PATH is the folder `results` of github.com/deepseek-ai/ESFT, or an .npz with `expert_ids`,
`weights_e4` and `seq_lens` next to its `.summary.json` and `.expert_config.json`. The data is not
part of moetool. `peft` takes PEFT 0.21: pip install --target FOLDER --no-deps peft, and PYTHONPATH.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moetool import select_experts

NUM_EXPERTS, TOP_K = 64, 6


@dataclass(frozen=True)
class Task:
    """One published task.

    Attributes:
        name: As ESFT names it.
        frame: Its routing, with the columns of a trace.
        scores: The published `summary.json`.
        config: The published choice.
    """

    name: str
    frame: pd.DataFrame
    scores: dict[str, dict[str, dict[str, float]]]
    config: dict[str, Any]


def main(command: str, *paths: str) -> None:
    """Run a check, and exit with 1 if something differs."""
    if command == "peft":
        check_peft()
        return
    num_wrong = sum(check_task(task) for path in paths for task in find_tasks(Path(path)))
    sys.exit(1 if num_wrong else 0)


def check_task(task: Task) -> int:
    """Compare a task's scores and choice with those published, and return how many differ."""
    wrong = num_scores = 0
    for by in ("token", "gate"):
        found = select_experts(task.frame, by=by, num_experts=NUM_EXPERTS, top_k=TOP_K)
        for layer in found.layers:
            published = task.scores[f"{by}_scores"][str(layer.layer)]
            assert layer.scores is not None
            num_scores += len(layer.scores)
            wrong += sum(
                score != published[str(expert)] for expert, score in enumerate(layer.scores)
            )
        if by == "token":
            chosen = json.loads(json.dumps(found.to_esft()))
            wrong += chosen != task.config
            num_chosen = sum(map(len, chosen["experts"].values()))
    print(
        f"{task.name}: {num_scores:,} scores and {num_chosen} chosen experts, "
        f"{f'{wrong} differ' if wrong else 'all as published'}"
    )
    return wrong


def find_tasks(path: Path) -> Iterator[Task]:
    """Yield the tasks at a path."""
    if path.suffix == ".npz":
        arrays = np.load(path, allow_pickle=False)
        ids = arrays["expert_ids"].astype(np.int64)
        weights = arrays["weights_e4"].astype(np.float64) / 1e4
        frame = pd.concat(
            _make_layer(layer + 1, ids[layer], weights[layer], arrays["seq_lens"].tolist())
            for layer in range(len(ids))
        )
        yield Task(
            name=path.stem,
            frame=frame,
            scores=_read(path.with_suffix(".summary.json")),
            config=_read(path.with_suffix(".expert_config.json")),
        )
        return
    for folder in sorted((path / "expert_scores").iterdir()):
        yield Task(
            name=folder.name,
            frame=pd.concat(map(_read_layer, folder.glob("expert_weights_*.txt"))),
            scores=_read(folder / "summary.json"),
            config=_read(path / "expert_configs" / f"{folder.name}.json"),
        )


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _read_layer(path: Path) -> pd.DataFrame:
    """Return a layer's file of ESFT as rows: a line is a sequence, `ids TAB TAB weights`."""
    ids: list[int] = []
    weights: list[float] = []
    lengths: list[int] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        mine, theirs = (part.split("\t") for part in line.split("\t\t"))
        ids += map(int, mine)
        weights += map(float, theirs)
        lengths.append(len(mine) // TOP_K)
    return _make_layer(
        int(path.stem.rpartition("_")[2]),
        np.array(ids).reshape(-1, TOP_K),
        np.array(weights).reshape(-1, TOP_K),
        lengths,
    )


def _make_layer(
    layer: int, ids: NDArray[np.int64], weights: NDArray[np.float64], lengths: list[int]
) -> pd.DataFrame:
    """Return rows of one layer; slots of ESFT are not in the order of weights."""
    order = np.argsort(-weights, axis=1, kind="stable")
    num_tokens = len(ids)
    return pd.DataFrame(
        {
            "prompt_id": np.repeat(np.repeat(np.arange(len(lengths)), lengths), TOP_K).astype(str),
            "position": np.repeat(np.concatenate([np.arange(n) for n in lengths]), TOP_K),
            "layer": layer,
            "rank": np.tile(np.arange(TOP_K), num_tokens),
            "expert": np.take_along_axis(ids, order, axis=1).ravel(),
            "weight": np.take_along_axis(weights, order, axis=1).ravel().astype(np.float32),
        }
    )


def check_peft() -> None:
    """Train LoRA on the exported parameters with masked gradients, and see which rows change."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    from moetool import trace_model
    from moetool.interchange.exports.selection_formats import SelectionFormat
    from moetool.interchange.exports.selections import render_selection

    peft: Any = import_module("peft")
    rank = 4
    torch.manual_seed(0)
    make_config: Any = Qwen3MoeConfig
    config = make_config(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        moe_intermediate_size=32,
        num_experts=8,
        num_experts_per_tok=2,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    model = AutoModelForCausalLM.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        trace = trace_model("demo", ["def f(x):\n    return x", "print('a')"])
        selection = select_experts(
            trace.to_frame(), layers=[0, 1, 2], freeze_list=True, model=folder, top_p=0.3
        )
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    names = json.loads(render_selection(selection, SelectionFormat.PEFT))
    rows = json.loads(render_selection(selection, SelectionFormat.FREEZE_LIST))["rows"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=8, **names))
    num_masked = 0
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(_make_mask(name, parameter, rank, adapted, rows))
            num_masked += 1
    optimizer = torch.optim.AdamW(
        [each for each in adapted.parameters() if each.requires_grad], lr=0.1, weight_decay=0
    )
    ids = torch.randint(3, 512, (4, 64))
    # The second matrix starts at zero, so the first has a gradient from the second step on.
    for _ in range(3):
        optimizer.zero_grad()
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    merged = adapted.merge_and_unload()
    wrong = num_changed = 0
    for name, value in merged.named_parameters():
        changed = (value.detach() != before[name]).reshape(len(value), -1).any(dim=1)
        found = set(torch.nonzero(changed).flatten().tolist())
        wrong += not found <= set(rows.get(name, ()))
        num_changed += len(found)
    print(
        f"{num_masked} LoRA matrices, {num_changed} of {sum(map(len, rows.values()))} rows of selected "
        "experts changed, "
        f"{f'and others in {wrong} parameters' if wrong else 'and no other'}"
    )
    sys.exit(1 if wrong or not num_changed else 0)


def _make_mask(name: str, parameter: Any, rank: int, adapted: Any, rows: dict[str, Any]) -> Any:
    """Return a hook that keeps the gradient of the selected experts' part of a LoRA matrix.

    PEFT's A is (experts * rank, in), with an expert's rows together; its B is (out, rank * experts),
    with an expert's columns a whole number of experts apart.
    """
    import torch

    layer = adapted.get_submodule(name.partition(".lora_")[0])
    module = (
        name.removeprefix("base_model.model.").partition(".lora_")[0].replace(".base_layer", "")
    )
    experts = rows[f"{module}.{layer.parameter_name}"]
    mask = torch.zeros_like(parameter)
    for expert in experts:
        if ".lora_A." in name:
            mask[expert * rank : (expert + 1) * rank] = 1
        else:
            mask[:, expert :: layer.num_experts] = 1
    return lambda gradient: gradient * mask


if __name__ == "__main__":
    main(*sys.argv[1:])
