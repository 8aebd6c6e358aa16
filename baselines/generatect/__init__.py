"""GenerateCT (Hamamci et al., ECCV 2024): report -> tokens of a coarse volume -> slices at full resolution."""
