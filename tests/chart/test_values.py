"""Every value: told of, closed, alive, and accepted by the API server when it is something else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import yaml

from chart.rendered import CHART, render, render_all
from kube.cluster import Cluster
from polaris import chart, settings
from polaris.chart import Value, ValuesError

pytestmark = pytest.mark.kubernetes

TEXT = (CHART / "values.yaml").read_text("utf-8")
SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))

# What else has to be said for a value to matter, by the beginning of its path. That what it belongs to is
# `enabled` goes without saying.
NEEDS: dict[str, dict[str, Any]] = {
    "tracing.samplerRatio": {"tracing.endpoint": "http://otel.rag.svc:4318"},
    "service.generator": {
        "service.generator.kind": "openai",
        "service.generator.url": "http://vllm.rag.svc:8000",
        "service.generator.model": "some-model",
    },
    "worker.podDisruptionBudget": {"worker.replicas": 3},
    "embedder.podDisruptionBudget": {"embedder.replicas": 3},
    "embedder.url": {"embedder.enabled": False, "embedder.url": "http://first-embedder.rag.svc:8081"},
    "embedder.enabled": {"embedder.url": "http://first-embedder.rag.svc:8081"},
    "networkPolicy": {"networkPolicy.enabled": True},
    "networkPolicy.egress.otlp": {"tracing.endpoint": "http://otel.rag.svc:4318"},
    "networkPolicy.egress.models": {
        "settings": {"providers": [{"name": "other", "url": "http://vllm:8000"}]}
    },
    "monitoring.podMonitor.tlsConfig": {"service.tls.secretName": "service-tls"},
    "rbac.scope": {"operator.installation": "here"},
    "tests.index": {"demo.enabled": True},
    **{
        f"{part}.autoscaling.targetCPUUtilizationPercentage": {f"{part}.autoscaling.metrics": metrics}
        for part in ("service", "worker", "embedder")
        for metrics in (chart.NAMED["metrics"]["examples"][0],)
    },
    **{
        f"{part}.autoscaling.minReplicas": {f"{part}.autoscaling.maxReplicas": 20}
        for part in ("service", "worker", "embedder")
    },
}


@cache
def leaves() -> tuple[Value, ...]:
    return tuple(chart.leaves(chart.values(TEXT)))


def at(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """That value, in the mappings around it."""
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def merged(*many: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings into one, key by key; later ones win."""
    whole: dict[str, Any] = {}
    for one in many:
        for key, value in one.items():
            inner = isinstance(value, dict) and isinstance(whole.get(key), dict)
            whole[key] = merged(whole[key], value) if inner else deepcopy(value)
    return whole


def context(value: Value) -> dict[str, Any]:
    """The values with which this one matters."""
    path = ".".join(value.path)
    said = [
        at(tuple(key.split(".")), v)
        for begin, more in NEEDS.items()
        if path.startswith(begin)
        for key, v in more.items()
    ]
    switches = {v.path for v in leaves() if v.path[-1] == "enabled"}
    on = [
        at(switch, True)
        for n in range(1, len(value.path))
        if (switch := (*value.path[:n], "enabled")) in switches and switch != value.path
    ]
    return merged(*on, *said)


def others(value: Value, now: Any) -> list[Any]:
    """Other values than the one that holds now; of numbers zero, where it may be, and one that is near."""
    schema = value.schema
    if "examples" in schema:
        return [one for one in schema["examples"] if one != now]
    if "enum" in schema:
        return [one for one in schema["enum"] if one != now]
    if schema["type"] == "boolean":
        return [not now]
    if schema["type"] in ("integer", "number"):
        near = now + (1 if schema["type"] == "integer" else 0.25)
        if not allowed(schema, near):
            near = now - 1
        return [near, *([0] if now and allowed(schema, 0) else [])]
    return ["another"]


def allowed(schema: Mapping[str, Any], number: float) -> bool:
    """Whether a number is within the limits; what is no number helm judges when it renders."""
    least, most, above = (schema.get(key) for key in ("minimum", "maximum", "exclusiveMinimum"))
    return (
        (least is None or number >= least)
        and (most is None or number <= most)
        and (above is None or number > above)
    )


@cache
def variants() -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """For each other value of each: what it is, and the values without it and with it."""
    found: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    defaults = yaml.safe_load(TEXT)
    for value in leaves():
        without = context(value)
        now: Any = merged(defaults, without)
        for key in value.path:
            now = now[key]
        for other in others(value, now):
            said = f"{'.'.join(value.path)}={json.dumps(other)}"
            found[f"v{len(found):03}"] = (said, without, merged(without, at(value.path, other)))
    return found


@cache
def renderings() -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    """What the chart is without, and with, each variant."""
    bases = {json.dumps(without, sort_keys=True): without for _, without, _ in variants().values()}
    names = {text: f"b{n:03}" for n, text in enumerate(bases)}
    wanted = {names[text]: values for text, values in bases.items()}
    wanted |= {name: with_ for name, (_, _, with_) in variants().items()}
    done = render_all(wanted)
    without = {name: done[names[json.dumps(w, sort_keys=True)]] for name, (_, w, _) in variants().items()}
    return without, {name: done[name] for name in variants()}


def test_no_value_is_dead() -> None:
    """Each one set to something else, zero and false too, renders and makes a difference."""
    without, with_ = renderings()
    same = [said for name, (said, _, _) in variants().items() if without[name] == with_[name]]
    assert not same
    tried = {said.split("=")[0] for said, _, _ in variants().values()}
    assert tried == {".".join(value.path) for value in leaves()}


def test_zero_and_false_are_values() -> None:
    """They were among what was tried above, and so made a difference."""
    tried = [said for said, _, _ in variants().values()]
    assert len([said for said in tried if said.endswith("=false")]) >= 10
    assert len([said for said in tried if said.endswith("=0")]) >= 5


def test_every_rendering_is_accepted_by_the_api_server(judge: Cluster) -> None:
    without, with_ = renderings()
    objects = sorted(set().union(*without.values(), *with_.values()))
    done = judge.kubectl(
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-"),
        input="\n---\n".join(objects),
    )
    assert len(done.stdout.splitlines()) == len(objects)
    assert "would violate PodSecurity" not in done.stderr
    assert not done.stderr


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\n", "a has no sentence"),
        ("# -- A list.\na: []\n", "a does not tell what it may be"),
        ("# -- A thing.\n# @schema nothing\na: 1\n", "a: there is no type nothing"),
        ("b:\n  # -- A thing.\n  a: {}\n", "b.a does not tell what it may be"),
        ("- 1\n", "the values are no mapping"),
    ],
)
def test_what_values_yaml_must_say_is_asked_for(text: str, complaint: str) -> None:
    with pytest.raises(ValuesError, match=re.escape(complaint)):
        chart.schema(text)


def test_a_limit_is_added_to_what_the_default_tells() -> None:
    text = "# -- How many\n# of them.\n# @schema {maximum: 9}\na: 1\n# Some.\nb:\n  # -- On.\n  c: true\n"
    assert json.loads(chart.schema(text))["properties"] == {
        "a": {"description": "How many of them.", "type": "integer", "minimum": 0, "maximum": 9},
        "b": {
            "type": "object",
            "description": "Some.",
            "additionalProperties": False,
            "properties": {"c": {"description": "On.", "type": "boolean"}},
        },
        "global": {"type": "object"},
    }


def test_the_settings_file_holds_what_no_value_gives() -> None:
    """A setting of its programs is a variable that the chart sets or a key of `settings`, never both."""
    known = {name for model in chart.PROGRAMS for name in model.model_fields}
    in_file = set(SCHEMA["properties"]["settings"]["properties"])
    _, with_ = renderings()
    set_ = {v.removeprefix(settings.PREFIX).lower() for v in variables(frozenset().union(*with_.values()))}
    assert not set_ & in_file
    assert in_file <= known
    assert chart.OWN - {"metrics_host", "metrics_port", "tokens_file"} == set_ & known


def test_every_variable_that_the_chart_sets_is_a_setting() -> None:
    known = {variable for _, variable, _, _ in settings.rows()} | {
        "POLARIS_SETTINGS_FILE",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_TRACES_SAMPLER_ARG",
    }
    _, with_ = renderings()
    assert variables(frozenset().union(*with_.values())) - {"SOME_VARIABLE"} <= known


def variables(texts: frozenset[str]) -> set[str]:
    return {name for text in texts for name in re.findall(r"- \{?name: ([A-Z_]+)\b", text)}


def test_the_file_of_settings_is_one_that_the_programs_read(tmp_path: Any) -> None:
    """Numbers above a million too, which helm likes to write as 1e+06."""
    given = "settings.max_batch_lines=2000000,settings.providers[0].name=a,settings.providers[0].url=http://b"
    (file,) = [o for o in render(f"--set={given}") if o["kind"] == "ConfigMap"]
    path = tmp_path / "settings.yaml"
    path.write_text(file["data"]["settings.yaml"])
    for model in chart.PROGRAMS:
        model.load({"POLARIS_SETTINGS_FILE": str(path)})
    read = settings.ServiceSettings.load({"POLARIS_SETTINGS_FILE": str(path)})
    assert read.max_batch_lines == 2_000_000
    assert read.providers[0].url == "http://b"
