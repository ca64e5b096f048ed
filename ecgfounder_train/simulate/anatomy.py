"""What a patient keeps from one ECG to the next: the place of the heart, its size, its timing."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Frank's axes: X to the left, Y to the feet, Z to the back. Rows: I, II, V1-V6.
# Source: Dower, Machado, Osborne, Clin Cardiol 1980;3:87 (leads synthesised from Frank's X, Y, Z).
DOWER = np.array(
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)


@dataclass(frozen=True)
class Anatomy:
    """A patient's constants. `lead_field` maps the dipole (X, Y, Z) to leads I, II, V1-V6."""

    lead_field: NDArray[np.float64]
    axis_deg: float
    voltage: float
    t_gain: float
    t_tilt: NDArray[np.float64]
    p_gain: float
    pr_s: float
    qtc_s: float
    qrs_width: float
    ectopic_focus: int

    @classmethod
    def sample(
        cls, rng: np.random.Generator, age_years: float = 60.0, is_female: bool = False
    ) -> "Anatomy":
        """Return a patient of this age and sex.

        Source: the axis turns left with age, QTc is about 10 ms longer in women, PR grows with
        age (Rijnbeek et al., J Electrocardiol 2014;47:914).
        """
        lead_field = DOWER.copy()
        # Electrodes sit a little differently on every chest; limb leads hardly depend on it.
        lead_field[2:] *= np.exp(rng.normal(0.0, 0.10, 6))[:, None]
        lead_field[2:] += rng.normal(0.0, 0.04, (6, 3))
        years = age_years - 50.0
        return cls(
            lead_field=lead_field,
            axis_deg=float(np.clip(rng.normal(45.0 - 0.45 * years, 22.0), -24.0, 84.0)),
            voltage=float(np.exp(rng.normal(-0.002 * years - 0.06 * is_female, 0.17))),
            t_gain=float(np.exp(rng.normal(-0.06 * is_female, 0.22))),
            t_tilt=rng.normal(0.0, 0.045, 3),
            p_gain=float(np.exp(rng.normal(0.0, 0.18))),
            pr_s=float(np.clip(rng.normal(0.155 + 0.0003 * years, 0.017), 0.122, 0.196)),
            qtc_s=float(np.clip(rng.normal(0.408 + 0.010 * is_female, 0.014), 0.37, 0.445)),
            qrs_width=float(np.clip(rng.normal(0.99 - 0.05 * is_female, 0.06), 0.82, 1.13)),
            ectopic_focus=int(rng.integers(4)),
        )
