"""One rank of one life of the soak's run: scripts/pretrain.py, with a ledger of what it trained on.

A line is written before its micro-batch is used, so that whatever a checkpoint holds stands in the
ledger.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ecgfounder_train import app

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Ledger:
    """What one rank trained on: samples by the checksum of their content.

    Args:
        path: A file of its own for every life and rank.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, step: int, batch: Mapping[str, Any]) -> None:
        """Append one micro-batch.

        The checksums are taken of what arrived: neither the index nor the order nor the position
        that the loader believes in has a part in them.
        """
        from ecgfounder_train.shards.sample import signal_checksum

        present = batch["present"].numpy()
        pairs = zip(batch["ecg"].numpy()[present], batch["stats"].numpy()[present], strict=True)
        line = {
            "step": step,
            "epoch": int(batch["epoch"]),
            "seen": [signal_checksum(ecg, stats) for ecg, stats in pairs],
            "lost": batch["rows"].numpy()[batch["quarantined"]].tolist(),
            "resident": int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES,
            "files": len(list(Path("/proc/self/fd").iterdir())),
        }
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")


def live(
    overrides: Sequence[str], ledger: Path, output: Path, environment: Mapping[str, str]
) -> NoReturn:
    """Train as scripts/pretrain.py does, as the rank that the environment says, and exit.

    Args:
        overrides: Its arguments.
        ledger: File to note in.
        output: File that what is printed is appended to.
        environment: Of this rank, as torchrun sets it.
    """
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    sys.argv = ["pretrain.py", *overrides]

    def main(config: dict[str, Any]) -> int:
        from ecgfounder_train.training import pretrain

        create_module = pretrain.create_module  # type: ignore[attr-defined]

        def create_noting_module(*arguments: Any) -> Any:
            module, facts = create_module(*arguments)
            noting, training_step = Ledger(ledger), module.training_step

            def noted_step(batch: Mapping[str, Any], batch_idx: int) -> Any:
                noting.note(module.state.optimizer_steps, batch)
                return training_step(batch, batch_idx)

            module.training_step = noted_step  # type: ignore[method-assign]
            return module, facts

        pretrain.create_module = create_noting_module  # type: ignore[assignment, attr-defined]
        return pretrain.train(config)

    app.run("pretrain", main)
