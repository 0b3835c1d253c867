from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_index.place import Place, index_manifest, said_of
from polaris.layout import DISTANCE_OPERATOR
from polaris.spec import Metric
from polaris.status import Reason
from polaris_operator.objects import Key
from polaris_operator.observe.recall import measure
from polaris_operator.plan.recall import LADDER, SAMPLES, Measured, at_least, choose, record
from polaris_operator.steps import MeasureRecall

ROWS = 600
ALL = 10**12
"""So many neighbours were looked for that nothing is left to chance."""
SPARSE: dict[str, Any] = {"index": {"m": 2, "efConstruction": 4}}


# --- which ef_search


@pytest.mark.unit
@given(
    steps=st.lists(st.floats(0, 0.2), min_size=len(LADDER), max_size=len(LADDER)), target=st.floats(0.5, 1)
)
def test_the_smallest_that_keeps_the_promise_is_chosen(steps: list[float], target: float) -> None:
    grows = dict(zip(LADDER, np.minimum(np.cumsum(steps), 1.0), strict=True))

    chosen = choose(target, lambda ef: float(grows[ef]), 64, ALL)

    bound = min(target, at_least(1.0, ALL))
    kept = [ef for ef in LADDER if at_least(grows[ef], ALL) >= bound]
    if kept:
        assert chosen.ef_search == kept[0]
    else:
        assert chosen.recall == max(grows.values())


@pytest.mark.unit
@given(found=st.integers(0, 1000), vectors=st.sampled_from(SAMPLES))
def test_the_true_recall_is_taken_to_be_lower_than_what_was_measured(found: int, vectors: int) -> None:
    recall = found / 1000
    assert 0 <= at_least(recall, 10 * vectors) <= recall + 1e-12
    assert at_least(recall, 10 * vectors) <= at_least(recall, 100 * vectors)


@pytest.mark.unit
def test_what_is_promised_is_found_by_nineteen_of_twenty_indexes_though_each_is_measured_on_a_sample() -> (
    None
):
    """Each rung finds a neighbour with its own chance; a sample of them is what is measured."""
    true = {ef: 1 - 0.9 / ef for ef in LADDER}
    random = np.random.default_rng(7)
    chosen = [
        choose(0.98, lambda ef: random.binomial(1000, true[ef]) / 1000, 64, 1000).ef_search
        for _ in range(500)
    ]
    assert np.mean([true[ef] >= 0.98 for ef in chosen]) >= 0.95


@pytest.mark.unit
def test_a_sample_too_small_for_any_proof_is_content_with_all_of_it() -> None:
    chosen = choose(0.98, lambda ef: 1.0 if ef >= 96 else 0.9, 64, 10)
    assert chosen == Measured(96, 1.0)


@pytest.mark.unit
def test_four_measurements_are_enough() -> None:
    asked: list[int] = []

    def measured(ef_search: int) -> float:
        asked.append(ef_search)
        return 0.9

    choose(0.98, measured, 64, ALL)

    assert len(asked) <= 4


@pytest.mark.unit
def test_without_time_for_a_measurement_nothing_changes() -> None:
    assert choose(0.98, lambda _: None, 77, ALL) == Measured(77, None)


@pytest.mark.unit
def test_what_was_not_measured_is_written_down_as_unknown() -> None:
    assert "recall = NULL" in record(7, 1, Measured(64, None), 5)


# --- measured on a live index


def action(place: Place, key: Key, target: int = 98) -> MeasureRecall:
    number = place.one("SELECT id FROM polaris.indexes WHERE name = %s", key.name)
    return MeasureRecall(number, 1, place.schema(key), DISTANCE_OPERATOR[Metric.COSINE], target, 64)


@pytest.mark.postgres
def test_recall_is_measured_and_said_and_kept(any_here: Place) -> None:
    place = any_here
    key = place.ready()
    place.fill(key, ROWS)

    status = place.go(key)

    assert float(status["verification"]["recallPercent"]) >= 98
    ef_search, recall, rows = place.sql("SELECT ef_search, recall, recall_rows FROM polaris.generations")[0]
    assert ef_search in LADDER
    assert recall >= 0.98
    assert rows == ROWS
    assert said_of(status, "RecallMet")["reason"] == Reason.MEASURED
    version = place.resource(key).resource_version
    place.go(key)
    assert place.resource(key).resource_version == version


@pytest.mark.postgres
def test_what_is_measured_is_what_the_index_finds(here: Place) -> None:
    """Against recall that is computed here, from all vectors, without a line of SQL in common."""
    key = here.ready(**SPARSE)
    here.fill(key, ROWS)
    schema = here.schema(key)
    found = here.sql(f"SELECT document_id, embedding::text FROM {schema}.g1_chunks ORDER BY 1")
    ids = [row[0] for row in found]
    vectors = np.array([[float(x) for x in row[1].strip("[]").split(",")] for row in found])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    hits = 0
    asked = ids[:: len(ids) // 150]
    for one in asked:
        near = [
            row[0]
            for row in here.sql(
                "SET hnsw.ef_search = 16; SET enable_seqscan = off;"
                f"SELECT document_id FROM {schema}.g1_chunks ORDER BY embedding <=>"
                f" (SELECT embedding FROM {schema}.g1_chunks WHERE document_id = {one}) LIMIT 11"
            )
        ]
        order = np.argsort(-(vectors @ vectors[ids.index(one)]), kind="stable")
        exact = {ids[place] for place in order[:11]} - {one}
        hits += len(exact & set(near))
    true = hits / (10 * len(asked))

    # A target that the lowest rung keeps, so that it is the lowest rung which is measured.
    measured, rows = measure(here.doors.postgres, action(here, key, target=1))

    assert measured.ef_search == LADDER[0]
    assert measured.recall is not None
    assert rows == ROWS
    # The two samples differ: see SAMPLES; three standard deviations of the smaller one.
    assert abs(measured.recall - true) < 3 * (true * (1 - true) / 50) ** 0.5 + 0.02


@pytest.mark.postgres
def test_a_promise_that_cannot_be_kept_is_said_not_to_be(here: Place) -> None:
    # Two links a node: parts of the graph are out of reach, whatever ef_search.
    key = here.ready(**SPARSE, search={"targetRecallPercent": 100})
    here.fill(key, ROWS)

    status = here.go(key)

    assert said_of(status, "RecallMet")["status"] == "False"
    assert said_of(status, "RecallMet")["reason"] == Reason.BELOW_TARGET
    assert "promised: 100%" in said_of(status, "RecallMet")["message"]
    assert said_of(status, "Ready")["status"] == "True"


@pytest.mark.postgres
def test_equal_texts_do_no_harm(here: Place) -> None:
    key = here.ready()
    here.fill(key, ROWS)
    schema = here.schema(key)
    here.sql(
        f"UPDATE {schema}.g1_chunks SET embedding = '[1,0,0,0,0,0,0,0]'::halfvec WHERE document_id > 100"
    )

    measured, _ = measure(here.doors.postgres, action(here, key))

    assert measured.recall is not None


@pytest.mark.postgres
def test_another_promise_is_kept_by_another_ef_search(here: Place) -> None:
    key = here.ready(index={"m": 4, "efConstruction": 8}, search={"targetRecallPercent": 99})
    here.fill(key, ROWS)
    here.go(key)
    high = here.one("SELECT ef_search FROM polaris.generations")

    here.put(index_manifest(index={"m": 4, "efConstruction": 8}, search={"targetRecallPercent": 50}))
    here.go(key)

    assert here.one("SELECT ef_search FROM polaris.generations") < high


@pytest.mark.postgres
def test_the_canary_tells_whether_the_planner_uses_the_index(here: Place) -> None:
    key = here.ready()
    here.fill(key, ROWS)
    used = here.go(key)["verification"]["indexUsed"]
    here.put(index_manifest(index={"type": "exact"}))

    exact = here.go(key)

    assert used
    assert not exact["verification"]["indexUsed"]
    assert said_of(exact, "RecallMet")["status"] == "True"
