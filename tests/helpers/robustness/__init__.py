"""Damaged inputs, killed processes, full disks: what `python -m tests.robustness` does to adapt."""
