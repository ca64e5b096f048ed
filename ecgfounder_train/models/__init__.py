"""Net1D, its size table, parameter and FLOP accounting.

Start at `net1d.create_model`.
"""

from ecgfounder_train.models.accounting import (
    ParameterCount,
    count_parameters,
    forward_flops,
)
from ecgfounder_train.models.net1d import (
    MODEL_TABLE,
    Net1D,
    Net1DConfig,
    create_model,
    model_names,
)

__all__ = [
    "MODEL_TABLE",
    "Net1D",
    "Net1DConfig",
    "ParameterCount",
    "count_parameters",
    "create_model",
    "forward_flops",
    "model_names",
]
