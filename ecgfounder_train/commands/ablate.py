"""Train a grid of runs that differ in one setting, and report the differences."""

from typing import Any

WORDS = ("run", "list", "report", "table", "sweep")
"""What may follow `ablate` on the command line."""
"""What may follow `ablate` on the command line."""


def main(config: dict[str, Any], word: str | None) -> int:
    """Do what the leading word says."""
    from ecgfounder_train.core.commands import program
    from ecgfounder_train.core.errors import UserError, did_you_mean
    from ecgfounder_train.core.extras import needs

    if word not in WORDS:
        hint = did_you_mean(word or "", WORDS)
        raise UserError(f"What to do? {program('ablate')} {'|'.join(WORDS)} ...{hint}")
    if word == "report":
        from ecgfounder_train.ablation.report import report_ablation

        return report_ablation(config)
    if word == "table":
        from ecgfounder_train.ablation.sizes import print_sizes

        return print_sizes(config)
    if word == "sweep":
        with needs("search", "ablate sweep"):
            from ecgfounder_train.ablation.search import search_settings

        return search_settings(config)
    from ecgfounder_train.ablation.running import list_members, run_ablation

    return run_ablation(config) if word == "run" else list_members(config)


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("ablate")
