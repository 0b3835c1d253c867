"""The promise of recall: which `ef_search` is chosen, by what is measured, and when."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_index.place import Place, index_manifest, said_of
from parts import servers
from polaris.spec import Attribute, AttributeType, Embedding
from polaris.status import Reason
from polaris_operator.objects import Key
from polaris_operator.observe.recall import measure
from polaris_operator.plan.estimate import Estimate, at_least, estimated
from polaris_operator.plan.filters import CLASSES, choose_filters
from polaris_operator.plan.recall import LADDER, SAMPLES, Measured, choose, record
from polaris_operator.steps import MeasureRecall
from polaris_operator.world.index import RecallDetails

ROWS = 600
ALL = 10**12
"""So many neighbours were looked for that nothing is left to chance."""
SPARSE: dict[str, Any] = {"index": {"m": 2, "efConstruction": 4}}


# --- which ef_search


def chosen_of(target: float, found: Mapping[int, float], looked_for: int = ALL) -> tuple[int, float]:
    ef_search, estimates = choose(
        target, {"rows": looked_for}, lambda _, ef: Estimate(float(found[ef]), looked_for), 64
    )
    return ef_search, estimates["rows"].recall


@pytest.mark.unit
@given(
    steps=st.lists(st.floats(0, 0.2), min_size=len(LADDER), max_size=len(LADDER)), target=st.floats(0.5, 1)
)
def test_the_smallest_that_keeps_the_promise_is_chosen(steps: list[float], target: float) -> None:
    grows = dict(zip(LADDER, np.minimum(np.cumsum(steps), 1.0), strict=True))

    ef_search, recall = chosen_of(target, grows)

    bound = min(target, at_least(1.0, ALL))
    kept = [ef for ef in LADDER if at_least(grows[ef], ALL) >= bound]
    if kept:
        assert ef_search == kept[0]
    else:
        assert recall == max(grows.values())


@pytest.mark.unit
@given(
    rows=st.lists(st.floats(0, 0.2), min_size=len(LADDER), max_size=len(LADDER)),
    asked=st.lists(st.floats(0, 0.2), min_size=len(LADDER), max_size=len(LADDER)),
)
def test_the_promise_is_kept_however_is_asked(rows: list[float], asked: list[float]) -> None:
    grow = {
        way: dict(zip(LADDER, np.minimum(0.5 + np.cumsum(steps), 1.0), strict=True))
        for way, steps in (("rows", rows), ("questions", asked))
    }

    ef_search, found = choose(
        0.9, {"rows": ALL, "questions": ALL}, lambda way, ef: Estimate(float(grow[way][ef]), ALL), 64
    )

    for way, grows in grow.items():
        assert found[way].recall == grows[ef_search]
    kept = [ef for ef in LADDER if all(at_least(grows[ef], ALL) >= 0.9 for grows in grow.values())]
    if kept:
        assert ef_search == kept[0]


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
        chosen_of(0.98, {ef: random.binomial(1000, true[ef]) / 1000 for ef in LADDER}, 1000)[0]
        for _ in range(500)
    ]
    assert np.mean([true[ef] >= 0.98 for ef in chosen]) >= 0.95


@pytest.mark.unit
def test_a_sample_too_small_for_any_proof_is_content_with_all_of_it() -> None:
    assert chosen_of(0.98, {ef: 1.0 if ef >= 96 else 0.9 for ef in LADDER}, 10) == (96, 1.0)


@pytest.mark.unit
def test_four_measurements_are_enough_and_one_more_for_each_other_way_to_ask() -> None:
    asked: list[tuple[str, int]] = []

    def measured(way: str, ef_search: int) -> Estimate:
        asked.append((way, ef_search))
        return Estimate(0.9 if ef_search < 100 else 1.0, ALL)

    choose(0.98, {"rows": ALL, "questions": ALL, "half": ALL}, measured, 64)

    assert len(asked) <= 4 + 2
    assert len(set(asked)) == len(asked)


@pytest.mark.unit
def test_without_time_for_a_measurement_nothing_changes() -> None:
    assert choose(0.98, {"rows": ALL}, lambda *_: None, 77) == (77, {})


@pytest.mark.unit
def test_what_was_not_measured_is_written_down_as_unknown() -> None:
    assert "recall = NULL" in record(7, 1, Measured(64, 5, RecallDetails(1.0, 0, 0, ())))


# --- how sure that is


@pytest.mark.unit
def test_the_interval_holds_the_truth_nineteen_times_of_twenty_though_neighbours_come_together() -> None:
    """Of each vector nearly all neighbours are found, or hardly any: what the graph does not reach."""
    random = np.random.default_rng(11)
    held = []
    for _ in range(400):
        reached = random.random(200) < 0.95
        found = [int(random.binomial(10, 0.995 if one else 0.3)) for one in reached]
        estimate = estimated(found, [10] * 200)
        held.append(estimate.low <= 0.95 * 0.995 + 0.05 * 0.3 <= estimate.high)
    assert np.mean(held) >= 0.92


@pytest.mark.unit
@given(st.lists(st.integers(0, 10), min_size=1, max_size=50))
def test_an_estimate_lies_within_its_interval(found: list[int]) -> None:
    estimate = estimated(found, [10] * len(found))
    assert 0 <= estimate.low <= estimate.recall + 1e-9
    assert estimate.recall - 1e-9 <= estimate.high <= 1


# --- with which filters

DECLARED = (
    Attribute(name="lang", type=AttributeType.KEYWORD),
    Attribute(name="year", type=AttributeType.INTEGER),
    Attribute(name="public", type=AttributeType.BOOLEAN),
)


@pytest.mark.unit
def test_each_class_gets_a_filter_that_leaves_so_many_of_the_rows() -> None:
    sample: list[dict[str, Any]] = [
        {"lang": "pt" if n % 2 else "en", "year": n % 10, "public": n % 100 == 0} for n in range(1000)
    ]

    chosen = choose_filters(DECLARED, sample)

    assert set(chosen) == set(CLASSES)
    for name, (low, high) in CLASSES.items():
        assert low < chosen[name].share <= high
    assert "true" in chosen["hundredth"].sql


@pytest.mark.unit
def test_values_of_another_type_than_the_declared_one_make_no_filter() -> None:
    sample: list[dict[str, Any]] = [{"lang": 7, "year": "2020", "public": "yes"}] * 100
    assert choose_filters(DECLARED, sample) == {}


@pytest.mark.unit
def test_a_value_never_gets_out_of_its_quotes() -> None:
    (chosen,) = choose_filters(DECLARED, [{"lang": "a'); DROP TABLE x; --"}, {}]).values()
    assert "'a''); DROP TABLE x; --'" in chosen.sql


# --- measured on a live index


def action(place: Place, key: Key, target: int = 98, attributes: tuple[Attribute, ...] = ()) -> MeasureRecall:
    number = place.one("SELECT id FROM polaris.indexes WHERE name = %s", key.name)
    embedding = Embedding.model_validate(index_manifest()["spec"]["embedding"])
    return MeasureRecall(number, 1, place.schema(key), embedding, attributes, target, 64)


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
    measured = measure(here.doors.postgres, action(here, key, target=1))

    assert measured.ef_search == LADDER[0]
    assert measured.recall is not None
    assert measured.rows == ROWS
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

    measured = measure(here.doors.postgres, action(here, key))

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


def with_attributes(place: Place, key: Key) -> None:
    """Give a third of the rows another language, and some a third one."""
    schema = place.schema(key)
    place.sql(
        f"""UPDATE {schema}.g1_chunks SET attributes = jsonb_build_object('lang',
          CASE WHEN document_id % 20 = 0 THEN 'fr' WHEN document_id % 3 = 0 THEN 'en' ELSE 'pt' END);"""
        f"ANALYZE {schema}.g1_chunks"
    )


def ask(place: Place, key: Key, questions: int, *, slot: int = 0) -> None:
    """Be a service that kept vectors of questions, which lie elsewhere than the rows."""
    place.sql(
        "INSERT INTO polaris.query_vectors SELECT i.id, 1, g, (SELECT array_agg(-random() - 0 * (g + n))"
        f" FROM generate_series(1, 8) n)::real[] FROM polaris.indexes i, generate_series({slot},"
        f" {slot + questions - 1}) g WHERE i.name = %s",
        key.name,
    )


@pytest.mark.postgres
def test_recall_is_said_with_its_interval_and_by_what_was_asked(here: Place) -> None:
    key = here.ready(index={"m": 4, "efConstruction": 8})
    here.fill(key, ROWS)
    ask(here, key, 30)

    status = here.go(key)

    classes = {one["of"]: one for one in status["verification"]["classes"]}
    assert set(classes) == {"rows", "questions"}
    assert classes["questions"]["vectors"] == 30
    for one in classes.values():
        low, recall, high = (float(one[f"{end}Percent"]) for end in ("low", "recall", "high"))
        assert low <= recall <= high <= 100
        assert f"({one['lowPercent']} to {one['highPercent']})" in said_of(status, "RecallMet")["message"]
    assert "by what was asked" in said_of(status, "RecallMet")["message"]


@pytest.mark.postgres
def test_with_a_filter_recall_is_that_of_what_the_service_finds(here: Place) -> None:
    """So many rows that the graph is used with a filter that leaves a third of them, and none for few."""
    key = here.ready(attributes=[{"name": "lang", "type": "keyword"}])
    here.fill(key, 30_000)
    with_attributes(here, key)
    declared = (Attribute(name="lang", type=AttributeType.KEYWORD),)

    measured = measure(here.doors.postgres, action(here, key, 90, declared))

    rows, filtered = measured.details.classes
    assert (rows.of, filtered.of) == ("rows", "half")
    assert filtered.attribute == "lang"
    assert filtered.share == pytest.approx(0.95 / 3, abs=0.06)
    assert filtered.recall >= 0.9


@pytest.mark.postgres
def test_rows_that_were_all_replaced_are_measured_again_though_they_are_as_many(here: Place) -> None:
    key = here.ready()
    here.fill(key, ROWS)
    here.go(key)
    before = here.one("SELECT recall_at FROM polaris.generations")
    here.sql("UPDATE polaris.generations SET recall_at = recall_at - interval '1 minute'")

    here.sql(f"UPDATE {here.schema(key)}.g1_chunks SET embedding = '[1,2,3,4,5,6,7,8]'::halfvec")
    here.go(key)

    assert here.one("SELECT recall_at FROM polaris.generations") > before


@pytest.mark.postgres
def test_a_pass_does_not_wait_for_a_measurement(here: Place) -> None:
    """Somebody holds up its writing down; an edit is made true all the same, and none begins twice."""
    key = here.ready()
    here.fill(key, ROWS)
    with closing(servers.connect(here.database.dsn)) as somebody, somebody.cursor() as cursor:
        cursor.execute("BEGIN; SELECT FROM polaris.generations FOR UPDATE")
        here.reconciler.reconcile(key)
        here.put(index_manifest(drift="Report"))
        here.objects.look()
        here.reconciler.reconcile(key)
        _, _, facts = here.look(key)
        assert here.databases.measuring()
        assert facts.index.measuring == {1}
        assert here.resource(key).status["observedGeneration"] == 2
        assert here.decide(key).aside == ()
    here.go(key)
    assert here.one("SELECT recall FROM polaris.generations") is not None
