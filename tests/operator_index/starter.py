"""A process that begins what PostgreSQL then goes on with, and can be killed at any moment.

Usage: python -m operator_index.starter DATA_FOLDER MANIFESTS
"""

from __future__ import annotations

import sys
import threading
import uuid
from pathlib import Path

from polaris_operator.databases import Databases
from polaris_operator.folder import FolderObjects
from polaris_operator.patrol import patrol
from polaris_operator.reconcile import Reconciler, Sides
from polaris_operator.sides import database, index
from polaris_operator.world.database import Process


def main(data: Path, manifests: Path) -> None:
    objects = FolderObjects(manifests, data)
    process = Process(uuid.UUID(objects.installation), "starter", "starter")
    databases = Databases(objects, process, lambda _: None)
    sides = Sides(database.Database(patrol), index.Index())
    reconciler = Reconciler(objects, databases, sides, lambda _: None)
    objects.look()
    for one in (*objects.list("PolarisDatabase"), *objects.list("PolarisIndex")):
        reconciler.reconcile(one.key)
    print("begun", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
