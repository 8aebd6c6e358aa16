"""The network of TRACE. Knows tensors and the model's keys; nothing of data sets, trainers or samplers."""
