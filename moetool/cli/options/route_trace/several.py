"""Options of `moetool route-trace` that several processes can't have."""

from __future__ import annotations

from collections.abc import Mapping

from moetool.errors import UsageError


def check_copies(arguments: Mapping[str, object], *, number: str, has_file: bool) -> None:
    """Check the options of processes that share prompts, each with a copy of the model.

    Args:
        arguments: The command's, by the names of its parameters.
        number: How many processes there are, in words.
        has_file: Whether the rows go to a file.

    Raises:
        UsageError: An option is for one process alone.
    """
    if arguments["device_map"] is not None:
        raise UsageError(
            f"With a device map, each of {number} would spread the model over all GPUs.",
            hint="Leave out --device-map, or start one process.",
        )
    if arguments["device"] not in (None, "cpu"):
        raise UsageError(
            f"--device {arguments['device']} names one device, and each of {number} takes another.",
            hint="Leave out --device, and choose GPUs with CUDA_VISIBLE_DEVICES.",
        )
    if not has_file:
        raise UsageError(
            f"The rows of {number} can only go to a file.", hint="Add -o trace.parquet."
        )
