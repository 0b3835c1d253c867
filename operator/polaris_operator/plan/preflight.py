"""What a build of a vector index will need, and what would hold it up: asked before its first byte.

Pure: from figures that PostgreSQL's catalogs tell. What SQL alone cannot tell (room on the disk, the size
of /dev/shm) is told by the way in which a build fails, see `docs/limits.md`.
"""

from __future__ import annotations

from polaris import names
from polaris.spec import Embedding, PolarisIndexSpec, VectorIndex, VectorType
from polaris_operator.world.index import GenerationRow, IndexWorld

# Measured in pgvector 0.8.6, by the number of tuples at which it says that the graph no longer fits:
# 195 bytes for each element, and 32 for each of its m neighbours, beside its vector.
_ELEMENT_BYTES = 195
_NEIGHBOUR_BYTES = 32
_VECTOR_BYTES = 8


def graph_bytes(rows: int, embedding: Embedding, index: VectorIndex) -> int:
    """Return the memory that the graph of so many rows takes while it is built."""
    width = 2 if embedding.type == VectorType.HALFVEC else 4
    each = _ELEMENT_BYTES + _NEIGHBOUR_BYTES * index.m + _VECTOR_BYTES + width * embedding.dimension
    return rows * each


def memory_bytes(spec: PolarisIndexSpec) -> int:
    """Return `build.maintenanceWorkMem` in bytes."""
    text = spec.build.maintenance_work_mem
    return int(text[:-2]) * (1 << (20 if text.endswith("Mi") else 30))


def fitting(world: IndexWorld, spec: PolarisIndexSpec, generation: GenerationRow) -> float:
    """Return the share of a generation's rows whose graph fits into the build's memory; 1 where all do."""
    relation = world.relations.get(names.chunks_table(generation.number))
    embedding = Embedding.model_validate(generation.embedding)
    needed = graph_bytes(relation.rows if relation else 0, embedding, spec.index)
    return min(1.0, memory_bytes(spec) / needed) if needed else 1.0
