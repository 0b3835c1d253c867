"""The text of an answer while it is written: what may be shown already."""

from __future__ import annotations

from collections.abc import Collection

from polaris_service.answer.citations import held_back, keep_markers
from polaris_service.answer.prompt import NO_ANSWER


class Growing:
    """Takes pieces as they come, gives what is safe to show: whole markers of given passages only.

    What may still become a marker, or the words NO ANSWER, is held back until it is known.
    """

    def __init__(self, given: Collection[int]) -> None:
        self._given = given
        self._held = ""
        self._begun = False
        self._all: list[str] = []

    def add(self, piece: str) -> str:
        """Return what can be shown now."""
        self._all.append(piece)
        self._held += piece
        if not self._begun:
            self._held = self._held.lstrip()
            if NO_ANSWER.startswith(self._held[: len(NO_ANSWER)]):
                return ""  # It may be a refusal, or is one.
            self._begun = True
        cut = held_back(self._held)
        shown, self._held = self._held[:cut], self._held[cut:]
        return keep_markers(shown, self._given)

    def end(self) -> str:
        """Return what was held back."""
        rest = "" if self.refused else keep_markers(self._held, self._given)
        self._held = ""
        return rest.rstrip()

    @property
    def text(self) -> str:
        """All that was generated."""
        return "".join(self._all).strip()

    @property
    def refused(self) -> bool:
        """Whether it says that the passages do not hold the answer, or says nothing at all."""
        return not self.text or self.text.startswith(NO_ANSWER)
