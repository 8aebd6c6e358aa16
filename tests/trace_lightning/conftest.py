import pytest

from trace_lightning.config import Experiment, TextConfig


@pytest.fixture
def tiny() -> Experiment:
    """Ours with a network of a few thousand weights on 16 x 16 images."""
    experiment = Experiment(name="tiny")
    experiment.data.size = 16
    experiment.data.num_workers = 0
    experiment.text = TextConfig("tiny", "seeded")
    model = experiment.model
    model.block_channels, model.attention_levels, model.layers_per_block = [8, 16], [1], 1
    model.norm_groups, model.unshuffle, model.text_context_dim, model.flow_adapter_channels = 4, 2, 16, 4
    experiment.diffusion.prediction_type = "sample"
    experiment.diffusion.beta_schedule = "squaredcos_cap_v2"
    experiment.train.max_steps = 4
    experiment.train.batch_size = 2
    experiment.train.warmup_steps = 1
    experiment.sample.num_inference_steps = 3
    experiment.sample.timestep_spacing = "trailing"
    experiment.run.device = "cpu"
    return experiment
