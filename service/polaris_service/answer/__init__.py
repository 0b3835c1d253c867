"""Answers: passages in, text with citations out that were checked against the stored text.

`sentences`, `passages`, `prompt` and `citations` decide and do no I/O; `generators` speak to what
writes, `verification` asks PostgreSQL, `answerer` puts them in order.
"""
