"""HTTP: thin. Each module has `router(parts)`; what it does stands in documents, search and answer."""
