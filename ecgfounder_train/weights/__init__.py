"""Weights files: run checkpoints, exported bundles and the official ECGFounder format.

`trained_model.TrainedModel` is a network together with what its input and output mean, whichever
file it is read from; evaluation, inference, fine-tuning and export start there. Add a format beside
`bundle` and `official`, and let `TrainedModel` recognise it. No loader runs code from a file.
"""
