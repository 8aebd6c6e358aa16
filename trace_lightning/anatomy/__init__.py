"""What every part agrees on: class ids, grids and segmenters. A leaf: imports nothing else of ours but errors."""
