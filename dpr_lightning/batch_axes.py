"""Batches that declare the axes of their fields, so that rows are selected in all of them at once."""

from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import (
    Annotated,
    Any,
    NamedTuple,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

from torch import Tensor


class Axes(Enum):
    """The axes of a field: rows alone, rows and tokens (prompt included), or rows and actions."""

    ROWS = "B"
    TOKENS = "B L"
    ACTIONS = "B T"


RowTensor = Annotated[Tensor, Axes.ROWS]
TokenTensor = Annotated[Tensor, Axes.TOKENS]
ActionTensor = Annotated[Tensor, Axes.ACTIONS]
Batch = TypeVar("Batch", bound=NamedTuple)


@runtime_checkable
class SelectsRows(Protocol):
    """A field that is no tensor, and selects rows itself."""

    def take(self, rows: Tensor, actions: int) -> Any:
        """The same of ``rows`` [n], cut to ``actions`` columns."""
        ...


@cache
def axes_of(kind: type[NamedTuple]) -> Mapping[str, Axes]:
    """The axes that the fields of a batch declare, by name; fields without any belong to the batch as a whole."""
    declared: dict[str, Axes] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        axes = [extra for extra in get_args(hint)[1:] if isinstance(extra, Axes)]
        if get_origin(hint) is Annotated and axes:
            declared[name] = axes[0]
    return declared


def row_tensors(batch: NamedTuple) -> dict[str, Tensor]:
    """The tensors of a batch that have a row axis, by name; optional fields that are None are left out."""
    fields = batch._asdict()
    return {name: fields[name] for name in axes_of(type(batch)) if isinstance(fields[name], Tensor)}


def select_rows(batch: Batch, rows: Tensor, tokens: int, actions: int) -> Batch:
    """The same of ``rows`` [n], cut to ``tokens`` and ``actions`` columns; fields without a row axis stay.

    Raises:
        TypeError: a field declares a row axis and can select no rows.
    """
    fields, selected = batch._asdict(), {}
    for name, axes in axes_of(type(batch)).items():
        value = fields[name]
        if isinstance(value, Tensor):
            part = value[rows]
            selected[name] = part if axes is Axes.ROWS else part[:, : tokens if axes is Axes.TOKENS else actions]
        elif isinstance(value, SelectsRows):
            selected[name] = value.take(rows, actions)
        elif value is not None:
            raise TypeError(f"{name}: {type(value).__name__} has no method `take` to select rows.")
    return batch._replace(**selected)
