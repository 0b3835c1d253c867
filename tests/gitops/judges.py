"""What Argo CD and Flux make of objects, told by the health checks that ship, computed as these tools do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lupa.lua51
import yaml

from pipeline import build
from pipeline.build import ROOT

SHIPPED = ROOT / "charts/polaris-crds/gitops"
Form = Literal["ready", "serving"]


def argo_cd(form: Form, objects: Sequence[dict[str, Any]]) -> list[str]:
    """Argo CD's own way: the script of the ConfigMap, in Lua 5.1, with the object as `obj`."""
    data = yaml.safe_load((SHIPPED / f"argocd-{form}.yaml").read_text("utf-8"))["data"]
    return [
        _health(data[f"resource.customizations.health.polaris.dev_{each['kind']}"], each) for each in objects
    ]


def flux(form: Form, objects: Sequence[dict[str, Any]]) -> list[str]:
    """Flux's own way: the expressions of the Kustomization, by the code that its controller runs."""
    patch = yaml.safe_load((SHIPPED / f"flux-{form}.yaml").read_text("utf-8"))
    return build.flux(patch["spec"]["healthCheckExprs"], objects)


def _health(script: str, of: dict[str, Any]) -> str:
    lua = lupa.lua51.LuaRuntime(register_eval=False, unpack_returned_tuples=True)
    lua.globals().obj = lua.table_from(of, recursive=True)
    answer = lua.execute(script)
    assert set(answer) == {"status", "message"}
    return str(answer["status"])
