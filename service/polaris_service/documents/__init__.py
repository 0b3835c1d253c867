"""Documents: kept by version, cut into chunks, and brought level with each generation by workers."""
