"""The verbs of the command line, one module each with a `main` that takes the composed config.

They import what they need inside `main`: --help and a wrong value cost no import of torch.
"""
