"""The data that all methods share: CT-RATE's tree or the built-in phantom, prepared once and read by memory map."""
