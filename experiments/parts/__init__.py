"""What several jobs share: inputs, bundled sets, the terminal, the cache of a run, the sides of a benchmark. No commands."""
