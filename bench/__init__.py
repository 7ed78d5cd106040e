"""Benchmarks against peers and against the limit. `python -m bench.NAME --help`; results are kept in bench/results."""
