"""Names of the three splits."""

SPLITS = ("train", "val", "test")
"""In the order of the index's codes; where a merge of patients joins two splits, the later wins."""
