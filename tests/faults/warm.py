"""Loads what a run needs once; each run of the matrix is forked from there, with the real command line in it."""

import diffusers  # noqa: F401
import lightning  # noqa: F401
import matplotlib  # noqa: F401
import nibabel  # noqa: F401
import open_clip  # noqa: F401
import scipy.ndimage  # noqa: F401
import torch
from lightning.pytorch.loggers import CSVLogger  # noqa: F401

import trace_lightning.checkpoints
import trace_lightning.generation
import trace_lightning.module
import trace_lightning.monitoring
import trace_lightning.training  # noqa: F401
from experiments import stamps

torch.set_num_threads(1)
stamps.code_digests(f"{name}/**/*.py" for name in ("trace_lightning", "evaluation", "experiments"))  # may be edited now
