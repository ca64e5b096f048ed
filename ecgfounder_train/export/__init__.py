"""Weights for others: the official form, safetensors + JSON, ONNX, a Hugging Face folder.

Start at `session.export`, which is what `scripts/export.py` does; `hub.from_pretrained` reads the
result back.
"""
