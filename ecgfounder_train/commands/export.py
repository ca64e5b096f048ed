"""Export weights: official form, safetensors, ONNX, a hub folder."""

from typing import Any


def main(config: dict[str, Any]) -> None:
    """Write one export with its model card."""
    from ecgfounder_train.export.session import export

    exported = export(config)
    for note in exported.notes:
        print(note)
    print(f"Export: {exported.folder} (read its README.md)")


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("export")
