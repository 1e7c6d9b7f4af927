"""What the simulated clinics code, measure and prescribe: LOINC, ICD-10-CM and RxNorm, all free to use."""

from __future__ import annotations

from dataclasses import dataclass

# chronic condition -> (ICD-10-CM, prevalence from youth on, drugs as RxNorm ingredients)
CONDITIONS = {
    "hypertension": ("I10", 0.25, ("29046", "17767")),
    "hyperlipidemia": ("E78.5", 0.20, ("83367", "36567")),
    "diabetes": ("E11.9", 0.18, ("6809", "274783")),
    "reflux": ("K21.9", 0.20, ("7646",)),
    "depression": ("F32.9", 0.18, ("36437",)),
    "hypothyroidism": ("E03.9", 0.12, ("10582",)),
    "copd": ("J44.9", 0.10, ("69120", "435")),
    "kidney": ("N18.30", 0.10, ("4603",)),
    "osteoarthritis": ("M19.90", 0.20, ("161",)),
    "pancreatic cancer": ("C25.9", 0.0, ("12574",)),
    "celiac": ("K90.0", 0.0, ("4511",)),
    "lupus": ("M32.9", 0.0, ("5521",)),
}


@dataclass(frozen=True)
class Prodrome:
    """What precedes a first diagnosis: signs coded and laboratory levels moved (in deviations) during a stay.

    `share` of stays show it; a first diagnosis follows within a year with probability `risk`, else `background`.
    """

    share: float
    risk: float
    background: float
    signs: tuple[str, ...]
    levels: dict[str, float]


PRODROMES = {
    "hypertension": Prodrome(0.20, 0.45, 0.06, ("R03.0", "R51.9"), {"creatinine": 1.0}),
    "hyperlipidemia": Prodrome(0.20, 0.45, 0.06, ("R63.5", "E66.9"), {"glucose": 1.0}),
    "pancreatic cancer": Prodrome(0.06, 0.55, 0.012, ("R63.4", "R17", "K86.1"), {"glucose": 1.5, "hemoglobin": -1.0}),
    "celiac": Prodrome(0.05, 0.45, 0.010, ("K52.9", "R14.0"), {"hemoglobin": -2.0}),
    "lupus": Prodrome(0.05, 0.50, 0.010, ("M25.50", "R21"), {"platelets": -2.0, "hemoglobin": -1.0}),
}

ACUTE = ("J06.9", "N39.0", "R10.9", "R51.9", "L03.90", "M54.50", "R05.9", "H10.9", "K52.9", "S93.40", "R21", "R63.5")
ADMITTED_FOR = ("J18.9", "N17.9", "K57.32", "A41.9", "S72.00", "I50.9", "K80.00", "R55")
# laboratory test -> (LOINC, unit, mean, standard deviation, effect of severity in deviations)
LABS = {
    "sodium": ("2951-2", "mmol/L", 138.5, 2.8, -0.5),
    "potassium": ("2823-3", "mmol/L", 4.3, 0.45, 0.3),
    "creatinine": ("2160-0", "mg/dL", 1.0, 0.2, 0.8),
    "glucose": ("2345-7", "mg/dL", 105.0, 20.0, 0.5),
    "hemoglobin": ("718-7", "g/dL", 12.6, 1.3, -0.6),
    "platelets": ("777-3", "10*3/uL", 235.0, 65.0, -0.2),
    "c-reactive protein": ("1988-5", "mg/L", 6.0, 3.0, 2.5),
}
# condition -> shifts of laboratory levels, in deviations, while it lasts
LEVELS = {
    "diabetes": {"glucose": 1.0},
    "kidney": {"creatinine": 2.5, "potassium": 1.2, "hemoglobin": -1.0},
    "lupus": {"platelets": -1.5},
    "celiac": {"hemoglobin": -1.0},
}
INSULIN, INSULIN_SHIFT = "274783", -2.2  # its lows are the cohort's hypoglycemias
PLATELETS_IN_WORDS = "adequate"
URINE_PROTEIN, URINE_RESULTS = "5804-0", ("negative", "trace", "positive")

# The planted cause and its sham, equal in length and timing; and the outcome.
RADIOTHERAPY = ("ICD10CM/C81.90", "ICD10CM/Z51.0", "RxNorm/3639")
PHYSIOTHERAPY = ("ICD10CM/M54.50", "ICD10CM/Z51.89", "RxNorm/5640")
TROPONIN = "10839-9"
INFARCTION = ("I21.4", "I21.19", "I21.9")
AFTER_INFARCTION = ("1191", "32968", "6918")

DESCRIPTIONS = {
    "LOINC/2951-2": "Sodium [Moles/volume] in Serum or Plasma",
    "LOINC/2823-3": "Potassium [Moles/volume] in Serum or Plasma",
    "LOINC/2160-0": "Creatinine [Mass/volume] in Serum or Plasma",
    "LOINC/2345-7": "Glucose [Mass/volume] in Serum or Plasma",
    "LOINC/718-7": "Hemoglobin [Mass/volume] in Blood",
    "LOINC/777-3": "Platelets [#/volume] in Blood by Automated count",
    "LOINC/1988-5": "C reactive protein [Mass/volume] in Serum or Plasma",
    "LOINC/5804-0": "Protein [Mass/volume] in Urine by Test strip",
    "LOINC/10839-9": "Troponin I.cardiac [Mass/volume] in Serum or Plasma",
    "ICD10CM/C81.90": "Hodgkin lymphoma, unspecified, unspecified site",
    "ICD10CM/Z51.0": "Encounter for antineoplastic radiation therapy",
    "ICD10CM/I21.4": "Non-ST elevation (NSTEMI) myocardial infarction",
    "ICD10CM/I10": "Essential (primary) hypertension",
    "ICD10CM/E78.5": "Hyperlipidemia, unspecified",
    "ICD10CM/C25.9": "Malignant neoplasm of pancreas, unspecified",
    "ICD10CM/K90.0": "Celiac disease",
    "ICD10CM/M32.9": "Systemic lupus erythematosus, unspecified",
    "RxNorm/3639": "doxorubicin",
}
