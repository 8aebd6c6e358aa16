"""Six dimensions of VBench on frames in memory: no video file, hence no codec, between the volume and its score.

Huang et al., VBench: Comprehensive Benchmark Suite for Video Generative Models, CVPR 2024. `dimensions.DIMENSIONS`
lists them; each is computed as VBench's own code does, in its raw scale. `benchmarks/parity_vbench.py` compares.
"""
