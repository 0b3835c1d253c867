"""What is particular to objects of one kind, put together for `reconcile`."""
