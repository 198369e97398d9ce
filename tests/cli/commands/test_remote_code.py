"""A checkpoint with its own Python code: traced exactly with the flag, refused without.

Its weights are partly offloaded to disk, which a quiet run does not mention.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from moetool import read_trace
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.reader import open_trace
from tests.cli.bad_input.refusals import Attempt, Refusal, assert_refused
from tests.cli.conftest import VOCABULARY_OF_DEMO, TryAll

HIDDEN_SIZE, INNER_SIZE, NUM_LAYERS, NUM_EXPERTS, TOP_K = 24, 16, 3, 6, 2
MAX_POSITIONS = 64
DEVICE_MAP = {
    "embedding": "cpu",
    "positions": "cpu",
    "layers.0": "cpu",
    "layers.1": "disk",
    "layers.2": "disk",
    "lm_head": "cpu",
}
TEXTS = ("The cat sat on the mat.", "def add(a, b): return a + b", "12")

CONFIGURATION = """
from transformers import PreTrainedConfig


class OwnConfig(PreTrainedConfig):
    model_type = "own_moe"

    def __init__(self, sizes=(), **kwargs):
        self.sizes = list(sizes)
        super().__init__(**kwargs)
"""

# The classical block, as Mixtral had it in transformers 4 and as most remote code has it.
MODELING = """
import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_own import OwnConfig


class OwnExpert(nn.Module):
    def __init__(self, hidden_size, inner_size):
        super().__init__()
        self.w1 = nn.Linear(hidden_size, inner_size, bias=False)
        self.w2 = nn.Linear(inner_size, hidden_size, bias=False)
        self.w3 = nn.Linear(hidden_size, inner_size, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class OwnBlock(nn.Module):
    def __init__(self, hidden_size, inner_size, num_experts, top_k):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.experts = nn.ModuleList(OwnExpert(hidden_size, inner_size) for _ in range(num_experts))

    def forward(self, hidden_states):
        shape = hidden_states.shape
        hidden_states = hidden_states.view(-1, shape[-1])
        router_logits = self.gate(hidden_states)
        weights, selected = torch.topk(F.softmax(router_logits, dim=1), self.top_k, dim=-1)
        weights /= weights.sum(dim=-1, keepdim=True)
        final = torch.zeros_like(hidden_states)
        mask = F.one_hot(selected, num_classes=self.num_experts).permute(2, 1, 0)
        for expert in range(self.num_experts):
            slot, token = torch.where(mask[expert])
            if token.shape[0] == 0:
                continue
            output = self.experts[expert](hidden_states[token]) * weights[token, slot, None]
            final.index_add_(0, token, output.to(hidden_states.dtype))
        return final.view(shape), router_logits


class OwnLayer(nn.Module):
    def __init__(self, hidden_size, inner_size, num_experts, top_k):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.block_sparse_moe = OwnBlock(hidden_size, inner_size, num_experts, top_k)

    def forward(self, hidden_states):
        return hidden_states + self.block_sparse_moe(self.norm(hidden_states))[0]


class OwnForCausalLM(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        vocab, positions, num_layers, *sizes = config.sizes
        self.embedding = nn.Embedding(vocab, sizes[0])
        self.positions = nn.Embedding(positions, sizes[0])
        self.layers = nn.ModuleList(OwnLayer(*sizes) for _ in range(num_layers))
        self.lm_head = nn.Linear(sizes[0], vocab, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        position = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        hidden_states = self.embedding(input_ids) + self.positions(position)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return CausalLMOutput(logits=self.lm_head(hidden_states))
"""


def random_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int, std: float = 1.0) -> torch.Tensor:
        return std * torch.randn(shape, generator=generator)

    matrix, inner = HIDDEN_SIZE**-0.5, INNER_SIZE**-0.5
    weights = {
        "embedding.weight": draw(VOCABULARY_OF_DEMO, HIDDEN_SIZE),
        "positions.weight": draw(MAX_POSITIONS, HIDDEN_SIZE),
        "lm_head.weight": draw(VOCABULARY_OF_DEMO, HIDDEN_SIZE, std=matrix),
    }
    for layer in range(NUM_LAYERS):
        path = f"layers.{layer}"
        weights[f"{path}.norm.weight"] = 1 + draw(HIDDEN_SIZE, std=0.1)
        weights[f"{path}.norm.bias"] = draw(HIDDEN_SIZE, std=0.1)
        path = f"{path}.block_sparse_moe"
        weights[f"{path}.gate.weight"] = draw(NUM_EXPERTS, HIDDEN_SIZE, std=2 * matrix)
        for expert in range(NUM_EXPERTS):
            experts = f"{path}.experts.{expert}"
            weights[f"{experts}.w1.weight"] = draw(INNER_SIZE, HIDDEN_SIZE, std=matrix)
            weights[f"{experts}.w3.weight"] = draw(INNER_SIZE, HIDDEN_SIZE, std=matrix)
            weights[f"{experts}.w2.weight"] = draw(HIDDEN_SIZE, INNER_SIZE, std=inner)
    return weights


def write_checkpoint(folder: Path, *, demo: Path, modeling: str = MODELING) -> Path:
    folder.mkdir()
    (folder / "configuration_own.py").write_text(CONFIGURATION, "utf-8")
    (folder / "modeling_own.py").write_text(modeling, "utf-8")
    sizes = [VOCABULARY_OF_DEMO, MAX_POSITIONS, NUM_LAYERS, HIDDEN_SIZE, INNER_SIZE]
    config = {
        "model_type": "own_moe",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
        "sizes": [*sizes, NUM_EXPERTS, TOP_K],
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(random_weights(), folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)
    return folder


@dataclass(frozen=True)
class Attempts:
    """The checkpoint, and what became of tracing it, with the flag and without."""

    folder: Path
    results: Mapping[str, Attempt]

    @property
    def rows(self) -> pd.DataFrame:
        return read_trace(self.results["allowed"].target)

    @property
    def metadata(self) -> TraceMetadata:
        metadata = open_trace(self.results["allowed"].target).metadata
        assert metadata is not None
        return metadata


@pytest.fixture(scope="module")
def attempts(demo: Path, try_all: TryAll, tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    place = tmp_path_factory.mktemp("remote-code")
    own = write_checkpoint(place / "own", demo=demo)
    broken = write_checkpoint(place / "broken", demo=demo, modeling="import nowhere_to_be_found\n")
    prompts = place / "prompts.jsonl"
    lines = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(TEXTS)]
    prompts.write_text("\n".join(lines), "utf-8")
    device_map = place / "map.json"
    device_map.write_text(json.dumps(DEVICE_MAP), "utf-8")
    command = ("--prompts", prompts, "--device-map", device_map, "--quiet")
    commands: dict[str, tuple[str | Path, ...]] = {
        "allowed": ("route-trace", own, "--trust-remote-code", *command),
        "not allowed": ("route-trace", own, *command),
        "broken": ("route-trace", broken, "--trust-remote-code", *command),
    }
    results = try_all(commands)
    completed = results["allowed"].completed
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")
    return Attempts(own, results)


def recompute(folder: Path, token_ids: list[int]) -> pd.DataFrame:
    """Return the rows of one prompt from the weights alone, token by token, in float64."""
    weights = {k: v.double() for k, v in load_file(folder / "model.safetensors").items()}
    rows = []
    for position, token_id in enumerate(token_ids):
        state = weights["embedding.weight"][token_id] + weights["positions.weight"][position]
        for layer in range(NUM_LAYERS):
            path = f"layers.{layer}"
            scale, bias = weights[f"{path}.norm.weight"], weights[f"{path}.norm.bias"]
            centred = state - state.mean()
            normed = centred / math.sqrt(float((centred**2).mean()) + 1e-5) * scale + bias
            path = f"{path}.block_sparse_moe"
            scores = (weights[f"{path}.gate.weight"] @ normed).exp().tolist()
            chosen = sorted(range(NUM_EXPERTS), key=lambda expert: -scores[expert])[:TOP_K]
            for rank, expert in enumerate(chosen):
                weight = scores[expert] / sum(scores[other] for other in chosen)
                w1, w2, w3 = (
                    weights[f"{path}.experts.{expert}.{name}.weight"] for name in ("w1", "w2", "w3")
                )
                gate = w1 @ normed
                state = state + weight * (w2 @ (gate / (1 + (-gate).exp()) * (w3 @ normed)))
                rows.append((position, token_id, layer, rank, expert, weight))
    columns = ["position", "token_id", "layer", "rank", "expert", "weight"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(["layer", "position", "rank"], ignore_index=True)


def test_its_rows_are_those_that_its_weights_say(attempts: Attempts) -> None:
    tokenizer = AutoTokenizer.from_pretrained(attempts.folder)
    traced = attempts.rows
    assert len(traced) == attempts.metadata.num_decisions * TOP_K
    for number, text in enumerate(TEXTS):
        expected = recompute(attempts.folder, tokenizer(text)["input_ids"])
        rows = traced[traced["prompt_id"] == str(number)].reset_index(drop=True)
        exact = ["position", "token_id", "layer", "rank", "expert"]
        pd.testing.assert_frame_equal(rows[exact], expected[exact], check_dtype=False)
        np.testing.assert_allclose(rows["weight"], expected["weight"], rtol=1e-4, atol=1e-6)


def test_its_metadata_says_how_it_was_read(attempts: Attempts) -> None:
    metadata = attempts.metadata
    assert metadata.exact
    assert metadata.complete
    assert metadata.model_type == "own_moe"
    assert metadata.device == "cpu, disk"
    assert [layer.rule for layer in metadata.layers] == ["separate experts"] * NUM_LAYERS
    assert [layer.router for layer in metadata.layers] == [
        f"layers.{layer}.block_sparse_moe.gate" for layer in range(NUM_LAYERS)
    ]
    assert {(layer.num_experts, layer.top_k) for layer in metadata.layers} == {(NUM_EXPERTS, TOP_K)}


def test_without_the_flag_it_is_refused(attempts: Attempts) -> None:
    attempt = attempts.results["not allowed"]
    expected = Refusal(
        3, error=f"{attempts.folder} needs the Python code in its own", hint="--trust-remote-code"
    )
    assert_refused(attempt.completed, expected, target=attempt.target)


def test_code_that_can_not_be_imported_is_refused_with_what_was_seen(attempts: Attempts) -> None:
    attempt = attempts.results["broken"]
    expected = Refusal(
        3,
        error="needs a package that is not installed here: nowhere_to_be_found",
        hint="pip install nowhere_to_be_found",
        fact="nowhere_to_be_found",
    )
    assert_refused(attempt.completed, expected, target=attempt.target)
