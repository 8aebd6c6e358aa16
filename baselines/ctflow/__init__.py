"""CTFlow (arXiv 2508.12900): a latent flow over clips of 16 slices, each given the clip before and a report."""
