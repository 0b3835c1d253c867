"""What is in an image and under which licences: a bill of materials in CycloneDX, read from the image itself.

`make sbom` writes one beside each image that it built; `python tests/node/bom.py ARCHIVE` prints that of any
archive that `docker save` or buildah wrote.
"""

from __future__ import annotations

import email.parser
import hashlib
import json
import re
import sys
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by its path: the packages of the tests are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License, LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from kube import build
from node import images

_LICENSES = LicenseFactory()
_DISTRIBUTION = re.compile(r"opt/polaris/lib/python3\.\d+/site-packages/[^/]+\.dist-info/METADATA")
_COPYRIGHT = re.compile(r"usr/share/doc/([^/]+)/copyright")
_DPKG = "var/lib/dpkg/status"
_COMMON = re.compile(r"/usr/share/common-licenses/([A-Za-z0-9][A-Za-z0-9.+-]*[A-Za-z0-9])")
_NAMED = re.compile(r"^License: *(\S.*\S) *$", re.MULTILINE)
_CLASSIFIER = "License :: OSI Approved :: "


def of(archive: Path) -> Bom:
    """The bill of materials of an image: Debian's packages and Python's distributions.

    The same image has the same bill, to the byte.
    """
    files = _files(archive)
    manifest, config = _described(archive)
    parts = sorted(_components(files))
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, config["digest"]), components=parts)
    bom.metadata.timestamp = datetime.fromisoformat(config["created"]).astimezone(UTC)
    name, _, tag = manifest["RepoTags"][0].rpartition(":")
    image = Component(type=ComponentType.CONTAINER, name=name, version=tag, bom_ref="image")
    bom.metadata.component = image
    bom.register_dependency(image, parts)
    return bom


def text(bom: Bom) -> str:
    """The bill as JSON, one line for each of its parts."""
    return JsonV1Dot6(bom).output_as_string(indent=1) + "\n"


def licences(bom: Bom) -> dict[str, list[str]]:
    """Python's distributions by licence, as their authors write it.

    Debian's packages have several licences each, all free by its guidelines; the bill names them.
    """
    found: dict[str, list[str]] = {}
    for component in bom.components:
        if component.purl and component.purl.type == "pypi":
            words = " AND ".join(sorted(_word(licence) for licence in component.licenses))
            found.setdefault(words or "not said", []).append(f"{component.name} {component.version}")
    return {words: sorted(found[words]) for words in sorted(found)}


def _word(licence: License) -> str:
    if isinstance(licence, LicenseExpression):
        return licence.value
    return str(licence.id or licence.name)


def _described(archive: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with tarfile.open(archive) as whole:
        manifest = images.part_of(whole, "manifest.json")[0]
        config = images.part_of(whole, manifest["Config"])
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return manifest, {**config, "digest": digest}


def _files(archive: Path) -> Mapping[str, str]:
    """The texts that say what is installed, by their paths."""
    found: dict[str, str] = {}
    for _, layer in images.layers(archive):
        with tarfile.open(fileobj=layer) as opened:
            for entry in opened:
                path = entry.name.removeprefix("./")
                if _is_read(path) and (content := opened.extractfile(entry)):
                    found[path] = content.read().decode(errors="replace")
    return found


def _is_read(path: str) -> bool:
    return path == _DPKG or bool(_DISTRIBUTION.fullmatch(path) or _COPYRIGHT.fullmatch(path))


def _components(files: Mapping[str, str]) -> Iterator[Component]:
    for path, content in files.items():
        if _DISTRIBUTION.fullmatch(path):
            yield _of_python(email.parser.HeaderParser().parsestr(content))
    for paragraph in files[_DPKG].split("\n\n"):
        fields = email.parser.HeaderParser().parsestr(paragraph)
        if str(fields["Status"]).endswith(" installed"):
            yield _of_debian(fields, files.get(f"usr/share/doc/{fields['Package']}/copyright", ""))


def _of_python(metadata: Message) -> Component:
    name, version = str(metadata["Name"]), str(metadata["Version"])
    purl = PackageURL("pypi", name=re.sub(r"[-_.]+", "-", name).lower(), version=version)
    licences = [_LICENSES.make_from_string(words) for words in _python_licences(metadata)]
    return _library(name, version, purl, licences)


def _python_licences(metadata: Message) -> Iterable[str]:
    """The SPDX expression; in older metadata the classifiers, and else what is written in one line."""
    if expression := metadata["License-Expression"]:
        return [str(expression)]
    classifiers = [str(value) for value in metadata.get_all("Classifier", [])]
    if named := [value.removeprefix(_CLASSIFIER) for value in classifiers if value.startswith(_CLASSIFIER)]:
        return named
    written = str(metadata["License"] or "").strip()
    return [written.splitlines()[0]] if written else []


def _of_debian(fields: Message, copyright_file: str) -> Component:
    name, version = str(fields["Package"]), str(fields["Version"])
    purl = PackageURL("deb", "debian", name, version, {"arch": str(fields["Architecture"])})
    # A slim base lacks the files that packages of one source share.
    source = str(fields["Source"] or name).partition(" ")[0]
    named = _debian_licences(copyright_file) or [f"see Debian's source package {source}"]
    licences = [_LICENSES.make_with_name(words) for words in named]
    return _library(name, version, purl, licences)


def _library(name: str, version: str, purl: PackageURL, licences: Sequence[License]) -> Component:
    kind = ComponentType.LIBRARY
    return Component(name=name, version=version, type=kind, purl=purl, licenses=licences, bom_ref=str(purl))


def _debian_licences(copyright_file: str) -> list[str]:
    """The names in Debian's machine-readable form; in other files the common licences that they lead to."""
    machine_readable = copyright_file.startswith("Format:")
    return sorted(set((_NAMED if machine_readable else _COMMON).findall(copyright_file)))


def write(image: images.Image) -> Path:
    """Write the bill beside the image, and return where."""
    target = image.archive.with_suffix(".cdx.json")
    target.write_text(text(of(image.archive)), encoding="utf-8")
    return target


def main(arguments: list[str]) -> int:
    """Print the bill of an archive; without one, write those of our images and list their licences."""
    if arguments:
        print(text(of(Path(arguments[0]))), end="")
        return 0
    try:
        built = [images.of_polaris(target) for target in images.TARGETS]
    except build.BuildError as error:
        print(error, file=sys.stderr)
        return 1
    for image in built:
        bill = of(image.archive)
        print(f"{image}, {len(bill.components)} components: {write(image)}")
        for words, components in licences(bill).items():
            print(f"  {words}: {', '.join(components)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
