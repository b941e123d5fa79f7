"""Deliberate breakages of the engine, each with the tests that have to see it: `python -m tests.mutants`."""
