"""The definitions of Argo CD's and Flux's resources, as these projects ship them in their Go modules."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import yaml

from kube import build

# Module, version, its sum in the checksum database, and where its definitions are: Argo CD 3.3, Flux 2.7.
_MODULES = (
    (
        "github.com/argoproj/argo-cd/v3",
        "v3.3.0",
        "h1:9UlruTd5cC/MyvorTXgAIblfZTy63MF5FYvvoAaUvwU=",
        ("manifests/crds/application-crd.yaml", "manifests/crds/applicationset-crd.yaml"),
    ),
    (
        "github.com/fluxcd/helm-controller",
        "v1.4.0",
        "h1:rkm8rmB6Na7eNc4pJOnvtXEaJ19iKluRtayHKjBxcUM=",
        ("config/crd/bases/helm.toolkit.fluxcd.io_helmreleases.yaml",),
    ),
    (
        "github.com/fluxcd/source-controller",
        "v1.7.3",
        "h1:gFfeBiNUgF0kFFGap/rrMeJqz+0Tod0ARENJO8w/UA8=",
        (
            "config/crd/bases/source.toolkit.fluxcd.io_ocirepositories.yaml",
            "config/crd/bases/source.toolkit.fluxcd.io_gitrepositories.yaml",
        ),
    ),
    (
        "github.com/fluxcd/kustomize-controller",
        "v1.7.3",
        "h1:SzNnGn/4ObAPEHHleM5U7y/AKxKXph3Vj6ZhteeXw8M=",
        ("config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml",),
    ),
)


def definitions() -> list[str]:
    """The definitions as YAML; modules that are not in Go's own cache are downloaded."""
    return [
        (folder / file).read_text("utf-8")
        for module, version, sum_, files in _MODULES
        for folder in [_downloaded(module, version, sum_)]
        for file in files
    ]


def names(definitions: list[str]) -> list[str]:
    """The names of definitions, as `kubectl wait` takes them."""
    return [f"crd/{yaml.safe_load(each)['metadata']['name']}" for each in definitions]


def _downloaded(module: str, version: str, sum_: str) -> Path:
    go = build.find_go(build.Module(Path(build.__file__).parent, {}).version("go"))
    done = subprocess.run(
        [go, "mod", "download", "-json", f"{module}@{version}"],
        env=os.environ | {"GOTOOLCHAIN": "local", "GOWORK": "off"},
        cwd=go.anchor,
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(done.stdout or "{}")
    if "Dir" not in answer:
        raise build.BuildError(f"no {module}@{version}: {answer.get('Error') or done.stderr}")
    if answer["Sum"] != sum_:
        raise build.BuildError(f"{module}@{version} is {answer['Sum']}, and not what was looked at")
    return Path(answer["Dir"])
