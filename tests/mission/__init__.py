"""The mission: from a manifest to a cited answer, on real parts, as a user in a cluster sees it."""
