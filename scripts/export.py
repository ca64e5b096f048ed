"""Export weights: official form, safetensors, ONNX, a hub folder. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("export")
