"""What a prepared data set holds, on a page that may be shared; and strips on one that may not."""

from ecgfounder_train.data_report.session import (
    STRIPS_NAME,
    ReportOptions,
    write_data_report,
)
from ecgfounder_train.shards.manifest import REPORT_NAME

__all__ = ["REPORT_NAME", "STRIPS_NAME", "ReportOptions", "write_data_report"]
