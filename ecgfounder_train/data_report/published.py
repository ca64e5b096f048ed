"""How frequent some findings of HEEDB are known to be: what the report sets its own beside."""

from typing import NamedTuple


class PublishedPrevalence(NamedTuple):
    """One published share of recordings.

    Attributes:
        labels: Names of which any one makes a recording count.
        scope: Site and reading.
        is_sample: Only the first ECGs of pairs repeated within 5 minutes, not all recordings.
    """

    labels: tuple[str, ...]
    positives: int
    denominator: int
    scope: str
    reading: str
    is_sample: bool

    @property
    def share(self) -> float:
        """Positive recordings over all."""
        return self.positives / self.denominator


_AF = ("ATRIAL FIBRILLATION",)
_SINUS = ("SINUS RHYTHM", "NORMAL SINUS RHYTHM")
_AVB1 = ("WITH 1ST DEGREE AV BLOCK",)
_RBBB = ("RIGHT BUNDLE BRANCH BLOCK",)
_LBBB = ("LEFT BUNDLE BRANCH BLOCK",)
_BRADY = ("SINUS BRADYCARDIA", "MARKED SINUS BRADYCARDIA")
_TACHY = ("SINUS TACHYCARDIA",)

PUBLISHED_PREVALENCES = (
    PublishedPrevalence(_AF, 981_273, 10_608_415, "I0001", "software", False),
    PublishedPrevalence(_AF, 792_342, 8_608_018, "I0001", "physician", False),
    PublishedPrevalence(_AF, 73_337, 998_844, "I0006", "software", False),
    PublishedPrevalence(_AF, 78_015, 998_168, "I0006", "physician", False),
    PublishedPrevalence(_SINUS, 6_690_419, 10_608_415, "I0001", "software", False),
    PublishedPrevalence(_SINUS, 627_197, 998_844, "I0006", "software", False),
    PublishedPrevalence(_AVB1, 1_321, 23_964, "I0001", "v24", True),
    PublishedPrevalence(_RBBB, 1_299, 23_964, "I0001", "v24", True),
    PublishedPrevalence(_LBBB, 522, 23_964, "I0001", "v24", True),
    PublishedPrevalence(_BRADY, 2_634, 23_964, "I0001", "v24", True),
    PublishedPrevalence(_AF, 1_992, 23_964, "I0001", "v24", True),
    PublishedPrevalence(_TACHY, 2_585, 23_964, "I0001", "v24", True),
    PublishedPrevalence(_AVB1, 1_014, 15_595, "I0006", "v24", True),
    PublishedPrevalence(_RBBB, 930, 15_595, "I0006", "v24", True),
    PublishedPrevalence(_LBBB, 310, 15_595, "I0006", "v24", True),
    PublishedPrevalence(_BRADY, 2_221, 15_595, "I0006", "v24", True),
)
"""Figures per patient (pairs more than a year apart) are left out: these are per recording.

Source: printed output of public programs that read HEEDB 5.0; the code lists of each are 161,
19|22, 101, 440|442, 460, 21|24, 23.
"""
