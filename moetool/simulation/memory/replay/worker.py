"""A process that replays runs, one after another. It has no need of torch.

It reads tasks from stdin and answers each on stdout, as `process.answering` describes.
"""

from __future__ import annotations

from moetool.process.answering import answer_tasks
from moetool.simulation.memory.replay.memory_replay import MemoryProfile
from moetool.simulation.memory.replay.second_process import RunReplay


def answer(replay: RunReplay) -> MemoryProfile:
    """Return the profile of a run on a GPU that never runs full."""
    return replay(None)


def main() -> None:
    """Answer every `RunReplay` on stdin with a `MemoryProfile`, or with a `TaskError`."""
    answer_tasks(answer)


if __name__ == "__main__":
    main()
