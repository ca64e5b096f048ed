"""A grid of ordinary runs that differ in one thing, and what the difference is. See --help."""

from typing import Any

from ecgfounder_train import app

WORDS = ("run", "list", "report", "table", "sweep")


def main(config: dict[str, Any]) -> int:
    """Do what the leading word says."""
    from ecgfounder_train.core.errors import UserError, did_you_mean

    if WORD not in WORDS:
        hint = did_you_mean(WORD or "", WORDS)
        raise UserError(f"What to do? python scripts/ablate.py {'|'.join(WORDS)} ...{hint}")
    if WORD == "report":
        from ecgfounder_train.ablation.report import report_ablation

        return report_ablation(config)
    if WORD == "table":
        from ecgfounder_train.ablation.sizes import print_sizes

        return print_sizes(config)
    if WORD == "sweep":
        from ecgfounder_train.ablation.search import search_settings

        return search_settings(config)
    from ecgfounder_train.ablation.running import list_members, run_ablation

    return run_ablation(config) if WORD == "run" else list_members(config)


WORD = app.leading_word()

if __name__ == "__main__":
    app.run("ablate", main)
