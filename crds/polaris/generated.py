"""Writes the files that are made from the code, or checks that they are what they should be.

`python -m polaris.generated [--check]`, from the repository's folder. One truth each: the models of
`polaris.spec` for the CRDs, of `polaris.settings` for the table of settings, `polaris.changes` for
the table of changes, the chart's `values.yaml` for its schema and its page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from polaris import changes, chart, crd, settings

_SETTINGS = """# Settings

Each setting comes from a flag of its program, else from the variable, else from the YAML file that
`POLARIS_SETTINGS_FILE` names (there without the prefix, in lower case). Times are in seconds, sizes
in bytes. A key of the file that no program has is refused. This page is made from the code.

Nothing else is read from the environment, but for `POLARIS_CACHE` (the folder of downloaded models and
programs; `polaris` in the user's cache folder otherwise), `KUBECONFIG`, and OpenTelemetry's own variables
(`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER_ARG`). The tests read `KUBEBUILDER_ASSETS` too, as
envtest does: what they need of `kube-apiserver`, `etcd` and `kubectl` is built unless that folder has it.

{table}"""

_CHANGES = """# What a change of a field means

A `PolarisIndex` is edited in Git; this is what each edit does to what stands in PostgreSQL. A path
stands for everything below it that has no row of its own. This page is made from the code.

| field | a change is |
|---|---|
{rows}"""

_VALUES = """# Values of the chart

What `helm install` takes by `--set` or `--values`. They are closed by a schema: helm refuses one that is not
here. This page and `values.schema.json` are made from the comments of
[values.yaml](../charts/polaris/values.yaml).

{table}
## The chart polaris-crds

{crds}"""

_CHARTS = ("charts/polaris", "charts/polaris-crds")

_MEANING = {
    changes.Effect.REFUSED: "refused by the API server",
    changes.Effect.NEW_GENERATION: "a new generation: new tables, filled while the old ones serve",
    changes.Effect.BESIDE: "a second index beside the serving one, then a switch",
    changes.Effect.IN_PLACE: "in place",
}


def _changes() -> str:
    rows = "".join(f"| `{path}` | {_MEANING[effect]} |\n" for path, effect in changes.EFFECTS.items())
    return _CHANGES.format(rows=rows)


def files() -> Iterator[tuple[Path, str]]:
    """Yield each file that is made from the code, with what it should hold."""
    for kind, plural in crd.PLURALS.items():
        # `crds/` of a chart is what helm installs where there is none; polaris-crds keeps them current.
        for folder in ("crds", "charts/polaris/crds", "charts/polaris-crds/files"):
            yield Path(folder) / f"{plural}.yaml", crd.render(kind)
    yield Path("docs/settings.md"), _SETTINGS.format(table=settings.table())
    yield Path("docs/changes.md"), _changes()
    said = [(Path(folder) / "values.yaml").read_text("utf-8") for folder in _CHARTS]
    for folder, text in zip(_CHARTS, said, strict=True):
        yield Path(folder) / "values.schema.json", chart.schema(text)
    tables = [chart.table(text) for text in said]
    yield Path("docs/values.md"), _VALUES.format(table=tables[0], crds=tables[1])


def main(arguments: list[str]) -> int:
    """Write the files; with --check, name those that differ and return 1."""
    stale = [(p, text) for p, text in files() if not p.exists() or p.read_text("utf-8") != text]
    for path, text in stale:
        if "--check" in arguments:
            print(f"{path} is not what the code says: run 'make crds'", file=sys.stderr)  # noqa: T201
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
