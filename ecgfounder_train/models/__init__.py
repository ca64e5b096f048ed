"""Net1D, its size table, parameter and FLOP accounting, and the released weights.

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
from ecgfounder_train.models.official import load_official

__all__ = [
    "MODEL_TABLE",
    "Net1D",
    "Net1DConfig",
    "ParameterCount",
    "count_parameters",
    "create_model",
    "forward_flops",
    "load_official",
    "model_names",
]
