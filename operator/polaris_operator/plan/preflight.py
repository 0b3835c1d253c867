"""What a build of a vector index will need, and what would hold it up: asked before its first byte.

Pure: from figures that PostgreSQL's catalogs tell. What SQL alone cannot tell is told by the way in which
a build fails: shared memory in its first moment, before it reads a row, and room on the disk.
"""

from __future__ import annotations

from polaris import names
from polaris.spec import Embedding, PolarisIndexSpec, VectorIndex, VectorType
from polaris.status import Reason
from polaris_operator.steps import Hindrance
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


def hindrances(
    rows: int, spec: PolarisIndexSpec, old_transaction: str | None, *, concurrently: bool
) -> tuple[Hindrance, ...]:
    """Return what will make the build of a vector index slow: it is begun all the same.

    `old_transaction` tells whose it is; only a build beside writers waits for it.
    """
    found = []
    needed, given = graph_bytes(rows, spec.embedding, spec.index), memory_bytes(spec)
    if needed > given:
        message = (
            f"the graph of {rows} rows takes {_mebibytes(needed)} MiB, and build.maintenanceWorkMem is"
            f" {spec.build.maintenance_work_mem}: from the {rows * given // needed}th row on each takes about"
            " three times as long"
        )
        found.append(Hindrance(Reason.MEMORY_TOO_SMALL, message))
    if concurrently and old_transaction is not None:
        message = (
            f"at its end it will wait for {old_transaction}: end that session, if it should not be there"
        )
        found.append(Hindrance(Reason.OLD_TRANSACTION, message))
    return tuple(found)


def _mebibytes(size: int) -> int:
    return -(-size // (1 << 20))


# pgvector's tuples on disk: an element with its vector, and its neighbours, on one page where they fit.
_PAGE_BYTES = 8192
_ROOM_BYTES = 8160
_ELEMENT_HEAD_BYTES = 72
_NEIGHBOURS_HEAD_BYTES = 4
_POINTER_BYTES = 6
_LINE_BYTES = 4


def index_bytes(rows: int, embedding: Embedding, index: VectorIndex) -> int:
    """Return the size of a fresh index of so many rows: within some 5 %, where no two vectors are equal."""
    width = 2 if embedding.type == VectorType.HALFVEC else 4
    element = _aligned(_ELEMENT_HEAD_BYTES + _VECTOR_BYTES + width * embedding.dimension) + _LINE_BYTES
    upper = _POINTER_BYTES * index.m / (index.m - 1)  # Few are in the upper layers.
    neighbours = _aligned(_NEIGHBOURS_HEAD_BYTES + 2 * _POINTER_BYTES * index.m) + _LINE_BYTES + upper
    if element + neighbours <= _ROOM_BYTES:
        return int(rows * _PAGE_BYTES / (_ROOM_BYTES // (element + neighbours)))
    return int(rows * (_PAGE_BYTES + neighbours))


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
