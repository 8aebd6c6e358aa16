"""Parity and speed against other implementations; run by `make bench-...`, not installed."""
