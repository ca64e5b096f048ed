"""Outputs of a network: binary labels, or quantities with a unit."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from ecgfounder_train.core.errors import UserError, did_you_mean

OutputKind = Literal["binary", "regression"]
MAX_OUTPUTS = 10_000


@dataclass(frozen=True)
class Output:
    """One output of a network.

    Attributes:
        name: Of the label or the quantity.
        kind: `binary`: a logit. `regression`: a standardised quantity.
        unit: Of the quantity.
        mean, std: The quantity is output * std + mean.
    """

    name: str
    kind: OutputKind = "binary"
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Check what a file may get wrong.

        Raises:
            UserError: The kind is unknown, or the scale is not a number above 0.
        """
        if self.kind not in get_args(OutputKind):
            hint = did_you_mean(str(self.kind), get_args(OutputKind))
            raise UserError(f"Output {self.name!r} is of the unknown kind {self.kind!r}.{hint}")
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise UserError(
                f"Output {self.name!r} has mean {self.mean} and std {self.std}; both must be "
                "finite, and std above 0."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers."""
        return asdict(self)


def parse_outputs(items: Sequence[Mapping[str, Any]], where: str) -> tuple[Output, ...]:
    """Return the outputs that `to_dict` wrote.

    Raises:
        UserError: An entry is none; `where` names the file.
    """
    known = [field.name for field in fields(Output)]
    if not isinstance(items, Sequence) or len(items) > MAX_OUTPUTS:
        raise UserError(f"{where} does not list up to {MAX_OUTPUTS:,} outputs.")
    outputs = []
    for item in items:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise UserError(f"{where} lists an output without a name: {item!r}.")
        if unknown := sorted(set(item) - set(known)):
            raise UserError(
                f"{where}: output {item['name']!r} has the unknown key {unknown[0]!r}."
                + did_you_mean(unknown[0], known)
            )
        outputs.append(Output(**item))
    counts = Counter(output.name for output in outputs)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise UserError(f"{where} lists the output {twice[0]!r} twice.")
    return tuple(outputs)
