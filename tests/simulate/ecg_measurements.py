"""Measurements a reader takes off an ECG, from the samples alone: nothing here knows the truth.

`measure` finds spikes, beats and the median of the usual beat and returns named numbers;
`LABEL_MEASUREMENTS` names for each label the one number that should tell it from other ECGs.
"""

from collections.abc import Callable

import numpy as np
from scipy.signal import butter, find_peaks, sosfiltfilt

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LEAD = {name: index for index, name in enumerate(LEADS)}
FS = 500.0
BEFORE, AFTER = round(0.45 * FS), round(0.60 * FS)
_BAND = butter(2, [5, 30], "bandpass", fs=FS, output="sos")
_SMOOTH = butter(2, 45, "lowpass", fs=FS, output="sos")
_DRIFT = butter(2, 0.5, "highpass", fs=FS, output="sos")


def _spikes(signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pacing spikes (sample numbers), and the signal with lines in their place."""
    bend = np.abs(np.diff(signal, 2, axis=1)).max(axis=0)
    found, _ = find_peaks(bend, height=0.22, distance=4)
    found = found + 1
    clean = signal.copy()
    for spike in found:
        first, last = max(spike - 3, 0), min(spike + 7, signal.shape[1] - 1)
        clean[:, first : last + 1] = np.linspace(
            clean[:, first], clean[:, last], last - first + 1
        ).T
    return found, clean


def _beats(signal: np.ndarray) -> np.ndarray:
    """Sample numbers of the QRS complexes, from the steepness of all leads together."""
    band = sosfiltfilt(_BAND, signal, axis=1)
    # Not squared: a broad ectopic beat is slow, and must not drown beside narrow ones.
    slope = np.abs(np.gradient(band, axis=1)).sum(axis=0)
    width = round(0.10 * FS)
    energy = np.convolve(slope, np.ones(width) / width, "same")
    energy -= np.quantile(energy, 0.2)
    height = 0.27 * np.quantile(energy, 0.95)
    peaks, _ = find_peaks(energy, height=height, distance=round(0.25 * FS))
    return peaks


def _usual(beats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The median of the usual beats, and how like it each beat's QRS is. Shape: (beats, 12, T)."""
    middle = slice(BEFORE - 50, BEFORE + 60)
    shapes = beats[:, :, middle].reshape(len(beats), -1)
    likeness = np.corrcoef(shapes) if len(beats) > 1 else np.ones((1, 1))
    leader = int((likeness > 0.85).sum(axis=0).argmax())
    return np.median(beats[likeness[leader] > 0.85], axis=0), likeness[leader]


def _extent(beat: np.ndarray) -> tuple[int, int]:
    """First and last sample of the QRS, from the speed of all leads together."""
    speed = np.abs(np.gradient(sosfiltfilt(_SMOOTH, beat, axis=1), axis=1)).sum(axis=0)
    speed = np.convolve(speed, np.ones(5) / 5, "same")
    window = slice(BEFORE - 60, BEFORE + 70)
    peak = int(speed[window].argmax()) + BEFORE - 60
    floor = 0.09 * speed[peak] + np.quantile(speed, 0.15)

    def walk(step: int, limit: int) -> int:
        at, quiet = peak, 0
        while at != limit and quiet < 8:
            at += step
            quiet = quiet + 1 if speed[at] < floor else 0
        return at - step * quiet

    return walk(-1, BEFORE - 85), walk(1, BEFORE + 110)


def measure(signal: np.ndarray) -> dict[str, float]:
    """Return the measurements of one ECG of 500 Hz. Shape: (12, T) in mV."""
    spikes, clean = _spikes(signal)
    clean = sosfiltfilt(_DRIFT, clean, axis=1)
    centres = _beats(clean)
    inside = centres[(centres > BEFORE) & (centres < clean.shape[1] - AFTER)]
    if len(inside) < 2:
        inside = np.array([BEFORE + 10, clean.shape[1] // 2])
    stack = np.stack([clean[:, at - BEFORE : at + AFTER] for at in inside])
    beat, likeness = _usual(stack)
    onset, offset = _extent(beat)
    beat = beat - beat[:, max(onset - 8, 0) : onset + 1].mean(axis=1, keepdims=True)
    found = _rhythm(centres, inside, likeness, stack, onset, offset)
    found |= _waves(beat, onset, offset, found["rr_s"])
    found |= _pacing(spikes, centres, onset, found)
    found |= _atria(clean, inside, onset, beat)
    return found


def _rhythm(
    centres: np.ndarray,
    inside: np.ndarray,
    likeness: np.ndarray,
    stack: np.ndarray,
    onset: int,
    offset: int,
) -> dict[str, float]:
    rr = np.diff(centres) / FS
    middle = float(np.median(rr))
    deviation = rr - rr.mean()
    odd = likeness < 0.85
    previous = np.array(
        [(at - max(centres[centres < at], default=at - middle * FS)) / FS for at in inside]
    )
    early, late = previous < 0.86 * middle, previous > 1.25 * middle
    # Breathing changes RR slowly; ectopy and fibrillation at random.
    jumps = np.diff(rr)
    longest = np.sort(rr)[-max(3, len(rr) // 3) :]
    return {
        "rr_s": middle,
        "heart rate": 60.0 / float(rr.mean()),
        "RR irregularity": float(rr.std() / rr.mean()),
        "RR jump": float(np.quantile(np.abs(jumps), 0.35) / middle) if len(jumps) else 0.0,
        "RR smoothness": float((deviation[1:] * deviation[:-1]).sum() / (deviation**2).sum())
        if len(rr) > 3 and rr.std() > 0.02
        else -1.0,
        "longest RR": float(rr.max() / middle),
        "longest RR s": float(rr.max()),
        "gap near two cycles": -abs(float(rr.max() / middle) - 2.0),
        "same longest RR": -float(np.ptp(longest) / middle),
        "premature wide beats": float((odd & early).sum()),
        "premature narrow beats": float((~odd & early).sum()),
        "premature beats": float(early.sum()),
        "odd beats in time": float((odd & ~early & ~late).sum()),
        "late odd beats": float((odd & late).sum()),
        "late usual beats": float((~odd & late).sum()),
        "odd beats": float(odd.sum()),
        "odd share": float(odd.mean()),
        "early late right force": float(
            max(
                (s[LEAD["V1"], offset - 10 : offset + 30].max() for s in stack[odd & early]),
                default=0,
            )
        ),
    }


def _waves(beat: np.ndarray, onset: int, offset: int, rr_s: float) -> dict[str, float]:
    qrs = beat[:, onset : offset + 1]
    found = {
        "QRS duration": (offset - onset) / FS,
        "area 1": qrs[0].sum(),
        "area avf": qrs[5].sum(),
    }
    half = len(qrs[0]) // 2
    for name, lead in LEAD.items():
        wave = qrs[lead]
        top = int(wave.argmax())
        found[f"R {name}"] = float(max(wave.max(), 0.0))
        found[f"S {name}"] = float(max(-wave.min(), 0.0))
        found[f"Q {name}"] = float(max(-wave[: max(top, 1)].min(), 0.0))
        found[f"early {name}"] = float(wave[: max(half, 1)].sum() / FS)
        found[f"late {name}"] = float(wave[half:].sum() / FS)
        found[f"end {name}"] = float(wave[-max(len(wave) // 3, 1) :].mean())
        st = beat[lead, min(offset + 20, beat.shape[1] - 1)]
        found[f"ST {name}"] = float(st)
        after = beat[
            lead, min(offset + 40, beat.shape[1] - 2) : BEFORE + round(min(0.55, 0.75 * rr_s) * FS)
        ]
        extreme = int(np.abs(after).argmax()) if len(after) else 0
        found[f"T {name}"] = float(after[extreme]) if len(after) else 0.0
    axis = np.degrees(np.arctan2(found["area avf"] * 2 / np.sqrt(3), found["area 1"]))
    found["axis"] = float(axis)
    found["limb voltage"] = float(np.ptp(qrs[:6], axis=1).max())
    found["Sokolow"] = found["S V1"] + max(found["R V5"], found["R V6"])
    v1 = beat[LEAD["V1"], onset : offset + 15]
    valley = int(v1[: max(len(v1) * 2 // 3, 1)].argmin())
    found["R' V1"] = float(v1[valley:].max())
    t_wave = np.sqrt((beat[[1, 7, 8, 9, 10], offset + 30 :] ** 2).sum(axis=0))
    t_wave = t_wave[: round(min(0.55, 0.8 * rr_s) * FS)]
    qt = 0.0
    if len(t_wave) > 40:
        smooth = np.convolve(t_wave, np.ones(15) / 15, "same")
        top = int(smooth[10:].argmax()) + 10
        fall = np.gradient(smooth)
        steep = top + int(fall[top : top + 100].argmin())
        end = steep - (smooth[steep] - smooth[-15:].min()) / min(fall[steep], -1e-6)
        qt = (offset + 30 + min(end, len(t_wave)) - onset) / FS
    found["QT"] = qt
    found["QTc"] = qt + 0.154 * (1 - rr_s)
    found["P"] = 0.0
    # The P wave: within 400 ms before the QRS, after the T wave of the beat before.
    first = max(0, onset - round(np.clip(rr_s - qt - 0.03, 0.2, 0.40) * FS))
    before = sosfiltfilt(_SMOOTH, beat[:, : onset + 1], axis=1)[:, first : onset - 4]
    if before.shape[1] > 30:
        # Its zero is the quietest 24 ms: with a short PR the P wave ends where the QRS begins.
        moves = np.abs(np.gradient(before[[1, 5, 7]], axis=1)).sum(axis=0)
        quiet = int(np.convolve(moves, np.ones(12), "valid").argmin())
        p = before - before[:, quiet : quiet + 12].mean(axis=1, keepdims=True)
        size = np.abs(p[[1, 5, 7]]).sum(axis=0)
        at = int(size.argmax())
        found["P"] = float(size[at])
        found["P II"] = float(p[1, at])
        found["P inferior"] = float(p[1, at] + p[5, at])
        shown = np.flatnonzero(size > 0.15 * size[at])
        begin = at
        while begin > 0 and size[begin - 1] > 0.12 * size[at]:
            begin -= 1
        end = min(shown[-1], at + 50)
        found["PR"] = (onset - first - begin) / FS
        found["P terminal V1"] = float(-p[6, at : end + 1].min(initial=0.0))
        found["P duration"] = float((end - begin) / FS)
    else:
        found |= {
            "P II": 0.0,
            "P inferior": 0.0,
            "PR": 0.0,
            "P terminal V1": 0.0,
            "P duration": 0.0,
        }
    found["J slur"] = float(np.mean([found[f"ST {name}"] for name in ("V3", "V4", "V5")]))
    return found


def _pacing(
    spikes: np.ndarray, centres: np.ndarray, onset: int, found: dict[str, float]
) -> dict[str, float]:
    gaps = (centres[:, None] - spikes) / FS if len(spikes) else np.full((len(centres), 1), np.inf)
    ventricular = ((gaps > 0.0) & (gaps < 0.105)).any(axis=1)
    atrial = ((gaps > 0.12) & (gaps < 0.40)).any(axis=1)
    double = (((gaps > 0.0) & (gaps < 0.105)).sum(axis=1) >= 2).mean()
    captured = (
        ((centres[:, None] - spikes > 0) & (centres[:, None] - spikes < 0.40 * FS)).any(axis=0)
        if len(spikes)
        else np.ones(1, bool)
    )
    inner = spikes[(spikes > 0.5 * FS) & (spikes < 9.3 * FS)] if len(spikes) else spikes
    v, a = float(ventricular.mean()), float(atrial.mean())
    some = float(0.05 < v < 0.8)
    return {
        "ventricular spikes": v,
        "atrial spikes": a,
        "both spikes": float((ventricular & atrial).mean()),
        "ventricular spikes alone": float((ventricular & ~atrial).mean()),
        "atrial spikes alone": float((atrial & ~ventricular).mean()),
        "double spikes": float(double),
        "some ventricular spikes": some * float((ventricular & ~atrial).sum() > 0) * (1 + v),
        "some dual spikes": float(0.05 < (ventricular & atrial).mean() < 0.7),
        "some atrial spikes": float(0.05 < (atrial & ~ventricular).mean() < 0.7),
        "spikes without a beat": float((~captured).sum()) + 0.0 * len(inner),
    }


def _atria(clean: np.ndarray, inside: np.ndarray, onset: int, beat: np.ndarray) -> dict[str, float]:
    """What the atria do: flutter's one frequency, waves that do not belong to a QRS."""
    lead = clean[[1, 5, 6]]
    keep = np.ones(lead.shape[1], bool)
    for at in inside:
        keep[max(at - 40, 0) : at + 45] = False
    time_s = np.flatnonzero(keep) / FS
    kept = lead[:, keep] - lead[:, keep].mean(axis=1, keepdims=True)
    # P and T waves repeat too, but their low harmonics are the larger ones.
    waves = np.exp(-2j * np.pi * np.arange(1.6, 5.7, 0.1)[:, None] * time_s)
    tones = np.abs(waves @ kept.T).sum(axis=1) / len(time_s) * 2
    best = float(tones[26:].max() - 0.7 * tones[:20].max())
    # How much of the stretch before the QRS is the same in every beat (P waves are).
    before = np.stack(
        [
            clean[[1, 5, 7], at - BEFORE + onset - 130 : at - BEFORE + onset - 5]
            for at in inside
            if at - BEFORE + onset - 130 >= 0
        ]
    )
    if len(before) < 2:
        return {"flutter tone": best, "P constancy": 0.0, "atrial activity": 0.0}
    before = before - before.mean(axis=2, keepdims=True)
    common = np.median(before, axis=0)
    rest = before - common
    return {
        "flutter tone": best,
        "P constancy": float(common.std() / (common.std() + rest.std() + 1e-9)),
        "atrial activity": float(rest.std()),
    }


Features = dict[str, float]
Measurement = Callable[[Features], float]


def _st(*leads: str) -> Measurement:
    return lambda f: min(f[f"ST {lead}"] for lead in leads)


def _q(*leads: str) -> Measurement:
    """Smallest Q of these leads against the R there."""
    return lambda f: min(f[f"Q {lead}"] / (f[f"R {lead}"] + 0.2) for lead in leads)


def _no_r(*leads: str) -> Measurement:
    return lambda f: -max(f[f"R {lead}"] - f[f"Q {lead}"] for lead in leads)


def _near(name: str, value: float) -> Measurement:
    return lambda f: -abs(f[name] - value)


def _of(name: str, sign: float = 1.0) -> Measurement:
    return lambda f: sign * f[name]


def _right_block(f: Features) -> float:
    return min(f["end V1"], 0.3) - min(f["end V6"], 0.1) + 4 * (f["QRS duration"] - 0.11)


def _left_block(f: Features) -> float:
    return (f["early I"] - f["late V1"] * 0.5) * 10 + 8 * f["QRS duration"] - f["R V1"] * 2


def _superior(f: Features) -> float:
    return -abs((f["axis"] + 130 + 180) % 360 - 180)


def _rightness(f: Features) -> float:
    """Axis counted from -90 onwards, so that the right side comes last."""
    return (f["axis"] + 90) % 360


def _no_p(f: Features) -> float:
    return -f["P"] * f["P constancy"]


LABEL_MEASUREMENTS: dict[str, tuple[str, Measurement]] = {
    "SINUS BRADYCARDIA": (
        "slow rate with P waves",
        lambda f: -f["heart rate"] + 30 * min(f["P"], 0.3),
    ),
    "MARKED SINUS BRADYCARDIA": ("heart rate, low", _of("heart rate", -1)),
    "SINUS TACHYCARDIA": ("heart rate", _of("heart rate")),
    "ATRIAL FIBRILLATION": (
        "RR jumps without constant P",
        lambda f: min(f["RR jump"], 0.2) - 0.2 * f["P constancy"],
    ),
    "WITH RAPID VENTRICULAR RESPONSE": (
        "rate x RR jumps",
        lambda f: f["heart rate"] * min(f["RR jump"], 0.15),
    ),
    "WITH SLOW VENTRICULAR RESPONSE": (
        "RR jumps at a low rate",
        lambda f: min(f["RR jump"], 0.12) * 10 - f["heart rate"] / 50,
    ),
    "ATRIAL FLUTTER": ("one frequency of 4.2-5.6 Hz between QRS", _of("flutter tone")),
    "WITH 2:1 AV CONDUCTION": (
        "flutter tone x rate",
        lambda f: f["flutter tone"] - abs(f["heart rate"] - 145) / 300,
    ),
    "WITH VARIABLE AV BLOCK": (
        "flutter tone x RR irregularity",
        lambda f: f["flutter tone"] * f["RR irregularity"],
    ),
    "LEFT AXIS DEVIATION": ("axis near -55", _near("axis", -55)),
    "ABNORMAL LEFT AXIS DEVIATION": ("axis near -55", _near("axis", -55)),
    "LEFTWARD AXIS": ("axis near -22", _near("axis", -22)),
    "RIGHT AXIS DEVIATION": ("axis to the right", _rightness),
    "ABNORMAL RIGHT AXIS DEVIATION": ("axis to the right", _rightness),
    "RIGHTWARD AXIS": ("axis near 95", _near("axis", 95)),
    "RIGHT SUPERIOR AXIS DEVIATION": ("axis near -130", _superior),
    "PREMATURE VENTRICULAR COMPLEXES": ("premature odd beats", _of("premature wide beats")),
    "IN A PATTERN OF BIGEMINY": (
        "share of odd premature beats",
        lambda f: min(f["odd share"], 0.5) + 0.1 * f["premature wide beats"],
    ),
    "PREMATURE ATRIAL COMPLEXES": (
        "premature usual beats, RR else even",
        lambda f: min(f["premature narrow beats"], 3) - 20 * min(f["RR jump"], 0.2),
    ),
    "PREMATURE SUPRAVENTRICULAR COMPLEXES": (
        "premature usual beats, RR else even",
        lambda f: min(f["premature narrow beats"], 3) - 20 * min(f["RR jump"], 0.2),
    ),
    "PREMATURE ECTOPIC COMPLEXES": (
        "premature beats of both kinds",
        lambda f: (
            min(f["premature wide beats"], 2)
            + min(f["premature narrow beats"], 1)
            - 8 * min(f["RR jump"], 0.2)
        ),
    ),
    "WITH PREMATURE VENTRICULAR OR ABERRANTLY CONDUCTED COMPLEXES": (
        "premature odd beats in uneven RR",
        lambda f: min(f["premature wide beats"], 2) * f["RR jump"],
    ),
    "PREMATURE VENTRICULAR AND FUSION COMPLEXES": (
        "premature odd beats and odd beats nearly in time",
        lambda f: f["premature wide beats"] + f["odd beats in time"],
    ),
    "ABERRANT CONDUCTION": ("late R in V1 of premature beats", _of("early late right force")),
    "FUSION COMPLEXES": ("odd beats in time", _of("odd beats in time")),
    "RIGHT BUNDLE BRANCH BLOCK": ("late force to V1, away from V6", _right_block),
    "BIFASCICULAR BLOCK": (
        "late force to V1 and axis off",
        lambda f: _right_block(f) + min(abs(f["axis"] - 30), 90) / 90,
    ),
    "RBBB AND LEFT ANTERIOR FASCICULAR BLOCK": (
        "late force to V1 and left axis",
        lambda f: min(_right_block(f), 0.4) - abs(f["axis"] + 60) / 90,
    ),
    "RBBB AND LEFT POSTERIOR FASCICULAR BLOCK": (
        "late force to V1 and right axis",
        lambda f: min(_right_block(f), 0.4) - abs(_rightness(f) - 210) / 90,
    ),
    "INCOMPLETE RIGHT BUNDLE BRANCH BLOCK": (
        "R' in V1, QRS not broad",
        lambda f: f["R' V1"] - 12 * max(f["QRS duration"] - 0.115, 0),
    ),
    "RSR' OR QR PATTERN IN V1 SUGGESTS RIGHT VENTRICULAR CONDUCTION DELAY": (
        "R' in V1, QRS not broad",
        lambda f: f["R' V1"] - 12 * max(f["QRS duration"] - 0.105, 0),
    ),
    "RSR' PATTERN IN V1": (
        "R' in V1, QRS not broad",
        lambda f: f["R' V1"] - 12 * max(f["QRS duration"] - 0.105, 0),
    ),
    "LEFT BUNDLE BRANCH BLOCK": ("broad QRS to the left, none to V1", _left_block),
    "INCOMPLETE LEFT BUNDLE BRANCH BLOCK": (
        "no q in I and V6, QRS 100-125 ms",
        lambda f: -10 * (f["Q V6"] + f["Q I"]) - 8 * abs(f["QRS duration"] - 0.115) - f["R V1"],
    ),
    "LEFT ANTERIOR FASCICULAR BLOCK": ("axis near -61", _near("axis", -61)),
    "LEFT POSTERIOR FASCICULAR BLOCK": ("axis to the right", _rightness),
    "MASKED BY FASCICULAR BLOCK": (
        "left axis without r in III, aVF",
        lambda f: -abs(f["axis"] + 67) / 40 - 5 * (f["R aVF"] + f["R III"]),
    ),
    "NONSPECIFIC INTRAVENTRICULAR CONDUCTION DELAY": (
        "QRS duration with P, no late force to V1",
        lambda f: (
            min(f["QRS duration"], 0.14) * 10
            - max(f["end V1"], 0) * 2
            - 3 * f["ventricular spikes"]
            + f["R V1"]
        ),
    ),
    "NONSPECIFIC INTRAVENTRICULAR BLOCK": (
        "QRS duration, no spikes",
        lambda f: f["QRS duration"] * 10 - 3 * f["ventricular spikes"] + f["R V1"],
    ),
    "WOLFF-PARKINSON-WHITE": (
        "short PR with a P wave, long QRS without q in I, V6",
        lambda f: (
            min(f["QRS duration"], 0.13) - min(f["PR"], 0.2) - 0.5 * (f["Q I"] + f["Q V6"])
            if f["P"] > 0.08
            else -1.0
        ),
    ),
    "LOW VOLTAGE QRS": ("limb voltage, low", _of("limb voltage", -1)),
    "LEFT VENTRICULAR HYPERTROPHY": ("S V1 + R V5/V6", _of("Sokolow")),
    "VOLTAGE CRITERIA FOR LEFT VENTRICULAR HYPERTROPHY": ("S V1 + R V5/V6", _of("Sokolow")),
    "WITH REPOLARIZATION ABNORMALITY": (
        "S V1 + R V5/V6 with T inverted in V6",
        lambda f: f["Sokolow"] - 6 * f["T V6"],
    ),
    "WITH QRS WIDENING": (
        "S V1 + R V5/V6 with QRS duration",
        lambda f: min(f["Sokolow"], 4.5) + 30 * min(f["QRS duration"], 0.13),
    ),
    "WITH QRS WIDENING AND REPOLARIZATION ABNORMALITY": (
        "S V1 + R V5/V6, QRS duration, T V6",
        lambda f: min(f["Sokolow"], 4.5) + 30 * min(f["QRS duration"], 0.13) - 6 * f["T V6"],
    ),
    "R IN AVL": ("R aVL", _of("R aVL")),
    "RIGHT VENTRICULAR HYPERTROPHY": (
        "R V1 and axis",
        lambda f: f["R V1"] + min(max(_rightness(f) - 180, -60), 30) / 90,
    ),
    "BIVENTRICULAR HYPERTROPHY": (
        "R V1 + R V5",
        lambda f: min(f["R V1"], 1.0) * 2 + min(f["R V5"], 3.0),
    ),
    "PULMONARY DISEASE PATTERN": (
        "P II against limb voltage",
        lambda f: f["P II"] / f["limb voltage"],
    ),
    "LEFT ATRIAL ENLARGEMENT": (
        "negative end of P in V1",
        lambda f: f["P terminal V1"] * min(f["P constancy"], 0.8),
    ),
    "RIGHT ATRIAL ENLARGEMENT": ("P II", _of("P II")),
    "BIATRIAL ENLARGEMENT": (
        "P II and negative end of P in V1",
        lambda f: min(f["P II"], 0.3) + 2 * f["P terminal V1"],
    ),
    "WITH 1ST DEGREE AV BLOCK": ("PR", lambda f: f["PR"] if f["P"] > 0.08 else 0.0),
    "WITH SHORT PR": ("PR, short", lambda f: -f["PR"] if f["P"] > 0.08 else -1.0),
    "WITH PROLONGED AV CONDUCTION": (
        "PR",
        lambda f: (
            f["PR"] * (f["P"] > 0.06)
            + 0.1 * (f["P inferior"] < -0.02)
            + 0.1 * f["atrial spikes alone"]
        ),
    ),
    "PROLONGED QT": ("QT corrected for rate", _of("QTc")),
    "SEPTAL INFARCT": ("no r in V1, V2", _no_r("V1", "V2")),
    "ANTEROSEPTAL INFARCT": ("no R in V2, V3", _no_r("V2", "V3")),
    "ANTERIOR INFARCT": ("Q in V3, V4", _q("V3", "V4")),
    "ANTEROLATERAL INFARCT": ("Q in V4, V5, V6", _q("V4", "V5", "V6")),
    "LATERAL INFARCT": ("Q in I, V6", _q("I", "V6")),
    "INFERIOR INFARCT": ("Q in III, aVF", _q("III", "aVF")),
    "INFERIOR-POSTERIOR INFARCT": (
        "Q in aVF with R V2",
        lambda f: min(_q("aVF")(f), 1) + min(f["R V2"] - f["S V2"], 1),
    ),
    "POSTERIOR INFARCT": ("R against S in V2", lambda f: f["R V2"] - f["S V2"]),
    "ANTERIOR INJURY PATTERN": ("ST V2, V3", _st("V2", "V3")),
    "INFERIOR INJURY PATTERN": ("ST II, III, aVF", _st("II", "III", "aVF")),
    "LATERAL INJURY PATTERN": ("ST I, aVL", _st("I", "aVL")),
    "ANTEROLATERAL INJURY PATTERN": ("ST I, V3, V4", _st("I", "V3", "V4")),
    "INFEROLATERAL INJURY PATTERN": ("ST II, aVF, V6", _st("II", "aVF", "V6")),
    "CONSIDER RIGHT VENTRICULAR INVOLVEMENT IN ACUTE INFERIOR INFARCT": (
        "ST III and V1",
        _st("III", "V1"),
    ),
    "ACUTE MI / STEMI": (
        "largest ST elevation outside aVR and V1",
        lambda f: (
            max(
                f[f"ST {name}"] for name in ("I", "II", "III", "aVL", "aVF", "V3", "V4", "V5", "V6")
            )
            - 2 * max(f["QRS duration"] - 0.12, 0)
        ),
    ),
    "ACUTE PERICARDITIS": ("ST I, II, V5, V6", _st("I", "II", "V5", "V6")),
    "EARLY REPOLARIZATION": (
        "ST V4, V5 with T V4",
        lambda f: f["ST V4"] + f["ST V5"] + 0.2 * f["T V4"],
    ),
    "NONSPECIFIC ST ABNORMALITY": (
        "ST II, V5, V6, low",
        lambda f: -max(f["ST II"], f["ST V5"], f["ST V6"]) - 2 * max(f["QRS duration"] - 0.12, 0),
    ),
    "NONSPECIFIC ST AND T WAVE ABNORMALITY": (
        "ST and T in II, V5, low",
        lambda f: (
            -max(f["ST V5"], f["ST II"])
            - 0.3 * f["T V5"] / max(f["R V5"], 0.3)
            - 2 * max(f["QRS duration"] - 0.12, 0)
        ),
    ),
    "NONSPECIFIC T WAVE ABNORMALITY": (
        "T against R in II, V5, low",
        lambda f: -max(f["T V5"] / max(f["R V5"], 0.3), f["T II"] / max(f["R II"], 0.3)),
    ),
    "OR DIGITALIS EFFECT": (
        "sagging ST in II, V5 with short QT",
        lambda f: -max(f["ST II"], f["ST V5"]) - 0.5 * f["QTc"],
    ),
    "ELECTRONIC VENTRICULAR PACEMAKER": (
        "ventricular spikes alone",
        _of("ventricular spikes alone"),
    ),
    "VENTRICULAR-PACED RHYTHM": ("ventricular spikes alone", _of("ventricular spikes alone")),
    "ATRIAL-SENSED VENTRICULAR-PACED RHYTHM": (
        "ventricular spikes after a P wave",
        lambda f: f["ventricular spikes alone"] * f["P"] * f["P constancy"],
    ),
    "ELECTRONIC ATRIAL PACEMAKER": ("atrial spikes alone", _of("atrial spikes alone")),
    "ATRIAL-PACED RHYTHM": ("atrial spikes alone", _of("atrial spikes alone")),
    "AV SEQUENTIAL OR DUAL CHAMBER ELECTRONIC PACEMAKER": ("both spikes", _of("both spikes")),
    "AV DUAL-PACED RHYTHM": ("both spikes", _of("both spikes")),
    "BIVENTRICULAR PACEMAKER DETECTED": ("double ventricular spikes", _of("double spikes")),
    "VENTRICULAR-PACED COMPLEXES": (
        "ventricular spikes at some beats",
        _of("some ventricular spikes"),
    ),
    "ELECTRONIC DEMAND PACING": (
        "ventricular spikes at some beats",
        _of("some ventricular spikes"),
    ),
    "AV DUAL-PACED COMPLEXES": ("both spikes at some beats", _of("some dual spikes")),
    "ATRIAL-PACED COMPLEXES": ("atrial spikes at some beats", _of("some atrial spikes")),
    "SUSPECT UNSPECIFIED PACEMAKER FAILURE": (
        "spikes without a beat",
        _of("spikes without a beat"),
    ),
    "SUPRAVENTRICULAR COMPLEXES": (
        "odd beats between ventricular spikes",
        lambda f: f["odd beats"] * f["ventricular spikes"],
    ),
    "ECTOPIC ATRIAL RHYTHM": (
        "P negative in II, aVF",
        lambda f: -f["P inferior"] * f["P constancy"],
    ),
    "JUNCTIONAL RHYTHM": (
        "no P wave, even RR",
        lambda f: _no_p(f) - 3 * min(f["RR jump"], 0.1) - f["QRS duration"],
    ),
    "JUNCTIONAL BRADYCARDIA": ("no P wave, slow", lambda f: _no_p(f) * 100 - f["heart rate"]),
    "NO P-WAVES FOUND": (
        "no P wave, even RR",
        lambda f: _no_p(f) - 3 * min(f["RR jump"], 0.1) - f["QRS duration"],
    ),
    "SUPRAVENTRICULAR TACHYCARDIA": (
        "heart rate, narrow QRS",
        lambda f: f["heart rate"] - 300 * max(f["QRS duration"] - 0.12, 0),
    ),
    "VENTRICULAR TACHYCARDIA": (
        "rate and QRS duration",
        lambda f: f["heart rate"] / 100 + 10 * min(f["QRS duration"], 0.15),
    ),
    "WIDE QRS TACHYCARDIA": (
        "rate and QRS duration",
        lambda f: f["heart rate"] / 100 + 10 * min(f["QRS duration"], 0.15),
    ),
    "WIDE QRS RHYTHM": (
        "broad QRS without P or spike",
        lambda f: (
            20 * min(f["QRS duration"], 0.14)
            - min(f["P"], 0.3) * f["P constancy"]
            - f["ventricular spikes"]
        ),
    ),
    "IDIOVENTRICULAR RHYTHM": (
        "broad QRS at a low rate",
        lambda f: 10 * min(f["QRS duration"], 0.15) - f["heart rate"] / 50,
    ),
    "WITH COMPLETE HEART BLOCK": (
        "low rate, atria not bound to it",
        lambda f: -f["heart rate"] / 60 - 0.5 * f["P constancy"],
    ),
    "WITH 2ND DEGREE AV BLOCK MOBITZ I": (
        "longest RR with P waves that move",
        lambda f: min(f["longest RR"], 1.8) - f["P constancy"] - f["premature wide beats"],
    ),
    "MULTIFOCAL ATRIAL TACHYCARDIA": (
        "rate, RR jumps",
        lambda f: min(f["heart rate"], 110) / 50 + 5 * min(f["RR jump"], 0.15),
    ),
    "WITH SINUS PAUSE": (
        "longest RR in seconds",
        lambda f: f["longest RR s"] * (f["longest RR"] > 1.6),
    ),
    "WITH 2ND DEGREE SA BLOCK MOBITZ II": (
        "a gap of two cycles, RR else even",
        lambda f: f["gap near two cycles"] - 3 * f["RR jump"],
    ),
    "WITH 2ND DEGREE SA BLOCK MOBITZ I": (
        "repeated long RR with P waves",
        lambda f: (
            min(f["longest RR"], 1.8)
            + 2 * f["P constancy"]
            + 0.2 * f["late usual beats"]
            - f["odd beats"]
        ),
    ),
    "WITH SINUS ARRHYTHMIA": (
        "slow swing of RR",
        lambda f: (
            min(f["RR irregularity"], 0.1) * (0.5 + f["P constancy"]) + 0.05 * f["RR smoothness"]
        ),
    ),
    "WITH MARKED SINUS ARRHYTHMIA": (
        "large slow swing of RR",
        lambda f: f["RR irregularity"] * (0.5 + f["RR smoothness"]) * f["P constancy"],
    ),
    "WITH VENTRICULAR ESCAPE COMPLEXES": (
        "late odd beats without spike",
        lambda f: f["late odd beats"] * (f["ventricular spikes"] == 0),
    ),
    "WITH JUNCTIONAL ESCAPE COMPLEXES": (
        "late usual beats, RR else even",
        lambda f: (
            min(f["late usual beats"], 1)
            - 10 * min(f["RR jump"], 0.2)
            - min(f["premature beats"], 1)
        ),
    ),
    "BLOCKED": (
        "late usual beats, RR else even",
        lambda f: (
            min(f["late usual beats"], 1)
            - 10 * min(f["RR jump"], 0.2)
            - min(f["premature beats"], 1)
        ),
    ),
    "WITH A COMPETING JUNCTIONAL PACEMAKER": (
        "equal longest RR among uneven ones",
        lambda f: 3 * f["same longest RR"] + min(f["RR irregularity"], 0.1) * 10,
    ),
    "SINUS/ATRIAL CAPTURE": (
        "odd beats at a high rate",
        lambda f: min(f["heart rate"], 140) / 40 + min(f["odd beats"], 2),
    ),
    "WITH UNDETERMINED RHYTHM IRREGULARITY": (
        "RR irregularity with constant P",
        lambda f: f["RR irregularity"] * f["P constancy"] - 0.05 * f["RR smoothness"],
    ),
    "WITH AV DISSOCIATION": (
        "P waves that move, even RR",
        lambda f: (
            -f["P constancy"]
            + f["atrial activity"] * 5
            - 8 * min(f["RR jump"], 0.1)
            - 5 * max(f["QRS duration"] - 0.12, 0)
        ),
    ),
    "WITH RETROGRADE CONDUCTION": (
        "negative wave after the QRS in II, aVF without P",
        lambda f: _no_p(f) * 2 - f["ST II"] - f["ST aVF"],
    ),
}
