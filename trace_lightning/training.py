"""Trains a row of TRACE and leaves its weights; killed and repeated, it continues where it was."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from trace_lightning.config import Experiment, uses_text
from trace_lightning.fitting import fit, is_trained
from trace_lightning.protocol import Progress

if TYPE_CHECKING:
    from trace_lightning.data.text import Embeddings


def train(experiment: Experiment, folder: Path, progress: Progress) -> None:
    """Train `experiment` in `folder`; resume from the folder's checkpoint if there is one.

    Leaves what `fitting.fit` leaves, and `samples/*.png`. `run.devices` processes share each batch.

    Raises:
        UserError: the folder holds a checkpoint of another experiment, or the loss is not finite.
    """
    from trace_lightning.data.datamodule import CTRateDataModule
    from trace_lightning.data.text import num_truncated, text_dim
    from trace_lightning.module import TraceModule
    from trace_lightning.monitoring import SampleImages
    from trace_lightning.ranks import silent, together

    folder = Path(folder)
    if is_trained(folder):
        return
    datamodule = CTRateDataModule(experiment, text_embeddings(experiment))
    datamodule.setup("fit")
    text = datamodule.text or {}
    with together(experiment.run.devices, train, experiment, folder, silent):
        fit(
            experiment,
            lambda: TraceModule(experiment, text_dim(experiment.text), datamodule.num_steps),
            datamodule,
            folder,
            network_keys(experiment),
            progress,
            callbacks=[SampleImages(folder / "samples")],
            notes={"prompts": len(text), "prompts_truncated": num_truncated(text.values())},
            divided=True,
        )


def text_embeddings(experiment: Experiment) -> Embeddings | None:
    """Return the embedding of every prompt of the experiment's patients, or None for a row without text."""
    from trace_lightning.data.cache import open_prepared
    from trace_lightning.data.text import context_length, embed_prompts, num_truncated

    if not uses_text(experiment):
        return None
    text = embed_prompts(open_prepared(experiment).prompts, experiment.text, Path(experiment.run.cache_dir))
    cut, length = num_truncated(text.values()), context_length(experiment.text)
    print(f"   {cut} of {len(text)} prompts are longer than {length} tokens; what is beyond is not read", flush=True)
    return text


def network_keys(experiment: Experiment) -> dict:
    """Return the keys that a network's weights belong to; weights are refused under any others."""
    return {
        "method": experiment.method,
        "size": experiment.data.size,
        "flow_stride": experiment.data.flow_stride,
        "window_hu": [experiment.data.hu_min, experiment.data.hu_max],
        "model": asdict(experiment.model),
        "diffusion": asdict(experiment.diffusion),
        "text": asdict(experiment.text),
        **({"known_frame": True} if experiment.train.clean_frame > 0 else {}),
    }
