"""What is in the images that the Dockerfile makes, and what is not."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest

from node import images

pytestmark = pytest.mark.node

# Nothing that builds or installs programs is where POLARIS runs.
UNWANTED = {"gcc", "cc", "g++", "ld", "as", "make", "pip", "pip3", "uv", "git", "curl", "wget"}


@pytest.fixture(params=list(images.TARGETS))
def image(request: pytest.FixtureRequest) -> images.Image:
    built: images.Image = request.getfixturevalue(f"{request.param}_archive")
    return built


def files_of(image: images.Image) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo]]:
    """The files of all layers; what a later one takes away is small, and counted too."""
    for _, layer in images.layers(image.archive):
        with tarfile.open(fileobj=layer) as archive:
            for entry in archive:
                if entry.isfile():
                    yield PurePosixPath("/", entry.name), entry


def test_it_runs_as_an_ordinary_user_and_says_which_program(image: images.Image) -> None:
    config = images.configuration(image.archive)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["polaris"]


def test_nothing_of_it_is_written_by_the_user_that_it_runs_as(image: images.Image) -> None:
    owned = [str(path) for path, entry in files_of(image) if entry.uid == 10001 or entry.mode & 0o002]
    assert owned == []


def test_no_compiler_no_installer_and_none_of_their_caches_are_in_it(image: images.Image) -> None:
    paths = [path for path, _ in files_of(image)]
    assert [str(p) for p in paths if p.parent.name in {"bin", "sbin"} and p.name in UNWANTED] == []
    caches = ("/var/lib/apt/lists/", "/var/cache/apt/archives/")
    kept = [p for p in paths if str(p).startswith(caches) or ".cache" in p.parts]
    assert [str(p) for p in kept if p.name != "lock"] == []


def test_nothing_of_the_machine_that_built_it_is_in_it(image: images.Image) -> None:
    """The certificates and settings that the build was lent (see `images`) leave empty files behind."""
    lent = {"/etc/pki/tls/certs/ca-bundle.crt", "/etc/pip.conf", "/etc/uv/uv.toml"}
    assert sum(entry.size for path, entry in files_of(image) if str(path) in lent) == 0


def test_its_sizes_are_known(image: images.Image, polaris_archive: images.Image) -> None:
    """The goal is 220 MB without the model, as it is sent; docs/benchmarks.md has what was reached."""
    assert 0 < image.packed < image.size
    if image == polaris_archive:
        assert image.packed < 220e6, json.dumps({"size": image.size, "packed": image.packed})
