"""PolarisIndex: what is decided about it, and what comes of that in PostgreSQL."""
