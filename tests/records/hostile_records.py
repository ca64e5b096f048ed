"""Mutated records through reader and profiles, in a process of its own with limits.

A case is a number: from it follow the format, the damage and the profile. The process may use 3 GB
and each case 20 seconds of processor time; what is no RejectedRecordError ends it.
"""

import json
import resource
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
import yaml

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records import STANDARD_LEADS, SignalProfile, read_record

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "signal"
MEMORY_BYTES = 3 << 30
CASE_CPU_S = 20
NUM_SAMPLES = 2600
BITS = {"8": 8, "16": 16, "24": 24, "32": 32, "61": 16, "80": 8, "160": 16, "212": 12, "310": 10.7,
        "311": 10.7, "16+24": 16}  # fmt: skip
FLAC = {"508": "PCM_S8", "516": "PCM_16", "524": "PCM_24"}
FORMATS = (*BITS, *FLAC, "segments")

NUMBERS = ["0", "-1", "1", "13", "512", "513", "1000000000000", "9" * 25, "1e9", "NaN", "inf", "",
           "0x10", "١٢", "12.5", "2147483648", "-2147483649"]  # fmt: skip
HOSTILE = {
    "num_signals": NUMBERS,
    "fs": [*NUMBERS, "500/0", "500/1e300(5)", "49.9", "20000.1", "99999", "1e-300", "-500", "977.3",
           "1000", "5000", "20000"],
    "num_samples": [*NUMBERS, "2600000000000", "5200", "2599", "2601"],
    "file": ["../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/stdin", "-", "~", ".", "..",
             "http://localhost/r.dat", "s3://b/r.dat", "r.hea", "other.dat", "a" * 5000, "r.dat\0",
             "r.dat/", "\\\\host\\r.dat", "C:r.dat", "$HOME", "*.dat", "r.dat|ls"],
    "fmt": ["0", "-16", "17", "16x0", "16x2", "16x1000000", "16:5", "16:99999999", "16+1", "16+24",
            "16+999999999999", "212", "80", "8", "508", "516", "524", "310", "16.5", "16x1:1+1"],
    "gain": ["0", "nan", "NaN/mV", "-1000", "1e-320", "1e308", "inf", "1e999", "0/uV", "(5)",
             "1000(2147483648)/mV", "1000(-99999999999)/mV", "1000(1e5)/mV", "200/V", "1e9/nV",
             "1/kg", "1000/", "/mV", "0.001", "1000(0)/mV/mV", "1e-3/V"],
    "zero": [*NUMBERS, "32768", "-32768"],
    "name": ["", "I", "II", "aVR", "V1", "ECG", " ", "I I", "\u202eI", "V1" * 3000, "#", "MLII"],
}  # fmt: skip
TEXTS = [b"\0", b"\xff\xfe", b"\n", b"#", b" ", b"/", b"~", b"-", b"\r\n", b"(", b"1e999",
         "é".encode("latin-1"), b"PK\x03\x04", b"MATLAB 5.0"]  # fmt: skip


def header_lines(fmt: str) -> list[list[str]]:
    file = "r.mat" if fmt == "16+24" else "r.dat"
    gain = {"8": "10/mV", "80": "50/mV"}.get(fmt, "1000/mV")
    if fmt == "segments":
        return [["r/3", "12", "500", str(NUM_SAMPLES)], ["p", "1300"], ["~", "0"], ["p", "1300"]]
    lines = [["r", "12", "500", str(NUM_SAMPLES)]]
    return lines + [[file, fmt, gain, "16", "0", "0", "0", "0", lead] for lead in STANDARD_LEADS]


def signal_bytes(fmt: str, rng: np.random.Generator, path: Path) -> bytes:
    num_samples = 1300 if fmt == "segments" else NUM_SAMPLES
    ecg = rng.normal(0, 20, (num_samples, 12)).cumsum(axis=0) * 0.3
    ecg += 800 * (np.arange(num_samples) % 400 == 50)[:, None]
    if fmt in FLAC:
        # Eight channels are FLAC's limit; the header that promises twelve is damage enough.
        soundfile.write(path, ecg[:, :8] / 30000, 96000, subtype=FLAC[fmt], format="FLAC")
        return path.read_bytes()
    if fmt in ("16", "16+24", "segments"):
        data = ecg.astype("<i2").tobytes()
        prefix = np.array([30, 12, num_samples, 0, 4], "<i4").tobytes() + b"val\0"
        return (prefix if fmt == "16+24" else b"") + data
    return rng.bytes(int(NUM_SAMPLES * 12 * BITS[fmt] / 8) + 8)


def mutate_header(lines: list[list[str]], rng: np.random.Generator) -> bytes:
    fields = {"num_signals": (0, 1), "fs": (0, 2), "num_samples": (0, 3)}
    where = {"file": 0, "fmt": 1, "gain": 2, "zero": 4, "name": 8}
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        kind = str(rng.choice(list(HOSTILE)))
        row, column = fields.get(kind) or (rng.integers(1, len(lines)), where[kind])
        # One signal line, or all of them alike.
        rows = [row] if row == 0 or rng.random() < 0.5 else range(1, len(lines))
        token = str(rng.choice(HOSTILE[kind]))
        for each in rows:
            if column < len(lines[each]):
                lines[each][column] = token
    if rng.random() < 0.08:
        at, to = rng.integers(0, len(lines), 2)
        lines[at] = list(lines[to])
    if rng.random() < 0.05:
        del lines[rng.integers(0, len(lines))]
    content = "\n".join(" ".join(line) for line in lines).encode() + b"\n"
    return mutate_bytes(content, rng) if rng.random() < 0.2 else content


def mutate_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(content) + 1))
        kind = rng.integers(0, 7)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + TEXTS[rng.integers(len(TEXTS))] + content[at:]
        elif kind == 2:
            content = content[:at] + rng.bytes(4) + content[at + 4 :]
        elif kind == 3:
            content = content[:at] + content[at + int(rng.integers(1, 40)) :]
        elif kind == 4:
            content = content + content[-int(rng.integers(1, 100)) :]
        elif kind == 5:
            content = content[:at] + bytes(len(content) - at)
        elif rng.random() < 0.2:
            content = b"\0\x80" * (len(content) // 2)
    return content


def write_case(folder: Path, case: int) -> Path:
    """Write the damaged record of a case and return its path."""
    rng = np.random.default_rng([77, case])
    for old in folder.iterdir():
        old.unlink()
    fmt = FORMATS[case % len(FORMATS)]
    content = signal_bytes(fmt, rng, folder / "r.dat")
    header = mutate_header(header_lines(fmt), rng)
    if rng.random() < 0.4:
        content = mutate_bytes(content, rng)
    if fmt == "segments":
        part = header_lines("16")
        part[0] = ["p", "12", "500", "1300"]
        for line in part[1:]:
            line[0] = "p.dat"
        damaged = mutate_header(part, rng) if rng.random() < 0.5 else None
        plain = "\n".join(" ".join(line) for line in part).encode()
        (folder / "p.hea").write_bytes(damaged if damaged is not None else plain)
        (folder / "p.dat").write_bytes(content)
    else:
        (folder / ("r.mat" if fmt == "16+24" else "r.dat")).write_bytes(content)
    (folder / "r.hea").write_bytes(header)
    return folder / "r"


def profiles() -> list[SignalProfile]:
    found = []
    for name, fs in (("official", 500), ("paper", 100), ("author", 500), ("zscore", 100)):
        config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        config["limits"]["max_missing_fraction"] = 0.5
        config["windows"]["policy"] = "consecutive"
        found.append(SignalProfile.from_config({**config, "fs": fs}))
    return found


def run_case(path: Path, profile: SignalProfile) -> str:
    """Return the reason of the rejection, or "written"."""
    try:
        result = profile.apply(read_record(path))
    except RejectedRecordError as error:
        assert error.reason in set(RejectReason)
        assert error.detail
        assert str(path.parent) not in error.detail
        assert "passwd" not in error.detail
        return error.reason.value
    assert result.windows
    for window in result.windows:
        assert window.ecg.shape == profile.shape
        assert np.isfinite(window.stats).all()
    return "written"


def main(folder: str, first: int, stop: int) -> None:
    """Print the outcomes of the cases as JSON: reason -> how often."""
    warnings.simplefilter("ignore")
    chosen = profiles()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    outcomes: Counter[str] = Counter()
    for case in range(first, stop):
        path = write_case(Path(folder), case)
        signal.setitimer(signal.ITIMER_PROF, CASE_CPU_S)
        try:
            outcomes[run_case(path, chosen[case // len(FORMATS) % len(chosen)])] += 1
        except BaseException as error:
            error.add_note(f"in case {case}: {path.with_suffix('.hea').read_bytes()[:300]!r}")
            raise
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
