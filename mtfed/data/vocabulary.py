"""What an image is, in words: its modality and the part of the body that it shows.

A manifest's columns ``modality`` and ``body-part`` contain free text, such as "chest X-ray" or "Abdominal CT".
:func:`words_of` finds the words of the tables below in it. To add a word, add a row at the end of its table: models
store what belongs to a word by its name, and the position of all other words stays as it is.

Synonyms include the codes of DICOM's Modality (CT, MR, US, ...) and Body Part Examined (CHEST, HEADNECK, ...).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import cache

log = logging.getLogger("mtfed.data")

WORD = re.compile(r"[^\W_]+")  # letters and digits
MODALITY, BODY_PART = "modality", "body-part"  # columns of a manifest, and keys of a site file and of a node config

# Word -> synonyms. The first row is for texts that contain none of the words. A word with hyphens also matches spaces.
MODALITIES: dict[str, tuple[str, ...]] = {
    "other-modality": (),
    "x-ray": (
        "xray", "radiograph", "radiography", "röntgen", "roentgen", "cxr", "fluoroscopy", "orthopantomogram",
        "cr", "dx", "rg", "rf", "px", "io",
    ),
    "mammography": ("mammogram", "mammographic", "tomosynthesis", "dbt", "mg"),
    "ultrasound": (
        "us", "ultrasonography", "ultrasonic", "sonography", "sonogram", "echocardiography", "echocardiogram",
        "doppler", "ivus",
    ),
    "ct": (
        "computed tomography", "computerised tomography", "computerized tomography", "cat scan", "cone beam", "cbct",
        "hrct", "ldct", "cta", "ct angiography", "ct angiogram", "computed tomography angiography",
    ),
    "mri": (
        "mr", "mrt", "magnetic resonance", "mpmri", "fmri", "nmr", "flair", "dwi", "adc", "t1w", "t2w", "swi",
    ),
    "mra": (
        "mr angiography", "mri angiography", "mr angiogram", "magnetic resonance angiography", "time of flight", "tof",
    ),
    "pet": ("pt", "positron emission tomography", "pet ct", "pet mr", "pet mri", "fdg"),
    "spect": ("nm", "nuclear medicine", "scintigraphy", "scintigram", "bone scan", "gamma camera"),
    "oct": ("opt", "optical coherence tomography", "octa", "oct angiography"),
    "fundus": (
        "op", "funduscopy", "fundoscopy", "fundus photograph", "fundus photography", "retinal photograph",
        "retinal photography", "ophthalmic photograph", "ophthalmic photography",
    ),
    "dermatoscopy": ("dermatoscopic", "dermatoscope", "dermoscopy", "dermoscopic", "dms"),
    "histopathology": (
        "histopathological", "histology", "histological", "pathology", "biopsy", "h e", "hematoxylin", "haematoxylin",
        "whole slide", "wsi", "slide microscopy", "sm",
    ),
    "microscopy": ("microscope", "microscopic", "smear", "cytology", "fluorescence microscopy", "gm"),
    "electron-microscopy": ("electron microscope", "em", "sem", "tem"),
    "endoscopy": (
        "endoscopic", "endoscope", "colonoscopy", "gastroscopy", "bronchoscopy", "cystoscopy", "laparoscopy",
        "laparoscopic", "laryngoscopy", "colposcopy", "es",
    ),
    "angiography": ("angiogram", "dsa", "digital subtraction angiography", "x ray angiography", "xa"),
    "photograph": ("photography", "photo", "clinical photograph", "external camera", "camera", "xc"),
    "shape": ("shape mask", "mask", "segmentation", "seg"),  # of an organ, drawn in another image
}  # fmt: skip
# A modality that shows one part only names it, too: a mammogram shows a breast.
BODY_PARTS: dict[str, tuple[str, ...]] = {
    "other-body-part": (),
    "chest": (
        "thorax", "thoracic", "lung", "pulmonary", "mediastinum", "trachea", "bronchus", "bronchoscopy", "cxr",
    ),
    "breast": ("mamma", "mammary", "mammogram", "mammography", "mammographic", "tomosynthesis"),
    "brain": (
        "head", "skull", "cranium", "cranial", "intracranial", "cerebral", "cerebrum", "cerebellum", "hippocampus",
        "neuro", "circle of willis", "circleofwillis", "pituitary", "sella",
    ),
    "abdomen": (
        "abdominal", "liver", "hepatic", "spleen", "splenic", "pancreas", "pancreatic", "gallbladder", "biliary",
        "abdomen pelvis", "abdomenpelvis", "abdomen and pelvis",
    ),
    "retina": (
        "retinal", "eye", "orbit", "ocular", "ophthalmic", "macula", "macular", "optic disc", "cornea", "fundus",
        "funduscopy", "fundoscopy",
    ),
    "skin": ("cutaneous", "dermal", "dermatoscopy", "dermatoscopic", "dermoscopy", "dermoscopic", "lesion of skin"),
    "colon": (
        "colorectal", "colonic", "rectum", "rectal", "bowel", "intestine", "intestinal", "gastrointestinal",
        "colonoscopy",
    ),
    "blood": ("blood smear", "blood cell", "haematology", "hematology", "leukocyte"),
    "kidney": ("renal", "ureter", "kub", "urinary"),
    "adrenal": ("adrenal gland", "suprarenal"),
    "ribs": ("rib", "rib cage", "ribcage", "sternum"),
    "heart": (
        "cardiac", "coronary", "atrium", "left atrium", "ventricle", "myocardium", "myocardial", "echocardiography",
        "echocardiogram",
    ),
    "vessels": ("vessel", "blood vessel", "vascular", "artery", "vein", "aorta", "aortic", "carotid", "ivus"),
    "head-neck": (
        "headneck", "head and neck", "neck", "larynx", "pharynx", "oropharynx", "nasopharynx", "parotid", "face",
        "sinus", "ear", "laryngoscopy",
    ),
    "teeth": ("tooth", "dental", "jaw", "mandible", "maxilla", "orthopantomogram"),
    "thyroid": ("thyroid gland",),
    "spine": (
        "spinal", "vertebra", "vertebrae", "vertebral", "cspine", "tspine", "lspine", "sspine", "cervical spine",
        "thoracic spine", "lumbar spine", "lumbar", "sacrum", "coccyx",
    ),
    "prostate": ("prostatic",),
    "pelvis": ("pelvic", "bladder", "urinary bladder", "testis", "testicular", "scrotum", "cystoscopy"),
    "uterus": ("uterine", "cervix", "ovary", "ovarian", "colposcopy"),
    "fetus": ("fetal", "foetus", "foetal", "obstetric", "placenta"),
    "stomach": ("gastric", "gastroscopy", "esophagus", "oesophagus", "duodenum"),
    "shoulder": ("clavicle", "scapula"),
    "arm": ("humerus", "elbow", "forearm", "radius", "ulna", "upper extremity"),
    "hand": ("wrist", "finger", "thumb", "bone age"),
    "hip": ("hip joint",),
    "leg": ("femur", "thigh", "calf", "tibia", "fibula", "lower extremity", "extremity"),
    "knee": ("patella",),
    "foot": ("ankle", "toe", "heel", "calcaneus"),
    "lymph-node": ("lymph", "lymphatic"),
    "skeleton": ("skeletal", "musculoskeletal", "bone", "bone scan"),
    "whole-body": ("wholebody", "total body", "chest abdomen pelvis", "chestabdpelvis", "chestabdomen", "torso"),
}  # fmt: skip
TABLES = {MODALITY: MODALITIES, BODY_PART: BODY_PARTS}


def words_of(others: Mapping[str, str]) -> tuple[str, str]:
    """Return the modality and the body part of an image as words of the tables.

    The text of the column ``modality`` may name both, "chest X-ray"; the column ``body-part`` takes precedence. If a
    text contains several words of a table, the longest match counts. A text without any gives the table's first word
    and is logged once.

    Args:
        others: the row's cells by column, such as :attr:`mtfed.data.manifest.Row.others`.
    """
    return _words(others.get(MODALITY, ""), others.get(BODY_PART, ""))


def has_word(text: str, column: str) -> bool:
    """Return whether a cell of the column ``modality`` or ``body-part`` contains a word of its table."""
    return bool(_find(text, TABLES[column]))


@cache
def _words(modality: str, body_part: str) -> tuple[str, str]:
    if body_part:
        return _word(modality, MODALITY), _word(body_part, BODY_PART)
    return _word(modality, MODALITY), _find(modality, BODY_PARTS) or next(iter(BODY_PARTS))


@cache
def _word(text: str, column: str) -> str:
    """Return the word for a cell of a column, and log a text that contains none."""
    table = TABLES[column]
    if word := _find(text, table):
        return word
    other = next(iter(table))
    if text:
        name = "MODALITIES" if column == MODALITY else "BODY_PARTS"
        log.warning(
            "The %s %r is not in the vocabulary and counts as %s; correct the cells of the column %s, or add a row for "
            "it to %s of mtfed/data/vocabulary.py.", column, text, other, column, name,
        )  # fmt: skip
    return other


def _find(text: str, table: Mapping[str, tuple[str, ...]]) -> str:
    """Return the word of the longest name in a text, the first of several such names; empty if there is none."""
    text = _spaced(text)
    matches = [
        (len(name), -position, word)
        for word, synonyms in table.items()
        for name in (word, *synonyms)
        if (position := _position(text, _spaced(name))) >= 0
    ]
    return max(matches)[2] if matches else ""


def _position(text: str, name: str) -> int:
    """Return where a text contains a name, or its plural, as whole words; -1 if it does not."""
    return max(text.find(name), text.find(f"{name[:-1]}s "))


def _spaced(text: str) -> str:
    """Return the letters and digits of a text as lower-case words with single spaces, also at both ends."""
    return f" {' '.join(WORD.findall(text.casefold()))} "
