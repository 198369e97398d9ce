"""The place of a process, as launchers write it into its environment."""

from __future__ import annotations

import pytest

from moetool.errors import UsageError
from moetool.tracing.processes.environment import ProcessPlace, read_place

# Of torchrun's second process.
_SECOND = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node7",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"MASTER_ADDR": "node7", "MASTER_PORT": "29500"},
        {**_SECOND, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
    ],
)
def test_a_process_without_others(environment: dict[str, str]) -> None:
    assert read_place(environment) == ProcessPlace()


def test_a_process_of_two() -> None:
    place = read_place(_SECOND)
    assert place == ProcessPlace(
        rank=1,
        number=2,
        local_rank=1,
        local_number=2,
        address="node7",
        port=29_500,
        has_agent=True,
    )


@pytest.mark.parametrize(
    "missing", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]
)
def test_a_half_set_environment_is_refused(missing: str) -> None:
    environment = {name: value for name, value in _SECOND.items() if name != missing}
    with pytest.raises(UsageError, match=rf"is set, but {missing} is not\."):
        read_place(environment)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("RANK", "2", "from 0 to 1"),
        ("RANK", "first", "from 0 to 1"),
        ("WORLD_SIZE", "0", "at least 1"),
        ("WORLD_SIZE", "-2", "at least 1"),
        ("LOCAL_RANK", "2", "from 0 to 1"),
        ("LOCAL_WORLD_SIZE", "3", "from 1 to 2"),
        ("LOCAL_WORLD_SIZE", "1", None),
        ("MASTER_PORT", "70000", "from 0 to 65535"),
    ],
)
def test_a_contradictory_environment_is_refused(name: str, value: str, allowed: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        read_place({**_SECOND, name: value})
    if allowed is None:
        assert "LOCAL_RANK is '1'" in caught.value.message
    else:
        assert caught.value.message == (
            f"The environment variable {name} is '{value}', which is not a number {allowed}."
        )
