"""Fine-tune a pretrained network on a table of answers, or resume. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("finetune")
