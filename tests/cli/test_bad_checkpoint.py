"""A checkpoint that lacks something, is broken, or does not route is refused by its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.refusals import Refusal, assert_refused, run_side_by_side
from tests.conftest import Completed, RunMoetool

Spoil = Callable[[Path], object]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def remove(*names: str) -> Spoil:
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def configure(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")

    return spoil


def truncate(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


# By what is wrong with a copy of the demonstration checkpoint: what breaks it, what is said.
SPOILED: dict[str, tuple[Spoil, Refusal]] = {
    "no config.json": (
        remove("config.json"),
        Refusal(3, error="'{}' holds no config.json", hint="Hugging Face format"),
    ),
    "no weights": (
        remove(WEIGHTS),
        Refusal(3, error="'{}' holds a config.json but no weights", hint=WEIGHTS),
    ),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        Refusal(3, error="'{}' holds no tokenizer", hint="tokenizer.json"),
    ),
    "a tokenizer that is not JSON": (
        write("tokenizer.json", "{"),
        Refusal(3, error="The tokenizer in '{}' can't be loaded", fact="seen: "),
    ),
    "a config.json that is not JSON": (
        write("config.json", '{"model_type": "mixtral",'),
        Refusal(3, error="'{}/config.json' can't be read as JSON", hint="again"),
    ),
    "a config.json that is a list": (
        write("config.json", "[]"),
        Refusal(3, error="'{}/config.json' holds no JSON object", hint="again"),
    ),
    "a config.json without a model_type": (
        write("config.json", "{}"),
        Refusal(3, error="'{}/config.json' names no model_type", hint="config.json"),
    ),
    "a config.json with a word for a number": (
        configure(hidden_size="wide"),
        Refusal(
            3,
            error="'{}/config.json' is not a usable mixtral configuration",
            fact="hidden_size",
        ),
    ),
    "a config.json that no model can be built from": (
        configure(num_attention_heads=0),
        Refusal(3, error="No model can be built from the config.json of {}", fact="seen: "),
    ),
    "an unknown architecture": (
        configure(model_type="nothing_known"),
        Refusal(5, error="has no architecture 'nothing_known'", hint="--upgrade transformers"),
    ),
    "an architecture of its own code": (
        configure(model_type="own_code", auto_map={"AutoConfig": "configuration_own.OwnConfig"}),
        Refusal(3, error="{} needs the Python code", hint="--trust-remote-code"),
    ),
    "truncated weights": (
        truncate(WEIGHTS),
        Refusal(3, error="'{}/model.safetensors' is not a whole", hint="Download it again"),
    ),
    "empty weights": (
        write(WEIGHTS, ""),
        Refusal(3, error="'{}/model.safetensors' is not a whole", hint="Download it again"),
    ),
    "an index that names a missing file": (
        write(INDEX, json.dumps({"weight_map": {"a": WEIGHTS, "b": "model-00002.safetensors"}})),
        Refusal(
            3,
            error="'{}' lacks 1 of its 2 weight files",
            hint="Download the missing files",
            fact="missing: model-00002.safetensors",
        ),
    ),
    "an index without a weight_map": (
        write(INDEX, "{}"),
        Refusal(3, error="'{}/model.safetensors.index.json' has no weight_map", hint="again"),
    ),
    "an index that names numbers": (
        write(INDEX, '{"weight_map": {"a": 1}}'),
        Refusal(3, error="'{}/model.safetensors.index.json'", hint="again"),
    ),
    "fewer layers than its config.json says": (
        configure(num_hidden_layers=8),
        Refusal(
            3,
            error="The weights of {} do not match its config.json",
            hint="one and the same checkpoint",
            fact="model.layers.6.",
        ),
    ),
    "tensors of another shape than its config.json says": (
        configure(intermediate_size=64),
        Refusal(
            3,
            error="The weights of {} do not match its config.json",
            hint="one and the same checkpoint",
            fact="experts.down_proj",
        ),
    ),
}

UNROUTED: dict[str, Refusal] = {
    "dense": Refusal(4, error="LlamaForCausalLM is a dense model", hint="'demo'"),
    "masked": Refusal(
        5, error="Can't trace SwitchTransformersForConditionalGeneration", fact="mlp.experts"
    ),
}


@dataclass(frozen=True)
class Attempt:
    """A try at tracing a checkpoint."""

    model: Path
    target: Path
    completed: Completed


@pytest.fixture(scope="module")
def attempts(
    demo: Path,
    dense_model: Path,
    masked_model: Path,
    run_moetool: RunMoetool,
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, Attempt]:
    """A try at every checkpoint, by its name; together, because each takes seconds."""
    place = tmp_path_factory.mktemp("attempts")
    models = {"dense": dense_model, "masked": masked_model}
    for name, (spoil, _) in SPOILED.items():
        models[name] = place / name.replace(" ", "-")
        shutil.copytree(demo, models[name])
        spoil(models[name])
    targets = {name: place / name / "trace.parquet" for name in models}
    for target in targets.values():
        target.parent.mkdir()

    def run(name: str) -> Completed:
        return run_moetool("route-trace", models[name], "--prompt", "hello", "-o", targets[name])

    completed = run_side_by_side(models, run)
    return {name: Attempt(models[name], targets[name], completed[name]) for name in models}


@pytest.mark.parametrize("what", SPOILED)
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(
    what: str, attempts: Mapping[str, Attempt]
) -> None:
    attempt = attempts[what]
    expected = SPOILED[what][1].about(attempt.model)

    assert_refused(attempt.completed, expected, target=attempt.target)


@pytest.mark.parametrize("what", UNROUTED)
def test_a_model_whose_routing_cannot_be_recorded_is_refused_by_its_class(
    what: str, attempts: Mapping[str, Attempt]
) -> None:
    attempt = attempts[what]

    assert_refused(attempt.completed, UNROUTED[what], target=attempt.target)
