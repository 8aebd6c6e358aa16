"""Report and metadata as the text prompt "{age} years old {sex}: {impression}" (Sec. 4.1) and its variants."""

from __future__ import annotations

import re
from collections.abc import Iterable

NOT_GIVEN = "Not given."  # CT-RATE's mark of an empty report field
SEXES = {"M": "male", "F": "female"}
UNKNOWN_SEX = {"", "O", "U", "nan"}  # DICOM's "other", and what blank cells become
UNKNOWN_AGE = {"", "nan"}
# Which parts of a report a prompt holds (`data.prompt`). The impression comes first: text towers read 77 tokens.
PARTS = {"impression": ("impression",), "findings": ("findings",), "both": ("impression", "findings")}
UNITS_PER_YEAR = {"Y": 1, "M": 12, "W": 52, "D": 365}


def prompt(age_years: int | None, sex: str | None, texts: Iterable[str | None], length_mm: float | None = None) -> str:
    """Return the prompt of a scan; each missing part has one form.

    | known                | prompt                                                        |
    |----------------------|---------------------------------------------------------------|
    | all                  | `58 years old male: Lung adenocarcinoma.`                     |
    | no age               | `male: Lung adenocarcinoma.`                                  |
    | no sex               | `58 years old patient: Lung adenocarcinoma.`                  |
    | neither              | `patient: Lung adenocarcinoma.`                               |
    | no text              | `58 years old male`                                           |
    | and the length       | `58 years old male, scan length 312 mm: Lung adenocarcinoma.` |

    Args:
        age_years: whole years.
        sex: "male" or "female".
        texts: parts of the radiologist's report as written, cleaned here and joined in this order.
        length_mm: of the scan along z, if the prompt is to say it.
    """
    who = sex or "patient"
    if age_years is not None:
        who = f"{age_years} years old {who}"
    if length_mm is not None:
        who = f"{who}, scan length {length_mm:.0f} mm"
    text = " ".join(cleaned for cleaned in map(clean, texts) if cleaned)
    return f"{who}: {text}" if text else who


def clean(text: str | None) -> str:
    """Return a report field as one line without quotation marks, brackets or "Not given."; "" where nothing is left."""
    line = re.sub(r"[\"“”„()\[\]]", " ", text or "")
    line = re.sub(r"(?<!\w)['‘’`]+|['‘’`]+(?!\w)", " ", line)  # quotation, not the apostrophe of "patient's"
    line = re.sub(r"\bnot given(\.|$)", " ", line, flags=re.IGNORECASE)
    return re.sub(r"\s+([.,;:])", r"\1", " ".join(line.split()))


def age_years(value: str) -> int | None:
    """Read DICOM's age string, three digits and a unit: "036Y" is 36, "005M" is 0; blank is None.

    Raises:
        ValueError: anything else.
    """
    value = value.strip()
    if value in UNKNOWN_AGE:
        return None
    match = re.fullmatch(r"(\d{1,3})([DWMY])", value)
    if match is None:
        raise ValueError(f"PatientAge {value!r} is not of DICOM's form 036Y")
    return int(match[1]) // UNITS_PER_YEAR[match[2]]


def sex(value: str) -> str | None:
    """Read DICOM's sex: "M" is male, "F" is female; blank, "O" and "U" are None.

    Raises:
        ValueError: anything else.
    """
    value = value.strip()
    if value in UNKNOWN_SEX:
        return None
    if value not in SEXES:
        raise ValueError(f"PatientSex {value!r} is none of M, F, O, U")
    return SEXES[value]
