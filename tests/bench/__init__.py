"""`make bench`: what POLARIS costs above bare SQL and a bare API server, as ratios of one run.

    make bench                                       all, at full size
    make bench ARGS="search --rows 10000"            one of them, small

What is measured, and the last figures: docs/benchmarks.md.
"""
