"""Run a benchmark of the reference against this package: a table, and last a JSON line."""

import json
from pathlib import Path
from typing import Any


def main(config: dict[str, Any], word: str | None) -> None:
    """Run one benchmark."""
    from ecgfounder_train.benchmarks import benchmark_names, run_benchmark
    from ecgfounder_train.core.commands import program
    from ecgfounder_train.core.errors import UserError
    from ecgfounder_train.core.files import atomic_file

    if word is None:
        choices = "|".join(benchmark_names())
        raise UserError(f"Which benchmark? {program('bench')} {choices} [size=small|full]")
    outcome = run_benchmark(word, str(config["size"]), config.get(word) or {})
    print(outcome.table)
    line = json.dumps(outcome.record)
    if config["record"] is not None:
        path = Path(config["record"]) / f"{word}_{config['size']}.json"
        with atomic_file(path, "w") as handle:
            handle.write(json.dumps(outcome.record, indent=2) + "\n")
    print(line, flush=True)


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("bench")
