"""What Argo CD and Flux make of our objects, computed as they do, at the moments that there are."""

from __future__ import annotations

from typing import Any

import pytest

from gitops.judges import argo_cd, flux
from operator_index.worlds import (
    NOW,
    embedding,
    live,
    made,
    nothing,
    resource,
    spec,
    vector_name,
    with_generation,
    without,
)
from pipeline.build import kstatus
from polaris.spec import PolarisIndexSpec
from polaris_operator.conditions.index import index_status
from polaris_operator.conditions.shared import plain
from polaris_operator.plan.index import plan_index
from polaris_operator.world.index import IndexAndLogins, IndexWorld

SPEC = spec()
VECTOR = vector_name(SPEC)
BUILDING = with_generation(without(made(SPEC, rows=5, **live(VECTOR)), indexes=(VECTOR,)), vector_index=None)
BROKEN = without(made(SPEC), relations=("chunks",))

# At each moment: the world, the spec, what Flux and Argo CD say, and whether it is well for Serving.
MOMENTS: dict[str, tuple[IndexWorld, PolarisIndexSpec, str, str, bool]] = {
    "as it should be": (made(SPEC), SPEC, "Current", "Healthy", True),
    "nothing there yet": (nothing(), SPEC, "InProgress", "Progressing", False),
    "nobody embeds with the model": (nothing(models=frozenset()), SPEC, "Failed", "Degraded", False),
    "the database is not ready": (nothing(roles={}), SPEC, "InProgress", "Progressing", False),
    "an index is being built": (BUILDING, SPEC, "InProgress", "Progressing", True),
    "a view is being repaired": (BROKEN, SPEC, "InProgress", "Progressing", True),
    "drift that is reported": (BROKEN, spec(drift="Report"), "Failed", "Degraded", False),
    "suspended": (BROKEN, spec(suspend=True), "Failed", "Suspended", False),
    "a new generation is needed": (
        made(SPEC),
        spec(embedding=embedding(model="other")),
        "Failed",
        "Degraded",
        False,
    ),
}


def object_of(world: IndexWorld, of: PolarisIndexSpec, **metadata: Any) -> dict[str, Any]:
    """The object as the API server has it, after a look of the operator."""
    asked = resource(of)
    status = index_status(asked, of, IndexAndLogins(world, None), plan_index(asked, of, world, NOW), NOW)
    return {
        "apiVersion": "polaris.dev/v1alpha1",
        "kind": "PolarisIndex",
        "metadata": {"name": "handbook", "namespace": "rag", "generation": asked.generation, **metadata},
        "spec": {},
        "status": plain(status),
    }


def told(seen: dict[str, Any]) -> dict[str, str]:
    """What each tool says of an object, by each form of what ships."""
    (strict,) = kstatus([seen])
    assert flux("ready", [seen]) == [strict if strict != "Terminating" else "InProgress"]
    return {
        "Flux": strict,
        "Flux, Serving": flux("serving", [seen])[0],
        "Argo CD": argo_cd("ready", [seen])[0],
        "Argo CD, Serving": argo_cd("serving", [seen])[0],
    }


def said(by_flux: str, by_argo: str, *, serving: bool = False) -> dict[str, str]:
    """The same of both forms; of Serving that it is well, where it is."""
    return {
        "Flux": by_flux,
        "Flux, Serving": "Current" if serving else by_flux,
        "Argo CD": by_argo,
        "Argo CD, Serving": "Healthy" if serving else by_argo,
    }


@pytest.mark.parametrize("moment", MOMENTS)
def test_both_say_what_is_the_case(moment: str) -> None:
    world, of, by_flux, by_argo, serves = MOMENTS[moment]
    assert told(object_of(world, of)) == said(by_flux, by_argo, serving=serves)


def test_an_edit_that_no_operator_has_seen_is_in_progress() -> None:
    seen = object_of(made(SPEC), SPEC)
    seen["metadata"]["generation"] += 1
    assert told(seen) == said("InProgress", "Progressing")


def test_an_object_that_was_just_made_is_in_progress() -> None:
    new = object_of(made(SPEC), SPEC) | {"status": {"observedGeneration": -1}}  # the default of the CRD
    assert told(new) == said("InProgress", "Progressing")


def test_an_object_that_is_being_deleted_is_not_healthy() -> None:
    going = object_of(made(SPEC), SPEC, deletionTimestamp="2026-11-22T12:00:00Z")
    # With expressions of one's own Flux asks nobody else whether an object is being deleted.
    assert told(going) == said("Terminating", "Progressing") | {"Flux, Serving": "InProgress"}


def test_a_database_is_ready_in_both_forms_or_in_none() -> None:
    for status, wanted in (
        ("True", said("Current", "Healthy")),
        ("False", said("InProgress", "Progressing")),
    ):
        ready = {"type": "Ready", "status": status, "reason": "Ready", "message": "it is"}
        seen = object_of(made(SPEC), SPEC) | {
            "kind": "PolarisDatabase",
            "status": {"observedGeneration": 1, "conditions": [ready]},
        }
        assert told(seen) == wanted
