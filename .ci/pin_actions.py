"""Write the commit behind each action of the workflows: `uses: owner/action@<commit> # v5`.

A tag can be moved to other code, a commit can't. Which commit a tag names is asked of its repository by git,
so this needs the network; an action that is pinned already is looked up anew by the version in its comment.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

_USES = re.compile(r"(?m)(uses: )([\w.-]+/[\w.-]+)(/[\w./-]+)?@(\S+)(?: # (\S+))?$")


def pinned(text: str, commit: Callable[[str, str], str]) -> str:
    """Return a workflow with each action at the commit that `commit(repository, version)` answers."""

    def one(found: re.Match[str]) -> str:
        uses, repository, folder, at, comment = found.groups()
        version = comment or at
        return f"{uses}{repository}{folder or ''}@{commit(repository, version)} # {version}"

    return _USES.sub(one, text)


def asked(repository: str, version: str, host: str = "https://github.com") -> str:
    """The commit that a tag or branch of a repository names now; SystemExit where there is none."""
    wanted = [f"refs/tags/{version}^{{}}", f"refs/tags/{version}", f"refs/heads/{version}"]
    command = ["git", "ls-remote", f"{host}/{repository}", *wanted]
    # The words are those of our own workflows.
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    lines = (line.split("\t") for line in done.stdout.splitlines())
    answered = {name: commit for commit, name in lines}
    for name in wanted:
        if name in answered:
            return answered[name]
    sys.exit(f"{repository} has no {version}: {done.stderr.strip() or 'no such tag or branch'}")


def main(files: Iterable[Path]) -> None:
    """Pin the actions of these workflows."""
    for file in files:
        file.write_text(pinned(file.read_text("utf-8"), asked), "utf-8")


if __name__ == "__main__":
    main(sorted(Path(__file__).parents[1].glob(".github/workflows/*.yml")))
