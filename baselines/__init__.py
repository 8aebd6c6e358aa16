"""The methods that TRACE is compared with, one folder each, on the same data and protocol."""
