"""Report and metadata as the text prompt "{age} years old {sex}: {impression}" (Sec. 4.1)."""

from __future__ import annotations

import re

NOT_GIVEN = "Not given."  # CT-RATE's mark of an empty report field
SEXES = {"M": "male", "F": "female"}
UNKNOWN_SEX = {"", "O", "U", "nan"}  # DICOM's "other", and what blank cells become
UNKNOWN_AGE = {"", "nan"}
UNITS_PER_YEAR = {"Y": 1, "M": 12, "W": 52, "D": 365}


def prompt(age_years: int | None, sex: str | None, impression: str | None) -> str:
    """Return the prompt of a scan; each missing part has one form.

    | known                | prompt                                          |
    |----------------------|-------------------------------------------------|
    | all                  | `58 years old male: Lung adenocarcinoma.`       |
    | no age               | `male: Lung adenocarcinoma.`                    |
    | no sex               | `58 years old patient: Lung adenocarcinoma.`    |
    | neither              | `patient: Lung adenocarcinoma.`                 |
    | no impression        | `58 years old male`                             |

    Args:
        age_years: whole years.
        sex: "male" or "female".
        impression: the radiologist's impression as written; cleaned here.
    """
    who = sex or "patient"
    if age_years is not None:
        who = f"{age_years} years old {who}"
    finding = clean(impression)
    return f"{who}: {finding}" if finding else who


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
