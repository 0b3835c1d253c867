"""What a sample says about recall: a share, and how far the true one may be from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ONE_SIDED = 1.645
"""Standard deviations below which one estimate in twenty lies."""
TWO_SIDED = 1.960
"""Standard deviations on both sides within which nineteen in twenty lie."""


@dataclass(frozen=True)
class Estimate:
    """Recall of a sample of vectors, each with some neighbours that were looked for."""

    recall: float
    """Share of the neighbours that were found, 0 to 1."""
    looked_for: float
    """Neighbours, as many as are as good as independent: those of one vector come or stay away together."""

    @property
    def bound(self) -> float:
        """The lower bound of the true recall: one estimate in twenty lies above the truth by more."""
        return _wilson(self.recall, self.looked_for, -ONE_SIDED)

    @property
    def low(self) -> float:
        """Lower end of the interval that holds the true recall nineteen times of twenty."""
        return _wilson(self.recall, self.looked_for, -TWO_SIDED)

    @property
    def high(self) -> float:
        """Upper end of that interval."""
        return _wilson(self.recall, self.looked_for, TWO_SIDED)


def estimated(found: Sequence[int], wanted: Sequence[int]) -> Estimate:
    """Return the estimate from how many neighbours each vector found, of how many; at least one is wanted."""
    vectors, total = len(wanted), sum(wanted)
    recall = sum(found) / total
    alone = recall * (1 - recall) / total
    if vectors < 2 or not alone:
        return Estimate(recall, float(total))
    squares = sum((one - recall * of) ** 2 for one, of in zip(found, wanted, strict=True))
    together = squares / total**2 * vectors / (vectors - 1)
    return Estimate(recall, total / max(1.0, together / alone))


def at_least(recall: float, looked_for: float) -> float:
    """Return the lower bound where so many independent neighbours were looked for."""
    return Estimate(recall, looked_for).bound


def _wilson(recall: float, looked_for: float, deviations: float) -> float:
    """Return one end of Wilson's interval: below the share where `deviations` is negative."""
    share = deviations**2 / looked_for
    spread = deviations * math.sqrt(recall * (1 - recall) / looked_for + share / (4 * looked_for))
    return min(1.0, max(0.0, (recall + share / 2 + spread) / (1 + share)))
