"""The service's own search statement, as bare SQL for the baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polaris.routing import Kind
from polaris.spec import Embedding
from polaris_service.search import statements

QUESTIONS = "public.bench_questions"
"""Table of the vectors that pgbench draws from: a vector sent as text would cost more than the search."""


@dataclass(frozen=True)
class Statement:
    """The text that the service sends for a search that it runs in this way."""

    text: str
    kind: Kind
    ef: int | None
    """Candidates of the graph; None for exact."""

    @classmethod
    def of(cls, row: dict[str, Any], kind: Kind, ef: int | None, k: int) -> Statement:
        """Return it for an index's row of the catalog."""
        embedding = Embedding.model_validate(row["embedding"])
        shape = statements.Shape(
            schema=row["schema_name"],
            generation=row["serving"],
            type=embedding.type,
            dimension=embedding.dimension,
            metric=embedding.metric,
            vector_schema="public",
            kind=kind,
            k=k,
            condition=None,
        )
        return cls(statements.search(shape), kind, ef)

    def drawing(self, number: str) -> str:
        """Return it with question `number` of the table in place of `$1`, and ef in place of `$2`.

        The vector comes in binary from a row of 800 bytes, found by its key.
        """
        question = f"(SELECT vector FROM {QUESTIONS} WHERE number = {number})"
        return self.text.replace("$1", question).replace("$2", f"'{self.ef}'")

    def pgbench(self, questions: int) -> str:
        """Return pgbench's script: a question drawn at random, and the statement."""
        one_line = " ".join(self.drawing(":number").split())
        return f"\\set number random(0, {questions - 1})\n{one_line};\n"
