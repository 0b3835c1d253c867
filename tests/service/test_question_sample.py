"""What is kept of questions: vectors of some, and nothing else."""

from __future__ import annotations

import pytest

from polaris.catalog import QUERY_VECTORS
from polaris_service.search.sample import Sample
from service.made import Index, Made, spec
from service.rig import Rig, until

pytestmark = [pytest.mark.postgres, pytest.mark.anyio]


def kept(made: Made, index: Index) -> int:
    count: int = made.value("SELECT count(*) FROM polaris.query_vectors WHERE index_id = %s", index.number)
    return count


async def ask(rig: Rig, index: Index, questions: int, word: str = "pergunta") -> None:
    for number in range(questions):
        await rig.search(index, f"{word} {number}")


def sample(rig: Rig) -> Sample:
    assert rig.parts.sample is not None
    return rig.parts.sample


async def test_some_of_the_questions_are_kept_as_vectors_that_can_be_compared(rig: Rig, index: Index) -> None:
    await ask(rig, index, 20)

    await sample(rig).flush()

    assert kept(rig.made, index) == 8
    (found,) = rig.made.run(
        "SELECT DISTINCT cardinality(vector), CAST(embedding ->> 'dimension' AS integer)"
        " FROM polaris.query_vectors v JOIN polaris.generations g USING (index_id)"
        " WHERE g.index_id = %s",
        index.number,
    )
    assert found[0] == found[1]


async def test_the_sample_is_bounded_however_many_ask(rig: Rig, index: Index) -> None:
    for turn in range(40):
        await ask(rig, index, 10, f"turno {turn}")
        await sample(rig).flush()

    assert 50 < kept(rig.made, index) <= QUERY_VECTORS


async def test_a_vector_that_a_caller_brings_is_not_kept(rig: Rig, index: Index) -> None:
    """What its text was nobody knows, and it may be one of his own documents."""
    dimension = spec().embedding.dimension
    response = await rig.http.post(f"{index.path}/search", json={"vector": [1.0] * dimension})
    assert response.status_code == 200

    await sample(rig).flush()

    assert kept(rig.made, index) == 0


async def test_questions_of_a_generation_that_is_gone_go_with_it(rig: Rig, index: Index) -> None:
    await ask(rig, index, 4)
    await sample(rig).flush()
    await ask(rig, index, 4)

    rig.made.run("DELETE FROM polaris.generations WHERE index_id = %s", index.number)
    await sample(rig).flush()

    assert kept(rig.made, index) == 0


async def test_they_are_written_down_now_and_then(made: Made, index: Index) -> None:
    async with Rig(made) as rig:
        sample(rig)._every_seconds = 0.05
        await sample(rig).stop()
        await sample(rig).start()
        await ask(rig, index, 4)
        await until(lambda: kept(made, index) > 0)


async def test_none_is_kept_where_the_settings_say_so(made: Made, index: Index) -> None:
    async with Rig(made, sample_questions="false") as rig:
        await ask(rig, index, 4)
        assert rig.parts.sample is None


async def test_workers_do_not_see_the_sample(made: Made) -> None:
    may = made.run(
        "SELECT grantee::text, privilege_type FROM information_schema.role_table_grants"
        " WHERE table_schema = 'polaris' AND table_name = 'query_vectors' AND grantee LIKE '%%worker%%'"
    )
    assert may == []
