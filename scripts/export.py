"""Weights for others: official form, safetensors, ONNX, a hub folder. See --help."""

from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> None:
    """Write one export with its model card."""
    from ecgfounder_train.export.session import export

    exported = export(config)
    for note in exported.notes:
        print(note)
    print(f"Export: {exported.folder} (read its README.md)")


if __name__ == "__main__":
    app.run("export", main)
