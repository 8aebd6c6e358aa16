"""Measurements that are printed, not tested: parity with other implementations, seconds, and figures."""
