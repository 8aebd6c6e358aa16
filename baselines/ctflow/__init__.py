"""CTFlow (arXiv 2508.12900): a latent flow over clips of 16 slices, each conditioned on the clip before and a report."""
