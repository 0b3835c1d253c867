"""`polaris up`."""

from __future__ import annotations

from polaris.settings import UpSettings
from polaris_cli.flags import with_settings


@with_settings(UpSettings)
def up(*, settings: UpSettings) -> None:
    """Run all of POLARIS on this machine; Ctrl-C stops it, and the next start finds its data again."""
    from polaris_cli.up import assemble

    assemble.run(settings)
