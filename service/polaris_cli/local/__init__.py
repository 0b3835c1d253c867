"""Objects without a cluster.

The data folder is to `polaris plan`, `apply` and `get` what a cluster is to kubectl: its `manifests`
are what is wanted. Where `polaris up` works with it, its operator does what is to be done; otherwise
the same core runs in this process.
"""
