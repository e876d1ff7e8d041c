"""DICOM attributes that identify a person are found, and their values are never written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.checked_site import check
from helpers.slices import dicom
from mtfed.site.check.tags import BURNED_IN, IDENTIFYING, OVERLAY, PRIVATE, identifying_tags


def dicom_content(**tags: object) -> Callable[[Path], bytes]:
    return lambda folder: dicom(folder / "x.dcm", **tags).read_bytes()


@pytest.mark.parametrize(
    ("tags", "names"),
    [
        ({"PatientName": "Doe^Jane", "PatientID": "", "PatientAge": "050Y"}, {"PatientName"}),
        ({"PatientName": "ANONYMOUS", "PatientID": "0"}, set()),
        ({"PatientName": "x17", "PatientID": "x17", "PatientIdentityRemoved": "YES"}, set()),
        ({"PatientID": "x17", "PatientIdentityRemoved": "NO"}, {"PatientID"}),
        ({"InstitutionName": "St Mary", "StudyDate": "20200101", "OperatorsName": "A"},
         {"InstitutionName", "OperatorsName", "StudyDate"}),
        ({"BurnedInAnnotation": "YES"}, {BURNED_IN}),
        ({"BurnedInAnnotation": "NO"}, set()),
        ({}, set()),
    ],
)  # fmt: skip
def test_identifying_tags_are_named(tmp_path: Path, tags: dict[str, object], names: set[str]) -> None:
    assert set(identifying_tags(dicom_content(**tags)(tmp_path))) == names


def test_private_tags_overlays_and_sequences_are_named(tmp_path: Path) -> None:
    import pydicom

    path = dicom(tmp_path / "x.dcm")
    file = pydicom.dcmread(path)
    file.private_block(0x0011, "MAKER", create=True).add_new(1, "LO", "secret")
    file.add_new(0x60003000, "OW", b"\0\0")
    inner = pydicom.Dataset()
    inner.AccessionNumber = "A-123"
    file.RequestAttributesSequence = [inner]
    file.save_as(path)
    assert set(identifying_tags(path.read_bytes())) == {PRIVATE, OVERLAY, "AccessionNumber"}
    assert identifying_tags(b"no DICOM at all") == () and identifying_tags(path.read_bytes()[:140]) == ()


def test_every_identifying_attribute_is_in_the_dicom_dictionary() -> None:
    from pydicom.datadict import tag_for_keyword

    assert [name for name in IDENTIFYING if tag_for_keyword(name) is None] == []


def test_tags_are_counted_and_their_values_are_never_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "site"
    for number in range(2):
        series = f"1.2.{number}"
        for k in range(12):
            path = folder / f"s{number}" / f"{k}"
            dicom(path, series, 1.0 * k, PatientName="Featherstone^Jane", StudyDate="20200102",
                  InstitutionName="Secret Clinic", OperatorsName="Smith", BurnedInAnnotation="YES")  # fmt: skip
    (folder / "manifest.csv").write_text("image,patient,ill\ns0,a,no\ns1,b,yes\n")
    (folder / "site.toml").write_text('dimensions = 3\n[task.ill]\nkind="classification"\nclasses="no, yes"\n')
    code, findings = check(folder)
    assert code == 0
    tags = {
        name: (finding["severity"], finding["items"])
        for name, finding in findings.items()
        if name[:4] in ("tags", "burn")
    }
    count = "24 files"
    assert tags == {
        "tags-person": ("warning", [{"name": "PatientName", "said": count}]),
        "burned-in": ("warning", [{"name": BURNED_IN, "said": count}]),
        "tags-staff": ("note", [{"name": "OperatorsName", "said": count}]),
        "tags-place": ("note", [{"name": "InstitutionName", "said": count}]),
        "tags-time": ("note", [{"name": "StudyDate", "said": count}]),
    }
    outputs = capsys.readouterr().out + (folder / "check.html").read_text() + (tmp_path / "found.json").read_text()
    assert not any(secret in outputs for secret in ("Featherstone", "Secret", "Smith", "20200102"))


def test_a_file_is_counted_once_however_many_rows_it_has_and_however_large_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    for k in range(5):
        dicom(folder / "ct" / f"{k}", "1.2", 1.0 * k, PatientName="Doe^Jane")
    dicom(folder / "large.dcm", PatientName="Doe^Jane", DataSetTrailingPadding=bytes(2**26))
    images = [*(f"ct#{k}" for k in range(5)), "./ct/0", "large.dcm"]
    (folder / "manifest.csv").write_text("\n".join(["image,patient,ill", *(f"{image},a,no" for image in images)]))
    (folder / "site.toml").write_text('[task.ill]\nkind="classification"\nclasses="no, yes"\n')
    assert check(folder)[1]["tags-person"]["items"] == [{"name": "PatientName", "said": "6 files"}]
