"""Builds the images that pods of the tests run: POLARIS's own from its Dockerfile, and small ones by hand.

The Dockerfile is built by Debian's buildah, on a base that debootstrap makes and that carries the name which
the Dockerfile says: no registry is asked. Everything is kept in the cache, by what it is made from.

`python tests/node/images.py` builds what is missing, and says how large it is; with `--tools` the tests' own
program too, as a cluster needs it that is given to them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

if __name__ == "__main__":  # run by its path: the packages of the tests are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from kube import build
from node import build as programs
from polaris import __version__

ROOT = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/debian:trixie-slim"
TARGETS = {"polaris": "polaris", "embedder": "polaris-embedder", "demo": "polaris-demo"}
TOOLS = "test.polaris.dev/tools:1"
"""One program, `tools/main.go`: an HTTP server, and clients for HTTP and DNS."""
_KEPT = 2

# What Docker's slim images leave out too, now and when a package is installed later.
_SLIM = """
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/groff/*
path-exclude /usr/share/info/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
"""
_MIRROR = "http://deb.debian.org/debian"
_ARCHIVE = f"""
Types: deb
URIs: {_MIRROR}
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: {_MIRROR}-security
Suites: trixie-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""By what the archive's signature is checked; of Debian's package debian-archive-keyring."""
_MAKE_BASE = f"""
set -eu
debootstrap --force-check-gpg --keyring={KEYRING} --variant=minbase trixie "$1" {_MIRROR} >&2
printf '%s' {shlex.quote(_SLIM.lstrip())} > "$1/etc/dpkg/dpkg.cfg.d/slim"
rm -f "$1/etc/apt/sources.list"
printf '%s' {shlex.quote(_ARCHIVE.lstrip())} > "$1/etc/apt/sources.list.d/debian.sources"
chroot "$1" apt-get update --error-on=any >&2
DEBIAN_FRONTEND=noninteractive chroot "$1" apt-get dist-upgrade --yes --no-install-recommends >&2
cd "$1"
find usr/share/doc ! -type d ! -name copyright -delete
find usr/share/doc -type d -empty -delete
rm -rf usr/share/groff/* usr/share/info/* usr/share/lintian/* usr/share/locale/* usr/share/man/*
rm -rf var/cache/apt/* var/lib/apt/lists/* var/log/*
tar --create --file "$2" .
"""
_TAG_BASE = """
set -eu
container=$("$@" from scratch)
"$@" add --quiet "$container" "$BASE_ARCHIVE" / >&2
"$@" config --cmd bash "$container"
"$@" commit --quiet "$container" "$BASE_NAME"
"$@" rm "$container"
"""


@dataclasses.dataclass(frozen=True)
class Image:
    """An image that was built: its name, and the archive that containerd imports.

    `size` is of its layers as a node keeps them, `packed` as a registry sends them, in bytes.
    """

    name: str
    archive: Path
    size: int = 0
    packed: int = 0

    def __str__(self) -> str:
        return f"image {self.name}: {self.size / 1e6:.0f} MB, {self.packed / 1e6:.0f} MB compressed"


# From the Dockerfile


def of_polaris(target: str, tell: build.Say = build.say) -> Image:
    """The image of that target of the Dockerfile, built now unless it was built from the same sources.

    Raises BuildError.
    """
    name = name_of(target)
    folder = build.cache_folder() / "images"
    archive = folder / f"{TARGETS[target]}-{_key(_sources())}.tar"
    folder.mkdir(parents=True, exist_ok=True)
    with build.lock(folder / "build.lock", tell):
        if not archive.exists():
            _build(target, name, archive, tell)
    return Image(name, archive, **json.loads(archive.with_suffix(".json").read_text()))


def from_nothing(target: str, folder: Path, tell: build.Say = build.say) -> Path:
    """The archive of that target, built in that folder with nothing kept from before but the base image."""
    base = _base(build.cache_folder() / "images", folder, tell)
    (folder / base.name).symlink_to(base)
    archive = folder / f"{TARGETS[target]}.tar"
    _build(target, name_of(target), archive, tell)
    return archive


def digests(archive: Path) -> list[str]:
    """The SHA-256 of each layer, the lowest first."""
    return [hashlib.file_digest(layer, "sha256").hexdigest() for _, layer in layers(archive)]  # type: ignore[arg-type]


def name_of(target: str) -> str:
    """The name by which pods know the image of that target: the one that the chart asks for."""
    return f"docker.io/library/{TARGETS[target]}:{__version__}"


def _build(target: str, name: str, archive: Path, tell: build.Say) -> None:
    tell(f"building the image {name} from the Dockerfile into {archive.parent} (minutes, the first time)")
    begun = time.monotonic()
    storage = archive.parent / f"storage-{_key([_MAKE_BASE, _requirements()])}"
    storage.mkdir(parents=True, exist_ok=True)
    os.utime(storage)
    half_done = archive.with_suffix(".part")
    half_done.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="polaris-image-") as temporary:
        buildah = _buildah(storage, Path(temporary))
        if not (storage / "has-base").exists():
            environment = {
                "BASE_ARCHIVE": str(_base(archive.parent, Path(temporary), tell)),
                "BASE_NAME": BASE,
            }
            _alone(["sh", "-c", _TAG_BASE, "sh", *buildah], "making the base image failed", environment)
            (storage / "has-base").touch()
        _alone(
            [
                *buildah,
                *("bud", "--quiet", "--isolation=chroot", "--pull-never", "--layers", "--format=docker"),
                # The same sources make the same image, whenever.
                *("--timestamp=0", "--build-arg=SOURCE_DATE_EPOCH=0"),
                *_trust_of_this_machine(Path(temporary)),
                *("--target", target, "--tag", name, str(ROOT)),
            ],
            f"building {name} failed",
        )
        push = ("push", "--quiet", "--disable-compression", name, f"docker-archive:{half_done}:{name}")
        _alone([*buildah, *push], f"writing {name} failed")
    archive.with_suffix(".json").write_text(json.dumps(_sizes(half_done)))
    half_done.rename(archive)
    _prune(archive.parent)
    tell(f"built the image {name} in {time.monotonic() - begun:.0f} s")


def _base(folder: Path, temporary: Path, tell: build.Say) -> Path:
    archive = folder / f"base-{_key([_MAKE_BASE])}.tar"
    if not archive.exists():
        tell(f"making {BASE} by debootstrap")
        begun = time.monotonic()
        half_done = archive.with_suffix(".part")
        arguments = [str(temporary / "base"), str(half_done)]
        _alone(["sh", "-c", _MAKE_BASE, "sh", *arguments], "debootstrap failed")
        half_done.rename(archive)
        tell(f"made {BASE} in {time.monotonic() - begun:.0f} s")
    return archive


def _prune(folder: Path) -> None:
    """Keep the newest two of each image, and of the layers that they share: each takes 0.5 to 1.5 GB."""
    for pattern in ("storage-*", *(f"{name}-{'?' * 16}.tar" for name in TARGETS.values())):
        for old in sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
            if old.is_dir():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink()
                old.with_suffix(".json").unlink(missing_ok=True)


def _buildah(storage: Path, temporary: Path) -> list[str]:
    folders = [f"--root={storage}", f"--runroot={temporary / 'run'}"]
    return ["buildah", *folders, "--storage-driver=overlay"]


def _trust_of_this_machine(temporary: Path) -> list[str]:
    """What pip and uv trust here, they trust in the build: a company's own proxy has its own authority.

    The files are mounted while the image is built, and are not part of it.
    """
    bundle = Path(os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt")
    if not bundle.exists():
        return []
    files = {
        "/etc/pki/tls/certs/ca-bundle.crt": bundle.read_text(),
        "/etc/pip.conf": "[global]\ncert = /etc/pki/tls/certs/ca-bundle.crt\n",
        "/etc/uv/uv.toml": "native-tls = true\n",
    }
    mounts = []
    for place, text in files.items():
        file = temporary / Path(place).name
        file.write_text(text)
        mounts.append(f"--volume={file}:{place}:ro")
    return mounts


def _alone(command: Sequence[str], failure: str, environment: Mapping[str, str] | None = None) -> None:
    """Run a command whose mounts and processes end with it, however it ends."""
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    build.run([*own, *command], failure, cwd=ROOT, env=os.environ | (environment or {}))


def _requirements() -> bytes:
    pinned = sorted(ROOT.glob("requirements*.txt"))
    return b"\0".join(file.read_bytes() for file in [*sorted(ROOT.glob("Dockerfile*")), *pinned])


def _sources() -> list[bytes | str]:
    """What the Dockerfile copies, and itself."""
    folders = [ROOT / name for name in ("crds", "migrations", "operator", "service")]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    files = [file for file in files if "__pycache__" not in file.parts]
    plain = [ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore")]
    parts = [(str(file.relative_to(ROOT)), file.read_bytes()) for file in [*plain, *files]]
    return [_MAKE_BASE, _requirements(), *(part for pair in parts for part in pair)]


def _key(parts: Sequence[bytes | str]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return digest.hexdigest()[:16]


def _sizes(archive: Path) -> dict[str, int]:
    size = packed = 0
    for _, layer in layers(archive):
        compressor = zlib.compressobj()
        while part := layer.read(1 << 20):
            size += len(part)
            packed += len(compressor.compress(part))
        packed += len(compressor.flush())
    return {"size": size, "packed": packed}


def layers(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The layers of an image, the lowest first: their names, and their tar archives."""
    with tarfile.open(archive) as whole:
        for name in part_of(whole, "manifest.json")[0]["Layers"]:
            if layer := whole.extractfile(name):
                yield name, layer


def configuration(archive: Path) -> dict[str, Any]:
    """How an image says that it is to be run: User, Entrypoint, Env and so on."""
    with tarfile.open(archive) as whole:
        config: dict[str, Any] = part_of(whole, part_of(whole, "manifest.json")[0]["Config"])["config"]
        return config


def part_of(whole: tarfile.TarFile, name: str) -> Any:
    """A part of an image's archive that is JSON."""
    file = whole.extractfile(name)
    if not file:
        raise build.BuildError(f"no {name} in {whole.name!r}")
    return json.load(file)


# By hand


def by_hand(name: str, files: Mapping[str, Path], entrypoint: Sequence[str], target: Path) -> Image:
    """Write an image of a few static programs: `files` maps a path in the image to a file here."""
    layer = _tar({path.lstrip("/"): (file.read_bytes(), 0o755) for path, file in files.items()})
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "User": "65532:65532", "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    parts = {"config.json": config, "manifest.json": manifest}
    texts = {path: (json.dumps(value).encode(), 0o644) for path, value in parts.items()}
    target.write_bytes(_tar({**texts, "layer.tar": (layer, 0o644)}))
    return Image(name, target)


def of_tools(tell: build.Say = build.say) -> Image:
    """The image of the tests' own program, written into the cache. Raises BuildError."""
    target = build.cache_folder() / "images" / "tools.tar"
    target.parent.mkdir(parents=True, exist_ok=True)
    program = build.binaries(("tools",), module=programs.RUNTIME, tell=tell)["tools"]
    return by_hand(TOOLS, {"/bin/tools": program}, ["/bin/tools"], target)


def _tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (content, mode) in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def files_of(image: Image, *suffixes: str) -> dict[str, bytes]:
    """The files of an image whose paths end so, by their paths; of several layers' the highest's."""
    found = {}
    for _, layer in layers(image.archive):
        with tarfile.open(fileobj=layer) as archive:
            for entry in archive:
                if entry.isfile() and entry.name.endswith(suffixes) and (file := archive.extractfile(entry)):
                    found[entry.name] = file.read()
    return found


def changed(image: Image, name: str, files: Mapping[str, bytes], target: Path) -> Image:
    """Write an image that has these files (without the first slash) upon the layers of another one."""
    layer = _tar({path: (content, 0o644) for path, content in files.items()})
    with tarfile.open(image.archive) as whole, tarfile.open(target, "w") as new:
        (manifest,) = part_of(whole, "manifest.json")
        config = part_of(whole, manifest["Config"])
        config["rootfs"]["diff_ids"].append(f"sha256:{hashlib.sha256(layer).hexdigest()}")
        config.get("history", []).append({"created_by": "the tests"})
        replaced = {manifest["Config"], "manifest.json", "repositories"}
        for entry in whole:
            if entry.name not in replaced:
                new.addfile(entry, whole.extractfile(entry) if entry.isfile() else None)
        manifest |= {"RepoTags": [name], "Layers": [*manifest["Layers"], "changed.tar"]}
        texts = {manifest["Config"]: config, "manifest.json": [manifest]}
        for path, content in {
            "changed.tar": layer,
            **{path: json.dumps(value).encode() for path, value in texts.items()},
        }.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content))
    return Image(name, target)


def main(arguments: Sequence[str]) -> int:
    """Build the images of the Dockerfile, and with `--tools` the tests' own; the exit code."""
    missing = [tool for tool in ("buildah", "debootstrap") if not shutil.which(tool)]
    if missing := [*missing, *([] if KEYRING.exists() else ["debian-archive-keyring"])]:
        print(f"install {' and '.join(missing)} first", file=sys.stderr)
        return 1
    try:
        made = [of_polaris(target) for target in TARGETS]
        for image in made:
            build.say(str(image))
        if "--tools" in arguments:
            made.append(of_tools())
        for image in made:
            build.say(f"kind load image-archive {image.archive}")
    except build.BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
