"""A MODEL that names nothing, or nothing with weights, is refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.cli.conftest import Refuse
from tests.command import RunMoetool

NO_HUB_MODEL = "nobody/no-such-model"


@pytest.mark.parametrize(
    ("model", "refusal"),
    [
        pytest.param(
            "./nowhere",
            Refusal(3, error="No model at './nowhere': no such path", hint="org/name"),
            id="a missing path",
        ),
        pytest.param(
            "dmeo", Refusal(3, error="No model 'dmeo'", hint="'demo'"), id="a misspelt demo"
        ),
        pytest.param(
            "mixtral-8x8b",
            Refusal(3, error="No model 'mixtral-8x8b'", hint="'mixtral-8x7b'"),
            id="a misspelt catalogue name",
        ),
        pytest.param(
            "wholly unlike anything",
            Refusal(3, error="No model 'wholly unlike anything'", hint="'demo'"),
            id="a name like no other",
        ),
        pytest.param(
            "pyproject.toml",
            Refusal(3, error="'pyproject.toml' is a file", hint="folder"),
            id="a plain file",
        ),
        pytest.param(
            "mixtral-8x7b",
            Refusal(3, error="'mixtral-8x7b' is a catalogue name", hint="mistralai/Mixtral-8x7B"),
            id="a catalogue name",
        ),
        pytest.param(
            "a prompt where the model should be " * 20,
            Refusal(3, error="No model 'a prompt where the model should be"),
            id="a text too long for a path",
        ),
        pytest.param("", Refusal(3, error="No model ''"), id="an empty name"),
    ],
)
def test_a_name_without_a_checkpoint_behind_it_is_refused(
    model: str, refusal: Refusal, refuse: Refuse
) -> None:
    refuse(model, "--prompt", "hello", refusal=refusal)


def test_a_config_json_is_refused_where_weights_are_needed(demo: Path, refuse: Refuse) -> None:
    config = demo / "config.json"
    expected = Refusal(3, error=f"'{config}' is a configuration", hint="folder that holds")

    refuse(config, "--prompt", "hello", refusal=expected)


def test_an_unreachable_hub_is_named_with_what_was_seen(
    run_moetool_process: RunMoetool, target: Path
) -> None:
    expected = Refusal(
        3,
        error=f"Can't reach the Hub for {NO_HUB_MODEL}, and it is not in the local cache",
        hint="HF_ENDPOINT",
        fact="seen: ",
    )

    completed = run_moetool_process(
        *("route-trace", NO_HUB_MODEL, "--prompt", "hello", "-o", target),
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:1",
    )

    assert_refused(completed, expected, target=target)


def test_a_model_that_is_not_cached_is_refused_in_offline_mode(refuse: Refuse) -> None:
    expected = Refusal(
        3,
        error=f"Can't reach the Hub for {NO_HUB_MODEL}, and it is not in the local cache",
        hint="HF_HUB_OFFLINE",
        fact="offline mode is enabled",
    )

    refuse(NO_HUB_MODEL, "--prompt", "hello", refusal=expected)
