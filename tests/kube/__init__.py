"""A real Kubernetes control plane for tests: built once, started in seconds, always taken down."""
