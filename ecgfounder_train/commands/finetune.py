"""Fine-tune a pretrained network on a table of answers, or resume."""

from typing import Any


def main(config: dict[str, Any]) -> int:
    """Fine-tune once, or once per share of the labels, way of starting and seed."""
    from ecgfounder_train.finetuning.label_efficiency import label_efficiency
    from ecgfounder_train.finetuning.session import finetune

    return label_efficiency(config) if config["label_fractions"] else finetune(config)


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("finetune")
