"""One file, one job or one claim: `python -m experiments.NAME --help`."""
