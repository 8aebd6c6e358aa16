import pytest

from trace_lightning.data.reports import age_years, clean, prompt, sex


@pytest.mark.parametrize(
    ("age", "who", "impression", "expected"),
    [
        (58, "male", "Lung adenocarcinoma.", "58 years old male: Lung adenocarcinoma."),
        (None, "female", "Nodule.", "female: Nodule."),
        (58, None, "Nodule.", "58 years old patient: Nodule."),
        (None, None, "Nodule.", "patient: Nodule."),
        (58, "male", "Not given.", "58 years old male"),
        (0, "male", None, "0 years old male"),
        (None, None, "", "patient"),
    ],
)
def test_every_missing_part_has_one_form(age, who, impression, expected):
    assert prompt(age, who, [impression]) == expected


@pytest.mark.parametrize(
    ("age", "who", "texts", "length_mm", "expected"),
    [
        (58, "male", ["Nodule.", "A nodule (4 mm)."], None, "58 years old male: Nodule. A nodule 4 mm."),
        (58, "male", ["Not given.", "A nodule."], None, "58 years old male: A nodule."),
        (58, "male", ["Not given", None], None, "58 years old male"),
        (58, "male", ["Nodule."], 312.4, "58 years old male, scan length 312 mm: Nodule."),
        (None, None, ["Not given."], 299.6, "patient, scan length 300 mm"),
        (None, "female", ["", "Clear."], 300.0, "female, scan length 300 mm: Clear."),
    ],
)
def test_several_parts_and_the_length(age, who, texts, length_mm, expected):
    assert prompt(age, who, texts, length_mm) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (' "Pleural effusion" (left),\n  small. ', "Pleural effusion left, small."),
        ("the patient's 'old' fracture", "the patient's old fracture"),
        ("Not given.", ""),
        ("not given", ""),
        ("Not given.Nodule.", "Nodule."),
        ("History not given in the request", "History not given in the request"),
        (None, ""),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("value", "years"),
    [("036Y", 36), ("005M", 0), ("030M", 2), ("100W", 1), ("400D", 1), ("102Y", 102), ("", None), ("nan", None)],
)
def test_age(value, years):
    assert age_years(value) == years


@pytest.mark.parametrize("value", ["36", "Y036", "-05Y", "36 years"])
def test_an_unreadable_age_is_not_guessed(value):
    with pytest.raises(ValueError, match="PatientAge"):
        age_years(value)


def test_sex():
    assert [sex(value) for value in ("M", "F", " M ", "", "O")] == ["male", "female", "male", None, None]
    with pytest.raises(ValueError, match="PatientSex"):
        sex("X")
