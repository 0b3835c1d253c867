"""Search: a question or a vector in, the nearest chunks out.

`filters`, `requests`, `route` and `statements` decide and do no I/O; `questions` embeds,
`freshness` waits, `dense` runs the one statement; `searcher` puts them in order.
"""
