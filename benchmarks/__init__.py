"""What the engine reaches, measured: `python -m benchmarks`, or one of them by name."""
