"""The words for what an image is."""

from __future__ import annotations

import logging
import re
from collections import Counter

import pytest

from mtfed.data.vocabulary import BODY_PARTS, MODALITIES, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("chest X-ray", ("x-ray", "chest")),
        ("CHEST X-RAYS", ("x-ray", "chest")),
        ("Abdominal CT", ("ct", "abdomen")),
        ("CT", ("ct", "other-body-part")),
        ("MR", ("mri", "other-body-part")),
        ("brain MRI FLAIR", ("mri", "brain")),
        ("mammogram", ("mammography", "breast")),
        ("PET/CT", ("pet", "other-body-part")),
        ("MR angiography of the brain", ("mra", "brain")),
        ("CT angiography", ("ct", "other-body-part")),
        ("cerebral angiogram", ("angiography", "brain")),
        ("optical coherence tomography", ("oct", "other-body-part")),
        ("colour fundus photograph", ("fundus", "retina")),
        ("H&E slides of lymph nodes", ("histopathology", "lymph-node")),
        ("electron microscopy", ("electron-microscopy", "other-body-part")),
        ("kidney_microscopy", ("microscopy", "kidney")),
        ("shape from brain MRA", ("shape", "brain")),
        ("colonoscopy", ("endoscopy", "colon")),
        ("Echocardiogram", ("ultrasound", "heart")),
        ("thoracic spine X ray", ("x-ray", "spine")),
        ("", ("other-modality", "other-body-part")),
    ],
)
def test_a_text_gives_the_words_that_it_names(text: str, words: tuple[str, str]) -> None:
    assert words_of({"modality": text}) == words


@pytest.mark.parametrize(
    ("body_part", "word"),
    [("HEADNECK", "head-neck"), ("CHEST", "chest"), ("LSPINE", "spine"), ("Head and Neck", "head-neck"),
     ("ribs", "ribs"), ("ABDOMENPELVIS", "abdomen"), ("blood vessel", "vessels"), ("whole body", "whole-body"),
     ("Lungs", "chest")],
)  # fmt: skip
def test_the_column_body_part_takes_precedence(body_part: str, word: str) -> None:
    assert words_of({"modality": "breast CT", "body-part": body_part, "note": "MR"}) == ("ct", word)


def test_parts_of_words_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mtfed.data"):
        for text in ("octopus", "factory", "plus", "petal"):
            assert words_of({"modality": text}) == ("other-modality", "other-body-part")
    assert len(caplog.records) == 4


def test_a_text_without_a_word_is_logged_once_with_the_place_to_mend_it(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mtfed.data"):
        for part in ("", "flux", "flux", "capacitor"):
            assert words_of({"modality": "thermography", "body-part": part}) == ("other-modality", "other-body-part")
    assert [("modality 'thermography'" in r.getMessage(), "BODY_PARTS" in r.getMessage()) for r in caplog.records] == [
        (True, False), (False, True), (False, True)
    ]  # fmt: skip
    assert "vocabulary.py" in caplog.text and "correct the cells of the column modality" in caplog.text


def test_words_are_unique_and_plain() -> None:
    words = [*MODALITIES, *BODY_PARTS]
    assert len(set(words)) == len(words) and all(re.fullmatch("[a-z0-9-]+", word) for word in words)
    for table in (MODALITIES, BODY_PARTS):
        names = Counter(name.replace("-", " ") for word, synonyms in table.items() for name in (word, *synonyms))
        assert [name for name, count in names.items() if count > 1] == []
        assert [name for name in names if name != name.casefold()] == []
    for word, synonyms in MODALITIES.items():
        assert all(words_of({"modality": name})[0] == word for name in (word, *synonyms))
    for word, synonyms in BODY_PARTS.items():
        assert all(words_of({"modality": "CT", "body-part": name})[1] == word for name in (word, *synonyms))
