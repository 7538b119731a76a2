"""A gradient that is not finite: the optimizer step is left out, and the rows it was made of are written down."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from dpr_lightning.errors import InputError

log = logging.getLogger(__name__)
NonFinitePolicy = Literal["stop", "skip"]
GIVE_UP_AFTER = 10
"""Steps left out in a row after which the weights themselves must be broken."""


class _Rows(NamedTuple):
    """Rows of a micro-batch, [B], and for each quantity which of them hold one that is not finite, [B] bool."""

    rows: Tensor
    broken: dict[str, Tensor]


class NonFiniteSteps:
    """Watches the rows of an optimizer step; reports them when its gradient is not finite.

    Args:
        policy: ``stop`` ends the run with the weights of the step before; ``skip`` leaves the step out, counts it and
            goes on, but not for more than ten steps in a row.

    Attributes:
        skipped: steps left out so far.
    """

    def __init__(self, policy: NonFinitePolicy) -> None:
        if policy not in ("stop", "skip"):
            raise InputError(f"`non_finite` is `stop` or `skip`; found {policy!r}.")
        self.policy = policy
        self.skipped = 0
        self._in_a_row = 0
        self._watched: list[_Rows] = []

    def watch(self, rows: Tensor, values: Mapping[str, Tensor], mask: Tensor) -> None:
        """Note which rows of a micro-batch hold numbers that are not finite. Waits for no device.

        Args:
            rows: [B], what the data calls them.
            values: [B, T] each, by name.
            mask: [B, T], where they count.
        """
        broken = {name: (~value.detach().isfinite() & mask).any(1) for name, value in values.items()}
        self._watched.append(_Rows(rows, broken))

    def end_step(self, finite: bool) -> None:
        """Forget the rows of a step that is over; of one that is to be left out only after :meth:`report`."""
        self._watched.clear()
        if finite:
            self._in_a_row = 0

    def report(self, file: Path, step: int, norm: float, where: Callable[[int], str]) -> None:
        """Write the rows of a step that was left out to ``file``, those with broken numbers first.

        Args:
            file: takes a line of JSON.
            step: optimizer steps taken before.
            norm: of the gradient.
            where: from a row to its ``file:number``.

        Raises:
            InputError: the policy is to stop, or too many steps in a row were left out.
        """
        rows: list[dict[str, Any]] = []
        for micro_batch in self._watched:
            flags = {name: value.tolist() for name, value in micro_batch.broken.items()}
            for index, row in enumerate(micro_batch.rows.tolist()):
                broken = [name for name, value in flags.items() if value[index]]
                rows.append({"row": where(row), "not_finite": broken})
        rows.sort(key=lambda row: not row["not_finite"])
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": step, "gradient_norm": str(norm), "rows": rows}, ensure_ascii=False) + "\n")
        self.skipped += 1
        self._in_a_row += 1
        message = f"After step {step} the gradient's norm is {norm}. {_of(rows)} The step's rows are in {file}."
        if self.policy == "stop":
            raise InputError(
                f"{message} The weights are those of step {step}. Likely causes: a learning rate that is too high, "
                "half precision, damaged rows. `non_finite: skip` leaves such steps out and counts them."
            )
        if self._in_a_row >= GIVE_UP_AFTER:
            raise InputError(
                f"{message} So it was {self._in_a_row} steps in a row: the weights or the frozen models are broken. Go "
                "back to an earlier checkpoint, with a lower learning rate."
            )
        log.warning("%s The step is left out, the %dth.", message, self.skipped)


def _of(rows: list[dict[str, Any]]) -> str:
    broken = [row for row in rows if row["not_finite"]]
    if not rows:
        return "Which rows they come from is not known here."
    if not broken:
        return f"All {len(rows)} rows of this rank have finite losses: it broke on the way back."
    first, names = broken[0]["row"], ", ".join(broken[0]["not_finite"])
    return f"{len(broken)} of {len(rows)} rows of this rank hold such numbers, the first {first} ({names})."
