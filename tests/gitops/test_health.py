"""What Argo CD and Flux make of our objects, computed as they do, at the moments that there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lupa.lua51
import pytest
import yaml

from gitops.test_examples import EXAMPLES
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

Health = Callable[[dict[str, Any]], str]

SPEC = spec()
VECTOR = vector_name(SPEC)
BUILDING = with_generation(without(made(SPEC, rows=5, **live(VECTOR)), indexes=(VECTOR,)), vector_index=None)
BROKEN = without(made(SPEC), relations=("chunks",))

# At each moment: the world, the spec, and what Flux and Argo CD say.
MOMENTS: dict[str, tuple[IndexWorld, PolarisIndexSpec, str, str]] = {
    "as it should be": (made(SPEC), SPEC, "Current", "Healthy"),
    "nothing there yet": (nothing(), SPEC, "InProgress", "Progressing"),
    "nobody embeds with the model": (nothing(models=frozenset()), SPEC, "Failed", "Degraded"),
    "the database is not ready": (nothing(roles={}), SPEC, "InProgress", "Progressing"),
    "an index is being built": (BUILDING, SPEC, "InProgress", "Progressing"),
    "a view is being repaired": (BROKEN, SPEC, "InProgress", "Progressing"),
    "drift that is reported": (BROKEN, spec(drift="Report"), "Failed", "Degraded"),
    "suspended": (BROKEN, spec(suspend=True), "Failed", "Suspended"),
    "a new generation is needed": (
        made(SPEC),
        spec(embedding=embedding(model="other")),
        "Failed",
        "Degraded",
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


@pytest.fixture(scope="module")
def argo_cd() -> Health:
    """Argo CD's own way: the script of the ConfigMap, in Lua 5.1, with the object as `obj`."""
    data = yaml.safe_load((EXAMPLES / "argocd/health.yaml").read_text("utf-8"))["data"]
    scripts = {
        data[f"resource.customizations.health.polaris.dev_{kind}"]
        for kind in ("PolarisDatabase", "PolarisIndex")
    }
    (script,) = scripts

    def health(of: dict[str, Any]) -> str:
        lua = lupa.lua51.LuaRuntime(register_eval=False, unpack_returned_tuples=True)
        lua.globals().obj = lua.table_from(of, recursive=True)
        answer = lua.execute(script)
        assert set(answer) == {"status", "message"}
        return str(answer["status"])

    return health


@pytest.mark.parametrize("moment", MOMENTS)
def test_both_say_what_is_the_case(argo_cd: Health, moment: str) -> None:
    world, of, flux, argo = MOMENTS[moment]
    seen = object_of(world, of)
    assert kstatus([seen]) == [flux]
    assert argo_cd(seen) == argo


def test_an_edit_that_no_operator_has_seen_is_in_progress(argo_cd: Health) -> None:
    seen = object_of(made(SPEC), SPEC)
    seen["metadata"]["generation"] += 1
    assert kstatus([seen]) == ["InProgress"]
    assert argo_cd(seen) == "Progressing"


def test_an_object_that_was_just_made_is_in_progress(argo_cd: Health) -> None:
    new = object_of(made(SPEC), SPEC) | {"status": {"observedGeneration": -1}}  # the default of the CRD
    assert kstatus([new]) == ["InProgress"]
    assert argo_cd(new) == "Progressing"


def test_an_object_that_is_being_deleted_is_not_healthy(argo_cd: Health) -> None:
    going = object_of(made(SPEC), SPEC, deletionTimestamp="2026-11-22T12:00:00Z")
    assert kstatus([going]) == ["Terminating"]
    assert argo_cd(going) == "Progressing"
