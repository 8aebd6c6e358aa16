"""The built-in phantom: procedural chest CT with exact masks, reports and motion, written as a CT-RATE tree."""

from trace_lightning.data.phantom.motion import motion_path, pair_flow
from trace_lightning.data.phantom.tree import mask_path, write_tree

__all__ = ["mask_path", "motion_path", "pair_flow", "write_tree"]
