"""The operator: makes PolarisDatabase and PolarisIndex true in PostgreSQL.

Gather (`observe`), decide (`plan`, pure), act (`apply`), observe again, report (`conditions`). The
same core serves a cluster, a folder of manifests, and the command line.
"""
