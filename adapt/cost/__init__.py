"""What a run costs: FLOPs counted by hand, and what this machine takes."""
