"""Measures servers and engines: `python -m serve.bench --help` lists what there is."""
