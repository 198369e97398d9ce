"""Keep the results of several models when one of them fails."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import typer

from moetool.checkpoint.reference import ModelReference, resolve_model
from moetool.cli.errors import say_error
from moetool.errors import MoetoolError
from moetool.report.renderer import Failure

_Result = TypeVar("_Result")


class Failures:
    """The models of one command that failed.

    Where a single model was asked for, its error is raised as usual. Only errors that the user can
    act on are kept: bugs and interrupts end the command.

    Args:
        models: The models that were asked for.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self._models = models
        self._error_of: dict[str, MoetoolError] = {}

    def resolve(self) -> dict[str, ModelReference]:
        """Return what each model stands for, by its name as given, without those that fail.

        If all do, they are reported, and the command ends.
        """
        references = {}
        for model in self._models:
            with self.keep(model):
                references[model] = resolve_model(model)
        self.check(references)
        return references

    @contextmanager
    def keep(self, model: str) -> Iterator[None]:
        """Keep an error of the block, which is about this model."""
        try:
            yield
        except MoetoolError as error:
            if len(self._models) == 1:
                raise
            self._error_of[model] = error

    def collect(
        self, results: Iterable[tuple[str, Callable[[], Iterable[_Result]]]]
    ) -> list[_Result]:
        """Return the results of all models that have some, and end the command if none has.

        Args:
            results: For each model, what returns its results or fails.
        """
        collected: list[_Result] = []
        for model, take in results:
            with self.keep(model):
                collected += take()
        self.check(collected)
        return collected

    def check(self, results: Collection[object]) -> None:
        """Report the failures and end the command if there are no results at all."""
        if not results:
            self.finish()

    def list_failures(self) -> tuple[Failure, ...] | None:
        """Return the failures for a report; None where a single model was asked for."""
        if len(self._models) == 1:
            return None
        return tuple(
            Failure(model, error.message, error.hint) for model, error in self._sort().items()
        )

    def finish(self) -> None:
        """Report the failures, and end the command with the exit code of the first."""
        errors = list(self._sort().values())
        if not errors:
            return
        # Results come before errors, also where both go to one terminal.
        sys.stdout.flush()
        # An option that no model can have fails in the same words for each.
        first: dict[tuple[str, str], MoetoolError] = {}
        for error in errors:
            first.setdefault((error.message, error.hint), error)
        for error in first.values():
            say_error(error)
        raise typer.Exit(errors[0].exit_code)

    def _sort(self) -> dict[str, MoetoolError]:
        """Return the errors in the order in which the models were asked for."""
        return {model: self._error_of[model] for model in self._models if model in self._error_of}
