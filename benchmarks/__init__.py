"""Benchmarks: CPU per span against what an app can run instead. ``README.md`` has the commands and the figures."""
