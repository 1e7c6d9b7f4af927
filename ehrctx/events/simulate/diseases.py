"""The chronic diseases of the simulated cohort: how fast they move on, what they show, what treats them.

A disease goes through stages: 0 absent, 1 preclinical (signs are coded, results drift), 2 diagnosed, 3 advanced.
`rates` are the hazards per year of 0 -> 1, 1 -> 2 and 2 -> 3 of a subject whose frailty is 1; `deaths` what stages 2
and 3 add to the hazard of death. Codes are ICD-10-CM and RxNorm. The figures are plausible, not estimated; those of the
tasks' diseases make first diagnoses in the preset `planted` far commoner than in life: about as common as in EHRSHOT,
but for hypertension and hyperlipidemia.
"""

from __future__ import annotations

from dataclasses import dataclass, field

ABSENT, PRECLINICAL, DIAGNOSED, ADVANCED = range(4)


@dataclass(frozen=True)
class Disease:
    """One chronic disease.

    `prodrome` shifts laboratory levels in stage 1, `levels` those of stages 2 and (by half as much again) 3, in
    standard deviations; treatment takes the share `efficacy` off `levels`, and multiplies the noise of `swings`.
    """

    rates: tuple[float, float, float]
    signs: tuple[str, ...]
    code: str
    advanced_code: str
    drugs: tuple[str, ...]
    deaths: tuple[float, float] = (0.0, 0.0)
    prodrome: dict[str, float] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)
    efficacy: float = 0.5
    swings: dict[str, float] = field(default_factory=dict)


DISEASES = {
    "hypertension": Disease(
        (0.016, 0.60, 0.03), ("R03.0", "R51.9"), "I10", "I10", ("314076", "197361", "310798", "979492"),
        (0.001, 0.006), {"systolic pressure": 0.8}, {"systolic pressure": 1.4, "diastolic pressure": 1.0},
    ),
    "hyperlipidemia": Disease(
        (0.018, 0.60, 0.05), ("R63.5", "E66.3"), "E78.5", "E78.2", ("312961", "259255"),
        (0.0, 0.001), {"ldl": 0.8, "triglycerides": 0.5}, {"ldl": 1.6, "triglycerides": 0.8}, 0.7,
    ),
    "diabetes": Disease(
        (0.0072, 0.40, 0.08), ("R73.03", "R63.1"), "E11.9", "E11.22", ("860975", "274783"),
        (0.004, 0.012), {"glucose": 0.8, "hemoglobin a1c": 0.8}, {"glucose": 2.2, "hemoglobin a1c": 2.5}, 0.6,
        {"glucose": 2.4},
    ),
    "kidney disease": Disease(
        (0.0048, 0.35, 0.12), ("R80.9", "R60.0"), "N18.30", "N18.4", ("313988",),
        (0.010, 0.040), {"creatinine": 0.8},
        {"creatinine": 2.5, "urea nitrogen": 2.0, "potassium": 0.9, "hemoglobin": -0.9, "bicarbonate": -0.8}, 0.2,
    ),
    "copd": Disease(
        (0.0042, 0.40, 0.12), ("R06.2", "R05.9"), "J44.9", "J44.1", ("2123111", "896209"),
        (0.012, 0.040), {"oxygen saturation": -0.5}, {"oxygen saturation": -1.5, "bicarbonate": 0.8}, 0.3,
    ),
    "heart failure": Disease(
        (0.0036, 0.70, 0.15), ("R60.0", "R06.00"), "I50.9", "I50.22", ("313988", "200033", "313096"),
        (0.030, 0.080), {"natriuretic peptide": 0.8}, {"natriuretic peptide": 2.2, "sodium": -0.7}, 0.3,
    ),
    "atrial fibrillation": Disease(
        (0.0042, 0.80, 0.10), ("R00.2", "R42"), "I48.91", "I48.20", ("855332", "197604"),
        (0.008, 0.015), {"heart rate": 0.5}, {"heart rate": 1.2}, 0.5,
    ),
    "coronary disease": Disease(
        (0.0048, 0.60, 0.08), ("R07.9", "R06.00"), "I25.10", "I25.119", ("309362", "243670", "705129"),
        (0.006, 0.020), {}, {"c-reactive protein": 0.4},
    ),
    "hypothyroidism": Disease(
        (0.0042, 0.60, 0.01), ("R53.83", "R63.5"), "E03.9", "E03.8", ("966222",),
        (0.0, 0.0), {"thyrotropin": 1.0}, {"thyrotropin": 2.0}, 0.8,
    ),
    "depression": Disease(
        (0.0108, 0.90, 0.15), ("G47.00", "R53.83"), "F32.A", "F33.1", ("312938", "310385"), (0.001, 0.003),
    ),
    "anxiety": Disease((0.0108, 0.90, 0.10), ("R45.0", "R00.2"), "F41.9", "F41.1", ("204892", "596926")),
    "reflux": Disease((0.0108, 1.00, 0.02), ("R12", "R10.13"), "K21.9", "K22.70", ("7646",)),
    "osteoarthritis": Disease((0.012, 0.60, 0.10), ("M25.561", "M25.511"), "M19.90", "M17.0", ("198440", "198014")),
    "osteoporosis": Disease(
        (0.0042, 0.40, 0.08), ("M85.80", "M54.50"), "M81.0", "M80.08XA", ("904419",), (0.002, 0.010),
        {}, {"calcium": -0.5},
    ),
    "asthma": Disease((0.0048, 0.80, 0.05), ("R06.2", "R05.9"), "J45.909", "J45.50", ("2123111", "895994")),
    "obesity": Disease(
        (0.012, 0.80, 0.06), ("R63.5", "E66.3"), "E66.9", "E66.01", (), (0.001, 0.004), {}, {"weight": 1.5},
    ),
    "iron deficiency": Disease(
        (0.006, 1.20, 0.02), ("R53.83", "R53.1"), "D50.9", "D50.0", ("310325",),
        (0.0, 0.0), {"hemoglobin": -0.8, "ferritin": -0.8}, {"hemoglobin": -1.8, "ferritin": -1.5}, 0.6,
    ),
    "pancreatic cancer": Disease(
        (0.012, 0.60, 0.80), ("R63.4", "R17", "K86.1"), "C25.9", "C25.0", ("12574",),
        (0.300, 0.900), {"glucose": 1.0, "bilirubin": 1.0, "hemoglobin": -0.6},
        {"bilirubin": 2.0, "albumin": -1.5, "hemoglobin": -1.0}, 0.1,
    ),
    "celiac": Disease(
        (0.008, 0.60, 0.02), ("K52.9", "R14.0"), "K90.0", "K90.0", ("310325",),
        (0.0, 0.002), {"hemoglobin": -1.2, "ferritin": -0.8}, {"hemoglobin": -0.8, "ferritin": -0.8},
    ),
    "lupus": Disease(
        (0.008, 0.70, 0.15), ("M25.50", "R21"), "M32.9", "M32.14", ("979092", "312617"),
        (0.004, 0.020), {"platelets": -1.0, "hemoglobin": -0.6},
        {"platelets": -1.5, "hemoglobin": -0.8, "c-reactive protein": 1.0}, 0.3,
    ),
    "rheumatoid arthritis": Disease(
        (0.0024, 0.60, 0.06), ("M25.50", "M79.641"), "M06.9", "M05.79", ("105585", "312617"),
        (0.002, 0.006), {"c-reactive protein": 0.8}, {"c-reactive protein": 1.5, "hemoglobin": -0.5},
    ),
    "cirrhosis": Disease(
        (0.0018, 0.40, 0.25), ("R74.01", "R16.0"), "K74.60", "K76.6", ("313096", "313988"),
        (0.050, 0.150), {"alanine transaminase": 1.0},
        {"platelets": -1.8, "bilirubin": 1.8, "albumin": -1.5, "sodium": -0.8, "prothrombin time": 1.5}, 0.1,
    ),
    "stroke": Disease(
        (0.0024, 0.80, 0.20), ("R47.81", "R42"), "I63.9", "I69.30", ("309362", "259255"), (0.025, 0.050),
    ),
    "cognitive decline": Disease(
        (0.003, 0.40, 0.20), ("R41.3", "R26.81"), "G31.84", "F03.90", ("997223",), (0.030, 0.100),
    ),
    "colon cancer": Disease(
        (0.0018, 1.50, 0.10), ("K62.5", "R19.5"), "C18.9", "C78.00", ("1791701", "1736776"), (0.030, 0.400),
        {"hemoglobin": -0.8}, {"hemoglobin": -0.8},
    ),
    "gout": Disease(
        (0.0036, 1.00, 0.05), ("M25.571", "M79.671"), "M10.9", "M1A.9XX0", ("197319", "197541"),
        (0.0, 0.002), {"urate": 1.0}, {"urate": 2.0}, 0.6,
    ),
    "sleep apnea": Disease((0.006, 0.60, 0.02), ("R06.83", "R53.83"), "G47.33", "I27.20", (), (0.001, 0.010)),
    "migraine": Disease((0.0048, 1.00, 0.05), ("R51.9", "H53.149"), "G43.909", "G43.709", ("198014",)),
}  # fmt: skip
NAMES = tuple(DISEASES)
