"""The rules: pure functions and frozen values. No trio, no clock, no randomness, no I/O, no logging.

Instants, ids and jitter come in as arguments. Who calls: every other room.
"""
