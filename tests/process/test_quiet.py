"""transformers is silent during moetool's own calls, and afterwards as its user has set it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from moetool import RoutingRecorder, Scenario, estimate_memory, inspect_model, trace_model
from moetool.errors import InputError
from moetool.process.quiet import following_weights, quiet_transformers, silence_process

LOGGER = logging.getLogger("transformers")
MASK = "The attention mask and the pad token id were not set"


class _Listener(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Everything that transformers says, to a user who turned its messages on."""
    messages: list[str] = []
    before = LOGGER.level
    LOGGER.setLevel(logging.WARNING)
    listener = _Listener(messages)
    LOGGER.addHandler(listener)

    def show(make_bar: Callable[..., Any], arguments: Any, options: dict[str, Any]) -> Any:
        if not options.get("disable"):
            messages.append(f"bar: {options.get('desc')}")
        return make_bar(*arguments, **{**options, "disable": True})

    # What is to be said only once is said again in every test.
    once: Any = logging.Logger.warning_once  # type: ignore[attr-defined]
    once.cache_clear()
    before_hook = transformers_logging.set_tqdm_hook(show)
    yield messages
    assert transformers_logging.set_tqdm_hook(before_hook) is show
    LOGGER.removeHandler(listener)
    assert LOGGER.level == logging.WARNING
    LOGGER.setLevel(before)


def estimate(padless: Path) -> None:
    scenario = Scenario(batch_size=2, num_prompt_tokens=8, num_new_tokens=2)
    estimate_memory(str(padless), [scenario])


def trace(padless: Path) -> None:
    trace_model(padless, ["The cat sat.", "Der Hund schläft tief."], max_new_tokens=2)


def inspect(_: Path) -> None:
    # Its convolution warns that a package is missing.
    inspect_model("lfm2-8b-a1b")


@pytest.fixture(scope="module")
def padless(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with neither a token for pads nor room for a prompt: transformers warns of both."""
    folder = tmp_path_factory.mktemp("padless") / "demo"
    shutil.copytree(demo, folder)
    for name, setting in (
        ("config.json", {"pad_token_id": None}),
        ("generation_config.json", {"pad_token_id": None}),
        ("tokenizer_config.json", {"model_max_length": 2}),
    ):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, **setting}))
    return folder


@pytest.mark.parametrize("call", [estimate, trace, inspect])
def test_nothing_is_heard_of_transformers_in_own_calls(
    call: Callable[[Path], None], padless: Path, heard: list[str]
) -> None:
    call(padless)
    assert heard == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (estimate, MASK),
        (trace, "bar: Loading weights"),
        (trace, "Token indices sequence length"),
        (inspect, "causal_conv1d"),
    ],
)
def test_everything_is_heard_where_moetool_is_debugged(
    call: Callable[[Path], None],
    message: str,
    padless: Path,
    heard: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MOETOOL_DEBUG", "1")
    call(padless)
    assert any(message in line for line in heard)


def test_loaded_weights_are_counted_in_the_thread_that_loads_them(padless: Path) -> None:
    counts: list[tuple[int, int]] = []
    with quiet_transformers(), following_weights(lambda *both: counts.append(both)):
        model = AutoModelForCausalLM.from_pretrained(padless)
        other = Thread(target=AutoModelForCausalLM.from_pretrained, args=(padless,))
        other.start()
        other.join()
    num_all = len(list(model.parameters()))
    assert counts == [(number, num_all) for number in range(num_all + 1)]


def test_a_model_that_its_user_runs_under_the_recorder_speaks(
    padless: Path, heard: list[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(padless)
    tokenizer = AutoTokenizer.from_pretrained(padless)
    assert heard.pop() == "bar: Loading weights"
    ids = tokenizer("The cat sat on the mat.", return_tensors="pt").input_ids
    with RoutingRecorder(model):
        model.generate(torch.cat([ids, ids]), max_new_tokens=1)
    assert any(MASK in line for line in heard)


def test_a_traced_model_of_the_user_is_silent_and_then_speaks_again(
    padless: Path, heard: list[str]
) -> None:
    pair = (
        AutoModelForCausalLM.from_pretrained(padless),
        AutoTokenizer.from_pretrained(padless),
    )
    heard.clear()
    trace_model(pair, ["The cat sat on the mat."], max_new_tokens=2)
    assert heard == []
    LOGGER.warning("heard")
    assert heard == ["heard"]


def test_settings_come_back_after_a_refusal(tmp_path: Path, heard: list[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mixtral", "hidden_size": "x"}')
    with pytest.raises(InputError):
        inspect_model(tmp_path)
    LOGGER.warning("heard")
    assert heard == ["heard"]


def test_settings_come_back_when_the_last_of_nested_blocks_and_threads_ends(
    heard: list[str],
) -> None:
    inside, ended = Barrier(2), Barrier(2)

    def stay() -> None:
        with quiet_transformers():
            inside.wait()
            ended.wait()

    thread = Thread(target=stay)
    with quiet_transformers():
        thread.start()
        inside.wait()
        with quiet_transformers():
            LOGGER.warning("nested")
        LOGGER.warning("outer")
    LOGGER.warning("the other thread is still inside")
    ended.wait()
    thread.join()
    LOGGER.warning("heard")
    assert heard == ["heard"]


def test_settings_come_back_if_one_of_them_fails(
    heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no hook")

    with monkeypatch.context() as patched:
        patched.setattr(transformers_logging, "set_tqdm_hook", fail)
        with pytest.raises(RuntimeError, match="no hook"), quiet_transformers():
            pass
    LOGGER.warning("heard")
    with quiet_transformers():
        LOGGER.warning("not heard")
    assert heard == ["heard"]


@pytest.mark.parametrize(("debug", "level"), [("", "critical"), ("1", "error")])
def test_a_process_is_silenced_where_its_environment_says_nothing(
    debug: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"MOETOOL_DEBUG": debug, "HF_HUB_VERBOSITY": "debug"}
    monkeypatch.setattr(os, "environ", environment)
    accelerate = logging.getLogger("accelerate")
    before = accelerate.level
    accelerate.setLevel(logging.WARNING)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        silence_process()
        warnings.warn("heard", UserWarning, stacklevel=1)
    silenced = accelerate.level
    accelerate.setLevel(before)
    assert environment["TRANSFORMERS_VERBOSITY"] == level
    assert environment["HF_HUB_VERBOSITY"] == "debug"
    assert len(warned) == (1 if debug else 0)
    assert silenced == (logging.WARNING if debug else logging.ERROR)
