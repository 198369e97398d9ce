"""The parameter table: the parameters of each component and layer, and those that a token runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from moetool.anatomy.components import TOWERS, Component, Place


class ActiveDefinition(StrEnum):
    """A definition of active parameters. Vendors use all three.

    Attributes:
        ALL: All parameters that a text token runs, with the whole embedding and head.
        WITHOUT_INPUT_EMBEDDING: Without the input embedding, of which a token reads one row. A tied
            embedding is the head too, so it counts.
        WITHOUT_EMBEDDING_AND_HEAD: Without the embedding and the head, tied or not.
    """

    ALL = "all"
    WITHOUT_INPUT_EMBEDDING = "without_input_embedding"
    WITHOUT_EMBEDDING_AND_HEAD = "without_embedding_and_head"


@dataclass(frozen=True)
class ActiveRange:
    """The numbers of parameters that text tokens run.

    Attributes:
        fewest: The fewest that a token runs.
        most: The most that a token runs.
    """

    fewest: int
    most: int

    @property
    def exact(self) -> int | None:
        """The number, if it is the same for every token; else None."""
        return self.most if self.fewest == self.most else None


@dataclass(frozen=True)
class ParameterRow:
    """One component of one layer.

    Attributes:
        stack: `decoder` in ordinary models; `encoder` and `decoder` where there are two; `vision`,
            `audio`, … for towers.
        layer: The model's own layer index; None outside layers.
        component: The component that the parameters belong to.
        num_params: Number of parameters. Those shared with an earlier row are counted there.
        active: Parameters that a text token runs; None if unknown.
        dtype: Dtype of the parameters, several joined by ` + `; None if unknown.
        num_bytes: Bytes at that dtype; None if unknown.
    """

    stack: str
    layer: int | None
    component: Component
    num_params: int
    active: ActiveRange | None
    dtype: str | None
    num_bytes: int | None


@dataclass(frozen=True)
class ParameterTable:
    """All parameters of a model, each in one row.

    Attributes:
        rows: In the model's own order.
        is_tied: Whether the embedding is the head too; None if unknown.
    """

    rows: tuple[ParameterRow, ...]
    is_tied: bool | None

    @property
    def total(self) -> int:
        """Number of parameters."""
        return sum(row.num_params for row in self.rows)

    @property
    def num_bytes(self) -> int | None:
        """Bytes of all parameters; None if those of any row are unknown."""
        return _sum_known(row.num_bytes for row in self.rows)

    def count_components(self) -> dict[Component, int]:
        """Return the number of parameters of every component, 0 for absent ones."""
        return {
            component: sum(row.num_params for row in self.rows if row.component is component)
            for component in Component
        }

    def count_active(self, definition: ActiveDefinition) -> ActiveRange | None:
        """Return how many parameters a text token runs; None if that is unknown for any row."""
        left_out = {
            ActiveDefinition.ALL: (),
            ActiveDefinition.WITHOUT_INPUT_EMBEDDING: (
                () if self.is_tied else (Component.EMBEDDING,)
            ),
            ActiveDefinition.WITHOUT_EMBEDDING_AND_HEAD: (Component.EMBEDDING, Component.LM_HEAD),
        }[definition]
        return self._sum_active(lambda row: row.component not in left_out)

    def count_active_of(self, component: Component) -> ActiveRange | None:
        """Return how many parameters of one component a text token runs; None if unknown."""
        return self._sum_active(lambda row: row.component is component)

    def _sum_active(self, is_counted: Callable[[ParameterRow], bool]) -> ActiveRange | None:
        ranges = [row.active for row in self.rows if is_counted(row)]
        fewest = _sum_known(active.fewest if active else None for active in ranges)
        most = _sum_known(active.most if active else None for active in ranges)
        return None if fewest is None or most is None else ActiveRange(fewest, most)


@dataclass
class PlaceSums:
    """Sums over the tensors of a place in files, which become one row.

    Attributes:
        num_params: All parameters.
        num_common: Parameters that all experts of a layer share.
        num_unclear: Parameters in matrices whose names no rule matches, which a token may run or
            not.
        num_bytes: Bytes in the files.
        dtypes: Dtypes of the tensors, in order.
    """

    num_params: int = 0
    num_common: int = 0
    num_unclear: int = 0
    num_bytes: int = 0
    dtypes: dict[str, None] = field(default_factory=dict)


def make_rows(
    sums: Mapping[Place, PlaceSums],
    *,
    num_experts: Mapping[tuple[str, int], int | None],
    top_k: int | None,
    knows_active: bool,
) -> tuple[ParameterRow, ...]:
    """Return the rows of a table that is counted by files.

    Args:
        sums: By place.
        num_experts: By stack and layer.
        top_k: Experts that a token chooses.
        knows_active: Whether the experts of every place that holds some are known, and top-k.
    """
    return tuple(
        ParameterRow(
            stack=place.stack,
            layer=place.layer,
            component=place.component,
            num_params=each.num_params,
            active=_count_active(place, each, num_experts=num_experts, top_k=top_k)
            if knows_active
            else None,
            dtype=" + ".join(each.dtypes),
            num_bytes=each.num_bytes,
        )
        for place, each in sums.items()
    )


def _count_active(
    place: Place,
    sums: PlaceSums,
    *,
    num_experts: Mapping[tuple[str, int], int | None],
    top_k: int | None,
) -> ActiveRange:
    """Return how many of the parameters at a place in files a text token runs."""
    if place.component in TOWERS:
        return ActiveRange(0, 0)
    num_active = sums.num_params
    if place.component is Component.ROUTED_EXPERTS and place.layer is not None:
        experts = num_experts[place.stack, place.layer]
        assert experts is not None
        assert top_k is not None
        num_active = (sums.num_params - sums.num_common) // experts * top_k + sums.num_common
    return ActiveRange(num_active - sums.num_unclear, num_active)


def _sum_known(numbers: Iterable[int | None]) -> int | None:
    known = list(numbers)
    return None if None in known else sum(number for number in known if number is not None)
