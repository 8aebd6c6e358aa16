"""The experiments as data, and the pipeline that runs them; the only code that may import everything."""
