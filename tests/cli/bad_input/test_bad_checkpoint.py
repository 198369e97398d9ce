"""A checkpoint that lacks something, is broken, or does not route is refused by its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.bad_input.refusals import Attempt, Refusal, assert_refused
from tests.cli.conftest import TryAll

Spoil = Callable[[Path], object]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def remove(*names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def write(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def configure(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")

    return spoil


def truncate(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


# By what is wrong with a copy of the demonstration checkpoint: what breaks it, and what is said
# of it; {} is its folder.
SPOILED: dict[str, tuple[Spoil, Refusal]] = {
    "no config.json": (
        remove("config.json"),
        Refusal(3, error="'{}' holds no config.json: it is loose safetensors", hint="config.json"),
    ),
    "no weights": (
        remove(WEIGHTS),
        Refusal(3, error="'{}' holds a config.json but no weights", hint=WEIGHTS),
    ),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        Refusal(3, error="'{}' holds no tokenizer", hint="tokenizer.json"),
    ),
    "a config.json that is not JSON": (
        write("config.json", '{"model_type": "mixtral",'),
        Refusal(3, error="'{}/config.json' can't be read as JSON", hint="again"),
    ),
    "a config.json with a word for a number": (
        configure(hidden_size="wide"),
        Refusal(
            3, error="'{}/config.json' is not a usable mixtral configuration", fact="hidden_size"
        ),
    ),
    "an unknown architecture": (
        configure(model_type="nothing_known"),
        Refusal(5, error="has no architecture 'nothing_known'", hint="--upgrade transformers"),
    ),
    "an architecture from its own code": (
        configure(model_type="own_code", auto_map={"AutoConfig": "configuration_own.OwnConfig"}),
        Refusal(3, error="{} needs the Python code", hint="--trust-remote-code"),
    ),
    "truncated weights": (
        truncate(WEIGHTS),
        Refusal(3, error="'{}/model.safetensors' is not a complete", hint="Download it again"),
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
    "fewer layers than its config.json says": (
        configure(num_hidden_layers=8),
        Refusal(
            3,
            error="The weights of {} do not match its config.json",
            hint="the same checkpoint",
            fact="model.layers.6.",
        ),
    ),
}

UNROUTED: dict[str, Refusal] = {
    "dense": Refusal(4, error="LlamaForCausalLM is a dense model", hint="'demo'"),
}


@dataclass(frozen=True)
class Attempts:
    """Checkpoints by name, and what became of tracing each."""

    models: Mapping[str, Path]
    results: Mapping[str, Attempt]


@pytest.fixture(scope="module")
def attempts(
    demo: Path,
    dense_model: Path,
    try_all: TryAll,
    tmp_path_factory: pytest.TempPathFactory,
) -> Attempts:
    """A try at tracing every checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    models = {"dense": dense_model}
    for name, (spoil, _) in SPOILED.items():
        models[name] = folder / name.replace(" ", "-")
        shutil.copytree(demo, models[name])
        spoil(models[name])
    commands = {name: ("route-trace", models[name], "--prompt", "hello") for name in models}
    return Attempts(models, try_all(commands))


@pytest.mark.parametrize("what", SPOILED)
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(what: str, attempts: Attempts) -> None:
    attempt = attempts.results[what]
    expected = SPOILED[what][1].about(attempts.models[what])

    assert_refused(attempt.completed, expected, target=attempt.target)


@pytest.mark.parametrize("what", UNROUTED)
def test_a_model_without_routing_is_refused_by_its_class(what: str, attempts: Attempts) -> None:
    attempt = attempts.results[what]

    assert_refused(attempt.completed, UNROUTED[what], target=attempt.target)
