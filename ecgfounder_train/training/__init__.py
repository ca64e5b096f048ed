"""Pretraining: `train(config)` runs or resumes a run until its budget of samples is spent.

Lightning drives the steps, ranks and precision; what must survive a kill (position, weights,
optimizer, EMA, metrics) is ours and lives in `checkpoint`. One Lightning "epoch" here is the
stretch between two validations, so that nothing of Lightning's own progress has to be restored.
"""
