"""What the simulated clinics measure, code and prescribe: LOINC, ICD-10-CM and RxNorm; `codes.csv` describes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Lab:
    """A laboratory test or a vital sign.

    Where the subject is x standard deviations from the mean, the value is mean + deviation * x, or with `skewed`
    mean * exp(deviation * x), rounded to `decimals`. `severity` is what a unit of a stay's severity adds to x.
    """

    loinc: str
    unit: str
    mean: float
    deviation: float
    severity: float = 0.0
    decimals: int = 0
    skewed: bool = False


LABS = {
    "sodium": Lab("2951-2", "mmol/L", 138.0, 2.9, -0.5),
    "potassium": Lab("2823-3", "mmol/L", 4.25, 0.56, 0.35, 1),
    "chloride": Lab("2075-0", "mmol/L", 102.5, 3.2, -0.2),
    "bicarbonate": Lab("2028-9", "mmol/L", 25.0, 2.7, -0.5),
    "urea nitrogen": Lab("3094-0", "mg/dL", 15.0, 0.35, 0.6, 0, True),
    "creatinine": Lab("2160-0", "mg/dL", 0.95, 0.25, 0.6, 2, True),
    "glucose": Lab("2345-7", "mg/dL", 106.0, 18.5, 0.6),
    "calcium": Lab("17861-6", "mg/dL", 9.4, 0.45, -0.4, 1),
    "hemoglobin": Lab("718-7", "g/dL", 13.2, 1.5, -0.7, 1),
    "leukocytes": Lab("6690-2", "10*3/uL", 7.2, 0.3, 1.0, 1, True),
    "platelets": Lab("777-3", "10*3/uL", 228.0, 66.0, -0.35),
    "alanine transaminase": Lab("1742-6", "U/L", 22.0, 0.45, 0.5, 0, True),
    "alkaline phosphatase": Lab("6768-6", "U/L", 75.0, 0.3, 0.3, 0, True),
    "bilirubin": Lab("1975-2", "mg/dL", 0.6, 0.4, 0.5, 1, True),
    "albumin": Lab("1751-7", "g/dL", 4.2, 0.35, -1.0, 1),
    "cholesterol": Lab("2093-3", "mg/dL", 188.0, 36.0),
    "ldl": Lab("13457-7", "mg/dL", 110.0, 30.0),
    "hdl": Lab("2085-9", "mg/dL", 52.0, 13.0),
    "triglycerides": Lab("2571-8", "mg/dL", 120.0, 0.4, 0.0, 0, True),
    "hemoglobin a1c": Lab("4548-4", "%", 5.5, 0.4, 0.0, 1),
    "thyrotropin": Lab("3016-3", "m[IU]/L", 1.9, 0.55, 0.0, 2, True),
    "ferritin": Lab("2276-4", "ng/mL", 90.0, 0.7, 0.5, 0, True),
    "urate": Lab("3084-1", "mg/dL", 5.3, 1.2, 0.2, 1),
    "c-reactive protein": Lab("1988-5", "mg/L", 3.0, 0.8, 1.4, 1, True),
    "natriuretic peptide": Lab("42637-9", "pg/mL", 55.0, 0.8, 0.8, 0, True),
    "prothrombin time": Lab("5902-2", "s", 12.4, 0.9, 0.6, 1),
    "lactate": Lab("2524-7", "mmol/L", 1.3, 0.4, 1.0, 1, True),
    "troponin": Lab("10839-9", "ng/mL", 0.02, 0.5, 0.5, 2, True),
    "systolic pressure": Lab("8480-6", "mm[Hg]", 124.0, 13.0, -0.6),
    "diastolic pressure": Lab("8462-4", "mm[Hg]", 75.0, 9.0, -0.5),
    "heart rate": Lab("8867-4", "/min", 75.0, 11.0, 0.9),
    "respiratory rate": Lab("9279-1", "/min", 16.0, 2.0, 1.0),
    "temperature": Lab("8310-5", "Cel", 36.7, 0.3, 0.6, 1),
    "oxygen saturation": Lab("59408-5", "%", 97.3, 1.3, -0.8),
    "weight": Lab("29463-7", "kg", 79.0, 15.0, 0.0, 1),
}
TESTS = tuple(LABS)


@dataclass(frozen=True)
class Panel:
    """Tests that are ordered, drawn and reported together: the chance per outpatient visit and per day of a stay."""

    tests: tuple[str, ...]
    visit: float
    day: float


PANELS = {
    "metabolic": Panel(
        ("sodium", "potassium", "chloride", "bicarbonate", "urea nitrogen", "creatinine", "glucose", "calcium"),
        0.22,
        0.75,
    ),
    "blood count": Panel(("hemoglobin", "leukocytes", "platelets"), 0.20, 0.70),
    "liver": Panel(("alanine transaminase", "alkaline phosphatase", "bilirubin", "albumin"), 0.12, 0.25),
    "lipids": Panel(("cholesterol", "ldl", "hdl", "triglycerides"), 0.10, 0.02),
    "diabetes": Panel(("hemoglobin a1c",), 0.08, 0.03),
    "thyroid": Panel(("thyrotropin",), 0.06, 0.03),
    "iron": Panel(("ferritin",), 0.03, 0.03),
    "urate": Panel(("urate",), 0.03, 0.02),
    "inflammation": Panel(("c-reactive protein",), 0.04, 0.30),
    "heart": Panel(("natriuretic peptide",), 0.02, 0.12),
    "coagulation": Panel(("prothrombin time",), 0.02, 0.20),
    "lactate": Panel(("lactate",), 0.0, 0.15),
}
OUTPATIENT_VITALS = ("systolic pressure", "diastolic pressure", "heart rate", "weight")
CHARTED_VITALS = (
    "heart rate",
    "systolic pressure",
    "diastolic pressure",
    "respiratory rate",
    "oxygen saturation",
    "temperature",
)


@dataclass(frozen=True)
class Abnormal:
    """Which results of a test are abnormal in a task: rounded values beyond `cut`, which lies between two of them."""

    test: str
    side: Literal["below", "above"]
    cut: float


# What the definitions of the laboratory tasks say, in the units and decimals above.
ABNORMAL = {
    "lab_thrombocytopenia": Abnormal("platelets", "below", 149.5),
    "lab_hyperkalemia": Abnormal("potassium", "above", 5.55),
    "lab_hypoglycemia": Abnormal("glucose", "below", 70.5),
    "lab_hyponatremia": Abnormal("sodium", "below", 135.5),
    "lab_anemia": Abnormal("hemoglobin", "below", 11.95),
}
DISEASE_OF = {
    "new_hypertension": "hypertension",
    "new_hyperlipidemia": "hyperlipidemia",
    "new_pancan": "pancreatic cancer",
    "new_celiac": "celiac",
    "new_lupus": "lupus",
}

# What nurses chart in words beside the vital signs: the first words are those of the well.
ASSESSMENTS = {
    "LOINC/80288-4": ("alert", "verbal", "pain", "unresponsive"),
    "LOINC/8884-9": ("sinus rhythm", "sinus tachycardia", "atrial fibrillation"),
    "LOINC/9304-7": ("regular", "shallow", "labored"),
    "LOINC/80319-7": ("clear", "diminished", "crackles", "wheezes"),
    "LOINC/8866-6": ("normal", "weak", "absent"),
    "LOINC/38208-5": ("none", "mild", "moderate", "severe"),
}

# In words: platelets now and then, urine protein always.
PLATELETS_IN_WORDS = "adequate"
URINE_PROTEIN, URINE_RESULTS = "LOINC/20454-5", ("negative", "trace", "positive")

# Common problems first: a subject with more chronic diseases meets more of them.
ACUTE = (
    "Z00.00", "J06.9", "M54.50", "R10.9", "N39.0", "R05.9", "J02.9", "Z23", "R51.9", "K59.00", "R42", "J20.9", "R07.9",
    "L30.9", "R53.83", "M25.511", "H10.9", "J01.90", "R19.7", "S93.401A", "R21", "L03.90", "M79.10", "K52.9", "R11.2",
    "H66.90", "J30.9", "Z00.01", "R63.5", "M62.81", "R20.2", "B34.9", "R31.9", "H61.20", "L57.0", "K64.9", "R09.81",
    "M79.641", "L29.9", "R00.2", "S61.219A", "Z12.11", "M54.2", "R55", "R60.0", "L02.91", "H25.13", "G56.00", "R29.6",
    "K57.30", "B35.1", "H04.123", "N20.0", "R04.0", "M77.10", "J32.9", "L70.0", "R33.9", "K13.79", "D22.9",
    "H40.9", "M72.2", "R13.10",
)  # fmt: skip
ADMITTED_FOR = (
    "J18.9", "A41.9", "N17.9", "I50.9", "K57.32", "N39.0", "J44.1", "S72.001A", "K80.00", "K92.2", "R55", "I48.91",
    "E87.1", "L03.90", "K85.90", "G45.9", "J96.01", "E11.65", "K56.609", "R07.9", "I26.99", "N20.1", "K35.80",
    "T81.40XA",
)  # fmt: skip
HOSPITAL_DRUGS = (
    "313002", "1659263", "313782", "1740467", "1719286", "1732136", "2193", "1807513", "1659149", "1049221",
)  # fmt: skip
INTENSIVE_DRUGS = ("242969", "1808217", "1735006", "311700")
ACUTE_DRUGS = ("308182", "308460", "310965", "313782", "311372", "1014678", "106258", "1650142", "311995", "835603")

# The planted cause: mantle-field radiotherapy for Hodgkin lymphoma, and its sham, equal in length and timing. No other
# event has these codes.
CAUSE = ("ICD10CM/C81.90", "ICD10CM/Z51.0", "RxNorm/1790099")
SHAM = ("ICD10CM/M75.100", "ICD10CM/Z51.89", "RxNorm/5640")
INFARCTION = ("I21.4", "I21.19", "I21.9")
AFTER_INFARCTION = ("243670", "309362", "200033")

BIRTH, DEATH, VISIT = "MEDS_BIRTH", "MEDS_DEATH", "OUTPATIENT_VISIT"
SEXES = ("GENDER//F", "GENDER//M")
ADMISSIONS = ("HOSPITAL_ADMISSION//EMERGENCY", "HOSPITAL_ADMISSION//ELECTIVE")
DISCHARGES = ("HOSPITAL_DISCHARGE//HOME", "HOSPITAL_DISCHARGE//REHAB")
DISCHARGED_DEAD = "HOSPITAL_DISCHARGE//DIED"
INTENSIVE_CARE = ("ICU_ADMISSION//MICU", "ICU_DISCHARGE//MICU")
