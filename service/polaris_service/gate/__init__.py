"""The one pipeline below all routes: who asks, and may they; and what is written down of it.

::

    request → who (token → Caller) → may (Caller, Access, index) → the route → audit (`observed`)

Limits are not kept here: those of a body are the route's (`bodies`, `search.requests`), those of connections
the database's, and those of questions to the Kubernetes API its policy's.
"""

from polaris_service.gate.access import Access, Caller
from polaris_service.gate.pipeline import Gate, Policy

__all__ = ["Access", "Caller", "Gate", "Policy"]
