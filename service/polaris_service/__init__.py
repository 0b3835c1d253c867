"""The query service and its workers: documents in, passages and answers out. Holds no state."""
