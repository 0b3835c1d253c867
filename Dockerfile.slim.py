"""Run by the Dockerfile: leaves in an environment what the programs of POLARIS run, and compiles it.

`python Dockerfile.slim.py ENVIRONMENT IMAGE` trims ENVIRONMENT and moves it to IMAGE/ENVIRONMENT, with the
compiled modules of the standard library beside it: a root file system that cannot be written compiles
nothing by itself, and to compile everything would take 20 MB for modules that are never loaded. Compiled
modules are believed without a look at their sources, whose times differ from build to build.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

# Below site-packages.
NEVER_RUN = (
    "**/test",
    "**/tests",
    # What other packages are compiled against.
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
    "**/*.h",
    "**/*.c",
    # The generated classes of the Kubernetes client (110 MB): POLARIS speaks to the API server in plain JSON.
    "kubernetes/aio",
    "kubernetes/client/api/[!_]*",
    "kubernetes/client/models/[!_]*",
    # The colours of 500 languages; rich asks for none.
    "pygments/lexers/[!_]*",
    "pygments/formatters/[!_]*",
    "pygments/styles/[!_]*",
    # Other databases.
    "sqlalchemy/dialects/mssql",
    "sqlalchemy/dialects/mysql",
    "sqlalchemy/dialects/oracle",
    "sqlalchemy/dialects/sqlite",
    "sqlalchemy/testing",
    # For those who build with numpy, and who test it.
    "numpy/f2py",
    "numpy/_core/_simd.*.so",
    "numpy/_core/*_tests.*.so",
    # Clients of Google's clouds; the exporter of traces needs google.protobuf and google.rpc.
    "google/api",
    "google/cloud",
    "google/gapic",
    "google/logging",
    "google/longrunning",
    "google/type",
    # Debian has its own.
    "tzdata/zoneinfo",
)
PROGRAMS = ("polaris", "polaris_migrations", "polaris_operator", "polaris_service", "polaris_cli")
# Found by their names, when a program runs.
BY_NAME = (
    "alembic.ddl.postgresql",
    "encodings.idna",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
)


class Loaded(TypedDict):
    """Paths of sources, and errors by the names of modules."""

    sources: list[str]
    errors: dict[str, str]


def main() -> None:
    """Trim, compile and move."""
    if sys.argv[1] == "--loaded":
        json.dump(loaded(), sys.stdout)
        return
    environment, image = Path(sys.argv[1]), Path(sys.argv[2])
    (packages,) = environment.glob("lib/python3*/site-packages")
    before = loaded_in(environment)
    trim(packages)
    (environment / ".lock").unlink(missing_ok=True)  # uv's
    after = loaded_in(environment)
    # What another image is for cannot be loaded here either way.
    if lost := sorted(after["errors"].keys() - before["errors"].keys()):
        sys.exit("\n".join(f"{name} needs what was trimmed: {after['errors'][name]}" for name in lost))
    for cache in environment.rglob("__pycache__"):
        shutil.rmtree(cache)
    for source in after["sources"]:
        compiled = Path(importlib.util.cache_from_source(source))
        target = compiled if compiled.is_relative_to(environment) else image / compiled.relative_to("/")
        py_compile.compile(
            source,
            str(target),
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    place = image / environment.relative_to("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(environment, place)


def trim(packages: Path) -> None:
    """Remove what is never run, and symbols that nothing links to."""
    for pattern in NEVER_RUN:
        for path in list(packages.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    for library in packages.rglob("*.so"):
        run("strip", "--strip-unneeded", str(library))


def loaded_in(environment: Path) -> Loaded:
    """What `loaded` finds with the Python of that environment."""
    found: Loaded = json.loads(run(str(environment / "bin/python"), __file__, "--loaded"))
    return found


def loaded() -> Loaded:
    """The sources of all modules that are loaded once every module of POLARIS is, and what could not be."""
    names = list(BY_NAME)
    for program in PROGRAMS:
        package = importlib.import_module(program)
        names += [module.name for module in pkgutil.walk_packages(package.__path__, f"{program}.")]
    errors = {}
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, NameError) as error:  # NameError: Alembic gives names to the file that it runs
            errors[name] = str(error)
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    sources = sorted(file for file in files if file and file.endswith(".py") and file != __file__)
    return {"sources": sources, "errors": errors}


def run(*command: str) -> str:
    """What a command prints; CalledProcessError where it fails."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


if __name__ == "__main__":
    main()
