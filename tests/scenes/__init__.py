"""Scenes that tests of the operator play in: a database with its grants, Vault, a folder or a cluster."""
