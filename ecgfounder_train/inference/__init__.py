"""Inference with a trained model: ECG files of many formats in, named probabilities out."""

from ecgfounder_train.inference.find import FoundRecords, RecordReference, find_records
from ecgfounder_train.inference.inputs import InputOptions, read_file
from ecgfounder_train.inference.model import EcgModel, RecordPredictions, load_model
from ecgfounder_train.inference.pipeline import PipelineSettings
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.inference.table import OutputTable

__all__ = [
    "EcgModel",
    "FoundRecords",
    "InputOptions",
    "OutputTable",
    "PipelineSettings",
    "RecordPredictions",
    "RecordReference",
    "Remark",
    "WarningCode",
    "find_records",
    "load_model",
    "read_file",
]
