from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kube.build import BuildError
from node import build, images, machine
from node.node import Given, Node
from soak import SOAKING

HERE = Path(__file__).parent
GIVEN = os.environ.get(machine.GIVEN)
# What is said at the end: measured on the way.
_REPORTED: list[str] = []

# Those need a cluster of our own: they drain nodes, change its images, or look at what it leaves behind.
_OWN = [
    "test_bom.py",
    "test_disruption.py",
    "test_given.py",
    "test_images.py",
    "test_own_node.py",
    "test_two_nodes.py",
]
collect_ignore = _OWN if GIVEN else []
if not SOAKING or GIVEN or machine.why_not():
    collect_ignore = [*collect_ignore, "test_reproducible.py"]
# What needs none of POLARIS's images.
_WITHOUT_IMAGES = {"test_given.py", "test_node.py", "test_own_node.py", "test_two_nodes.py"}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build before the first test what takes minutes: no test's timeout is for that."""
    files = {item.path.name for item in session.items if item.path.parent == HERE}
    if GIVEN or not files or session.config.option.collectonly:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            build.binaries()
            for target in images.TARGETS if files - _WITHOUT_IMAGES else ():
                images.of_polaris(target)
        except BuildError as error:
            pytest.exit(str(error), returncode=1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _REPORTED:
        terminalreporter.write_line(line)


@pytest.fixture
def report() -> Callable[[str], None]:
    """Have a line printed after the tests: what was measured on the way."""
    return _REPORTED.append


@pytest.fixture(scope="session")
def node() -> Iterator[Node | Given]:
    """A cluster whose pods run, shared by the whole session: use namespaces of your own."""
    if GIVEN:
        with Given(Path(GIVEN)) as given:
            yield given
        return
    with Node() as own:
        _REPORTED.append(f"the node started in {own.start_seconds:.1f} s")
        yield own


@pytest.fixture(scope="session")
def two_nodes() -> Iterator[Node]:
    """A cluster of two nodes, shared by the whole session: who drains one brings it back."""
    with Node(workers=2) as own:
        _REPORTED.append(f"the two nodes started in {own.start_seconds:.1f} s")
        yield own


@pytest.fixture
def namespace(node: Node | Given) -> Iterator[str]:
    """A namespace of the test's own, with the strictest Pod Security."""
    with fresh_namespace(node) as name:
        yield name


@contextlib.contextmanager
def fresh_namespace(node: Node | Given) -> Iterator[str]:
    """A namespace with the strictest Pod Security, as long as the context lasts."""
    name = f"test-{secrets.token_hex(4)}"
    node.kubectl("create", "namespace", name)
    node.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    node.kubectl("delete", "namespace", name, "--wait=false")


def _built(target: str) -> images.Image:
    image = images.of_polaris(target)
    if str(image) not in _REPORTED:
        _REPORTED.append(str(image))
    return image


def _loaded(node: Node | Given, target: str) -> images.Image:
    if GIVEN:
        return images.Image(images.name_of(target), Path())
    image = _built(target)
    node.load(image)
    return image


@pytest.fixture(scope="session")
def polaris_archive() -> images.Image:
    """The image of operator, service and worker, as a file."""
    return _built("polaris")


@pytest.fixture(scope="session")
def embedder_archive() -> images.Image:
    """The image of the embedder, as a file."""
    return _built("embedder")


@pytest.fixture(scope="session")
def demo_archive() -> images.Image:
    """The image of PostgreSQL and OpenBao, as a file."""
    return _built("demo")


@pytest.fixture(scope="session")
def polaris_image(node: Node | Given) -> images.Image:
    """The image of operator, service and worker, on the node."""
    return _loaded(node, "polaris")


@pytest.fixture(scope="session")
def embedder_image(node: Node | Given) -> images.Image:
    """The image of the embedder, on the node."""
    return _loaded(node, "embedder")


@pytest.fixture(scope="session")
def demo_image(node: Node | Given) -> images.Image:
    """The image of PostgreSQL and OpenBao, on the node."""
    return _loaded(node, "demo")
