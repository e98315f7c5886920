"""One question a file; `python -m benchmarks.NAME` measures it and writes `benchmarks/results`."""
