"""The reference and ours side by side: a table, and last a JSON line. See --help."""

import json
from pathlib import Path
from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> None:
    """Run one benchmark."""
    from ecgfounder_train.benchmarks import benchmark_names, run_benchmark
    from ecgfounder_train.core.errors import UserError
    from ecgfounder_train.core.files import atomic_file

    if NAME is None:
        choices = "|".join(benchmark_names())
        raise UserError(f"Which benchmark? python scripts/bench.py {choices} [size=small|full]")
    outcome = run_benchmark(NAME, str(config["size"]), config.get(NAME) or {})
    print(outcome.table)
    line = json.dumps(outcome.record)
    if config["record"] is not None:
        path = Path(config["record"]) / f"{NAME}_{config['size']}.json"
        with atomic_file(path, "w") as handle:
            handle.write(json.dumps(outcome.record, indent=2) + "\n")
    print(line, flush=True)


NAME = app.leading_word()

if __name__ == "__main__":
    app.run("bench", main)
