"""Search: a question or a vector in, the nearest chunks out.

`filters`, `requests`, `polaris.routing` and `statements` decide and do no I/O; `questions` embeds, `sample`
keeps a few of their vectors, `freshness` waits, `dense` runs the one statement; `searcher` has them in order.
"""
