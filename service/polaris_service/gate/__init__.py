"""The one pipeline below all routes: who asks, may they, within which limits; and what is written down.

::

    request → who (token → Caller) → may (Caller, Access, index) → limits → the route → audit
"""

from polaris_service.gate.access import Access, Caller
from polaris_service.gate.pipeline import Gate, Policy

__all__ = ["Access", "Caller", "Gate", "Policy"]
