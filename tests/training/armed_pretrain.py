"""scripts/pretrain.py that kills itself: with ECG_TEST_KILL_AT=damage:7 at the seventh such call.

Ranks that Lightning starts repeat this command line and inherit the environment.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import run_tools

from ecgfounder_train import app


def main(config: dict[str, object]) -> int:
    from ecgfounder_train.training.pretrain import train

    if kill_at := os.environ.get("ECG_TEST_KILL_AT"):
        run_tools._arm(kill_at)
    return train(config)


if __name__ == "__main__":
    app.run("pretrain", main)
