"""TRACE: 3D chest CT from a 2D diffusion model over frame pairs, and the data that all methods share."""
