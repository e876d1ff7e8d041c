"""``mtfed site check``: every fault is found and named, and a clean site has none."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.slices import dicom
from PIL import Image
from scipy.ndimage import gaussian_filter

from mtfed.cli import main
from mtfed.config import Config
from mtfed.data.store import decode_row
from mtfed.site.check import isolated_pool as crew
from mtfed.site.check.duplicates import ALSO, ENOUGH, NEAR, clusters, find_pairs, near_pairs, unit_vectors
from mtfed.site.check.findings import CHECKS
from mtfed.site.check.survey import survey
from mtfed.site.check.tags import BURNED, FOUND, OVERLAY, PRIVATE, identifying

DATA = Path(__file__).parents[3] / "shared" / "data"
SITE = """
key = "st-mary"
[task.ill]
kind = "classification"
classes = "no, yes"
[task.lesion]
kind = "segmentation"
classes = "background, lesion"
[task.spots]
kind = "detection"
classes = "spot, scar"
[task.age]
kind = "regression"
classes = "years"
range = "0, 110"
"""
HEAD = ["image", "patient", "split", "ill", "lesion", "spots", "age"]
SIDE = 40


def drawn(seed: int) -> np.ndarray:
    """Return an image that is like no other."""
    noise = np.random.default_rng(seed).normal(size=(SIDE, SIDE))
    smooth = gaussian_filter(noise, 2.5)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).round().astype(np.uint8)


def save(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


Table = dict[str, list[str]]


@pytest.fixture
def site(tmp_path: Path) -> Callable[[Callable[[Path, Table], None] | None], Path]:
    """Return what writes a clean site, and spoils it."""

    def make(spoil: Callable[[Path, Table], None] | None = None) -> Path:
        folder = tmp_path / "site"
        folder.mkdir()
        table: Table = {}
        for i in range(12):
            values = drawn(i)
            save(folder / f"{i}.png", values)
            save(folder / f"{i}_m.png", (values > 160).astype(np.uint8))
            box = "2,3,10,12,spot" if i % 2 else "5,5,8,8,scar; 20,20,9,9,spot"
            split = "val" if i > 8 else "train"
            table[f"{i}.png"] = [
                f"p{i // 2}" if i < 8 else f"p{i}",
                split,
                ("no", "yes")[i % 2],
                f"{i}_m.png",
                box,
                "61",
            ]
        if spoil:
            spoil(folder, table)
        rows = [HEAD, *([image.split("|")[0], *cells] for image, cells in table.items())]
        lines = [",".join(f'"{cell}"' for cell in row) for row in rows]
        (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
        (folder / "site.toml").write_text(SITE, encoding="utf-8")
        return folder

    return make


def check(folder: Path, *more: str) -> tuple[int, dict[str, dict]]:
    """Check a site in one process; return the exit code and the findings by id."""
    code = main(["site", "check", str(folder), "--jobs", "1", "--json", str(folder.parent / "found.json"), *more])
    record = json.loads((folder.parent / "found.json").read_text())
    return code, {found["id"]: found for found in record["findings"]}


def cell(name: str, place: int, value: str) -> Callable[[Path, Table], None]:
    def spoil(folder: Path, table: Table) -> None:
        table[name][place] = value

    return spoil


def column(place: int, said: Callable[[str, str], str]) -> Callable[[Path, Table], None]:
    def spoil(folder: Path, table: Table) -> None:
        for name, cells in table.items():
            cells[place] = said(name, cells[1])

    return spoil


def content(name: str, make: Callable[[], bytes | np.ndarray]) -> Callable[[Path, Table], None]:
    def spoil(folder: Path, table: Table) -> None:
        made = make()
        if isinstance(made, bytes):
            (folder / name).write_bytes(made)
        else:
            save(folder / name, made)

    return spoil


def row(image: str, cells: list[str], values: np.ndarray | None = None) -> Callable[[Path, Table], None]:
    def spoil(folder: Path, table: Table) -> None:
        table[image] = cells
        if values is not None:
            save(folder / image, values)

    return spoil


def resave(cells: list[str]) -> Callable[[Path, Table], None]:
    def spoil(folder: Path, table: Table) -> None:
        with Image.open(folder / "1.png") as image:
            image.resize((33, 33)).save(folder / "near.jpg", quality=80)
        table["near.jpg"] = cells

    return spoil


def brighter(folder: Path, table: Table) -> None:
    for i in range(12):
        name = f"{i}.npy"
        values = drawn(i).astype(np.float32) / 255
        np.save(folder / name, values * (1000 if i == 4 else 1))
        table[name] = table.pop(f"{i}.png")
        (folder / f"{i}.png").unlink()


def units(folder: Path, table: Table) -> None:
    np.save(folder / "hu.npy", drawn(77).astype(np.int16) * 8 - 1000)
    table["hu.npy"] = ["q", "train", "yes", "", "", ""]


def spaced(folder: Path, table: Table) -> None:
    for i in range(10):
        dicom(folder / f"{i}.dcm", PixelSpacing=[90, 90] if i == 3 else [0.9, 0.9])
        table[f"{i}.dcm"] = [f"d{i}", "train", "yes", "", "", ""]


def sliced(folder: Path, table: Table) -> None:
    np.save(folder / "v.npy", np.stack([drawn(50), drawn(51)]))
    table["v.npy#0"], table["v.npy#1"] = MISSING, ["r", *MISSING[1:]]


def broken(name: str) -> Callable[[], bytes]:
    return lambda: b"\x89PNG\r\n\x1a\nnothing" + name.encode()


MISSING = ["q", "train", "yes", "", "", ""]
FAULTS: dict[str, tuple[str, str, str, Callable[[Path, Table], None]]] = {
    # what is done: id of the finding, its severity, what it names
    "no such file": ("missing", "error", "gone.png", row("gone.png", MISSING)),
    "a path outside": ("outside", "error", "../x.png", row("../x.png", MISSING)),
    "no picture": ("unreadable", "error", "3.png", content("3.png", broken("3"))),
    "cut off": ("unreadable", "error", "3.png", content("3.png", lambda: png_of(drawn(3))[:300])),
    "an empty file": ("unreadable", "error", "3.png", content("3.png", lambda: b"")),
    "more than allowed": ("too-many-unreadable", "error", "split train", content("3.png", broken("3"))),
    "blank": ("blank", "error", "3.png", content("3.png", lambda: np.full((SIDE, SIDE), 9, np.uint8))),
    "nearly blank": ("nearly-blank", "warning", "3.png", content("3.png", lambda: one_pixel())),
    "no such mask": ("label-missing", "error", "gone.png", cell("3.png", 3, "gone.png")),
    "a broken mask": ("label-unreadable", "error", "3_m.png", content("3_m.png", broken("m"))),
    "a small mask": ("mask-misfit", "error", "3_m.png", content("3_m.png", lambda: np.ones((9, 9), np.uint8))),
    "values": ("mask-values", "error", "3_m.png", content("3_m.png", lambda: (drawn(3) // 64).astype(np.uint8))),
    "empty mask": ("empty-mask", "note", "3_m.png", content("3_m.png", lambda: np.zeros((SIDE, SIDE), np.uint8))),
    "a class": ("class-unknown", "error", "3.png", cell("3.png", 2, "yess")),
    "a class of a box": ("class-unknown", "error", "3.png", cell("3.png", 4, "2,3,10,12,spott")),
    "two ways": ("class-written", "note", "ill", cell("3.png", 2, "1")),
    "a number": ("outside-range", "error", "3.png", cell("3.png", 5, "610")),
    "a box outside": ("outside-range", "error", "3.png", cell("3.png", 4, "90,90,5,5,spot")),
    "no number": ("label-wrong", "error", "3.png", cell("3.png", 5, "old")),
    "no box": ("label-wrong", "error", "3.png", cell("3.png", 4, "2,3,spot")),
    "a split": ("manifest-lines", "error", "line 5", cell("3.png", 1, "trian")),
    "a patient": ("manifest-lines", "error", "line 5", cell("3.png", 0, "")),
    "patient in two splits": ("patient-split", "error", "p9", cell("8.png", 0, "p9")),
    "two patients": ("image-patients", "error", "3.png", row("3.png|again", ["q", "train", "yes", "", "", ""])),
    "a volume of two patients": ("image-patients", "error", "v.npy", sliced),
    "twice": ("named-twice", "note", "3.png", row("3.png|again", ["p1", "train", "yes", "", "", ""])),
    "same image": ("same-across", "error", "3.png and x.png", row("x.png", MISSING, drawn(3))),
    "same patient": ("same-within", "note", "3.png and x.png", row("x.png", ["p1", *MISSING[1:]], drawn(3))),
    "near": ("near-across", "error", "1.png and near.jpg", resave(MISSING)),
    "near, same patient": ("near-within", "note", "1.png and near.jpg", resave(["p0", *MISSING[1:]])),
    "far brighter": ("intensity-outlier", "warning", "4.npy", brighter),
    "other units": ("mixed-kinds", "warning", "more than 8 bits, negative ones", units),
    "far larger": ("size-outlier", "warning", "3.png", content("3.png", lambda: drawn(3).repeat(6, 0).repeat(6, 1))),
    "millimetres": ("spacing-outlier", "warning", "3.dcm", spaced),
    "some spacing": ("some-spacing", "note", "0.png", spaced),
    "a rare class": ("few-patients", "warning", "ill: yes", column(2, lambda n, _: "yes" if n == "3.png" else "no")),
    "no validation": ("no-validation", "warning", "age", column(5, lambda name, split: "" if split == "val" else "7")),
    "no training": ("no-training", "error", "age", column(5, lambda name, split: "" if split == "train" else "7")),
    "no label": ("no-labels", "warning", "age", column(5, lambda name, split: "")),
    "unlabelled": ("unlabelled", "note", "x.png", row("x.png", ["q", "train", "", "", "", ""], drawn(90))),
    "unnamed": ("unnamed", "note", "more.png", content("more.png", lambda: drawn(91))),
}  # fmt: skip


def png_of(values: np.ndarray) -> bytes:
    import io

    written = io.BytesIO()
    Image.fromarray(values).save(written, "PNG")
    return written.getvalue()


def one_pixel() -> np.ndarray:
    values = np.zeros((SIDE, SIDE), np.uint8)
    values[3, 3] = 200
    return values


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_and_named(site: Callable[..., Path], fault: str) -> None:
    name, severity, names, spoil = FAULTS[fault]
    code, found = check(site(spoil))
    assert name in found, list(found)
    assert found[name]["severity"] == severity
    assert names in [item["name"] for item in found[name]["items"]]
    assert code == int(any(one["severity"] == "error" for one in found.values()))


def test_every_check_is_tested() -> None:
    tested = {fault[0] for fault in FAULTS.values()} | {"killed", "unreadable-allowed", "burned-in"}
    assert set(CHECKS) - tested == {f"tags-{group}" for group in ("person", "staff", "place", "time", "private")}


def test_a_clean_site_has_no_findings(site: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = site()
    code, found = check(folder)
    assert code == 0 and not found
    said = capsys.readouterr().out
    assert "st-mary: 12 images of 8 patients" in said and "0 errors" in said and "check.html" in said
    page = (folder / "check.html").read_text()
    assert "ready to train" in page and "stays at the site" in page and page.count("<image ") == 12
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)  # it loads nothing


def test_a_fault_is_on_the_page_with_its_file_and_picture(site: Callable[..., Path]) -> None:
    folder = site(row("x.png", MISSING, drawn(3)))
    assert check(folder)[0] == 1
    page = (folder / "check.html").read_text()
    assert "not ready to train" in page and "3.png and x.png" in page and 'href="#same-across"' in page
    assert page.index('id="same-across"') < page.index('class="pairs"')


def test_names_on_the_page_are_escaped(site: Callable[..., Path]) -> None:
    folder = site(row("<b>.png", ["<script>", "train", "yes", "", "", ""]))
    check(folder)
    page = (folder / "check.html").read_text()
    assert "&lt;b&gt;.png" in page and "<b>.png" not in page and "<script>" not in page


def test_an_app_says_the_tasks_and_how_much_may_be_left_out(site: Callable[..., Path], tmp_path: Path) -> None:
    folder = site(content("3.png", broken("3")))
    app = tmp_path / "app"
    app.mkdir()
    lines = ["[tool.flwr.app.components]", 'serverapp = "mtfed.server:app"', 'clientapp = "mtfed.clients.app:app"']
    lines += ["[tool.flwr.app.config]", "max-unreadable = 0.5", "[tool.flwr.app.config.task.ill]"]
    lines += ['kind = "classification"', 'classes = "no, yes"']
    (app / "pyproject.toml").write_text("\n".join(lines))
    code, found = check(folder, "--app", str(app))
    assert code == 0 and found["unreadable-allowed"]["severity"] == "warning" and "unreadable" not in found


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["nowhere"], "Expected a site folder with a manifest"),
        (["{site}", "--app", "pneumona"], "did you mean 'pneumonia'"),
        (["{bare}"], "Expected tasks to check the labels of"),
        (["{site}", "--out", "{site}/manifest.csv/x.html"], "Cannot write"),
    ],
)
def test_what_is_asked_wrongly_is_told(
    site: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], match: str
) -> None:
    folder, bare = site(), tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "site.toml").unlink()
    given = [word.format(site=folder, bare=bare) for word in arguments]
    assert main(["site", "check", *given, "--jobs", "1"]) == 2
    assert match in capsys.readouterr().err


def test_a_file_that_ends_its_process_is_named(site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from mtfed.site.check.recording_source import RecordingSource

    read = RecordingSource.pixels

    def deadly(self: RecordingSource, channels: int) -> np.ndarray:
        if self.image in ("3.png", "8.png"):
            os._exit(7)
        return read(self, channels)

    monkeypatch.setattr(RecordingSource, "pixels", deadly)
    folder = site()
    for jobs in ("1", "3"):
        code, found = check(folder, "--jobs", jobs)
        assert code == 1 and [item["name"] for item in found["killed"]["items"]] == ["3.png", "8.png"]
        assert "exit code 7" in found["killed"]["items"][0]["said"]
        assert set(found) <= {"killed", "too-many-unreadable", "few-patients"}


def square(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), 9)
    return number * number


@pytest.mark.parametrize(("count", "jobs"), [(0, 2), (1, 4), (50, 1), (50, 3)])
def test_processes_answer_everything_once(count: int, jobs: int) -> None:
    found = dict(crew.outcomes(square, count, jobs))
    assert sorted(found) == list(range(count))
    assert all(found[n] == n * n for n in found if n != 5)
    assert count < 6 or str(found[5]) == "signal SIGKILL"


@pytest.mark.parametrize(("count", "side"), [(2, 24), (700, 24), (300, 12)])
def test_near_pairs_are_those_of_all_comparisons(count: int, side: int) -> None:
    rng = np.random.default_rng(count)
    thumbs = gaussian_filter(rng.normal(size=(count, side, side)), (0, 3, 3))
    for i in range(0, count - 1, 5):  # from hardly changed to changed beyond the threshold
        thumbs[i + 1] = thumbs[i] + rng.uniform(0, 0.3) * thumbs[i].std() * rng.normal(size=(side, side))
    vectors = unit_vectors(thumbs)
    products = np.triu(vectors.astype(np.float64) @ vectors.T, 1)
    left = unit_vectors(vectors - vectors.mean(0)).astype(np.float64)
    beyond = left @ left.T if count >= ENOUGH else np.ones_like(products)

    def pairs(slack: float) -> set[tuple[int, int]]:
        near = (products >= NEAR - slack) & (beyond >= ALSO - 100 * slack)
        return {(int(i), int(j)) for i, j in zip(*np.nonzero(near), strict=True)}

    sure, possible = pairs(-1e-5), pairs(1e-5)
    found = {(i, j) for i, j, _ in near_pairs(vectors)}
    assert sure <= found <= possible and (count < 10 or len(found) > 10)


@pytest.mark.parametrize("count", [5, 10, 19, 40])
def test_what_all_images_have_in_common_makes_no_pair(count: int) -> None:
    rng = np.random.default_rng(0)
    rim = np.hypot(*np.mgrid[-1:1:24j, -1:1:24j]) < 0.9
    eyes = 200.0 * rim + 8 * gaussian_filter(rng.normal(size=(count, 24, 24)), (0, 1, 1)) * rim
    eyes[4] = eyes[3] + 0.3 * rng.normal(size=(24, 24))
    vectors = unit_vectors(eyes)
    assert (vectors @ vectors.T > NEAR).all() and [(i, j) for i, j, _ in near_pairs(vectors)] == [(3, 4)]


def test_pairs_of_the_same_are_told_once() -> None:
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=(2, 24, 24))
    thumbs = {0: first, 3: first, 5: first, 7: other, 9: first + 0.01 * rng.normal(size=(24, 24))}
    pairs = find_pairs(thumbs, {0: b"a", 3: b"a", 5: b"a", 7: b"b", 9: b"c"})
    assert [(p.first, p.second, p.exact) for p in pairs] == [(0, 3, True), (0, 5, True), (0, 9, False)]
    assert clusters(pairs) == [[0, 3, 5, 9]]


def held(**tags: object) -> Callable[[Path], bytes]:
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
        ({"BurnedInAnnotation": "YES"}, {BURNED}),
        ({"BurnedInAnnotation": "NO"}, set()),
        ({}, set()),
    ],
)  # fmt: skip
def test_identifying_tags_are_named(tmp_path: Path, tags: dict[str, object], names: set[str]) -> None:
    assert set(identifying(held(**tags)(tmp_path))) == names


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
    assert set(identifying(path.read_bytes())) == {PRIVATE, OVERLAY, "AccessionNumber"}
    assert identifying(b"no DICOM at all") == () and identifying(path.read_bytes()[:140]) == ()


def test_every_identifying_attribute_is_one_of_dicom() -> None:
    from pydicom.datadict import tag_for_keyword

    assert [name for name in FOUND if tag_for_keyword(name) is None] == []


def test_tags_are_counted_and_their_values_told_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "site"
    for who in range(2):
        series = f"1.2.{who}"
        for k in range(12):
            dicom(folder / f"s{who}" / f"{k}", series, 1.0 * k, PatientName="Featherstone^Jane", StudyDate="20200102",
                  InstitutionName="Secret Clinic", OperatorsName="Smith", BurnedInAnnotation="YES")  # fmt: skip
    (folder / "manifest.csv").write_text("image,patient,ill\ns0,a,no\ns1,b,yes\n")
    (folder / "site.toml").write_text('dimensions = 3\n[task.ill]\nkind="classification"\nclasses="no, yes"\n')
    code, found = check(folder)
    assert code == 0
    told_of = {name: (found[name]["severity"], found[name]["items"]) for name in found if name[:4] in ("tags", "burn")}
    count = "24 files"
    assert told_of == {
        "tags-person": ("warning", [{"name": "PatientName", "said": count}]),
        "burned-in": ("warning", [{"name": BURNED, "said": count}]),
        "tags-staff": ("note", [{"name": "OperatorsName", "said": count}]),
        "tags-place": ("note", [{"name": "InstitutionName", "said": count}]),
        "tags-time": ("note", [{"name": "StudyDate", "said": count}]),
    }
    told = capsys.readouterr().out + (folder / "check.html").read_text() + (tmp_path / "found.json").read_text()
    assert not any(secret in told for secret in ("Featherstone", "Secret", "Smith", "20200102"))


def test_a_file_is_counted_once_however_many_rows_it_has_and_however_large_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    for k in range(5):
        dicom(folder / "ct" / f"{k}", "1.2", 1.0 * k, PatientName="Doe^Jane")
    dicom(folder / "large.dcm", PatientName="Doe^Jane", DataSetTrailingPadding=bytes(2**26))
    images = [*(f"ct#{k}" for k in range(5)), "./ct/0", "large.dcm"]
    (folder / "manifest.csv").write_text("\n".join(["image,patient,ill", *(f"{image},a,no" for image in images)]))
    (folder / "site.toml").write_text('[task.ill]\nkind="classification"\nclasses="no, yes"\n')
    assert check(folder)[1]["tags-person"]["items"] == [{"name": "PatientName", "said": "6 files"}]


def test_volumes_with_masks_are_checked_and_shown(tmp_path: Path) -> None:
    from helpers.hospitals import TASKS, write_site

    folder = write_site(tmp_path / "site", list(TASKS), 8, dimensions=3, side=16)
    lines = ["dimensions = 3"]
    for name, table in TASKS.items():
        lines += [f"[task.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    (folder / "site.toml").write_text("\n".join(lines))
    code, found = check(folder)
    assert not [one for one in found.values() if one["severity"] == "error"], found
    assert code == 0 and "Some of the images" in (folder / "check.html").read_text()


@pytest.mark.parametrize(("proportions", "refused"), [("millimetres", "thin.npz"), ("pixels", "thick.npz")])
def test_an_image_is_refused_where_training_refuses_it(tmp_path: Path, proportions: str, refused: str) -> None:
    np.savez(tmp_path / "thin.npz", image=np.zeros((16, 64, 64), np.int16), spacing=[0.05, 0.7, 0.7])
    np.savez(tmp_path / "thick.npz", image=np.zeros((8, 64, 64), np.int16), spacing=[5, 0.7, 0.7])
    (tmp_path / "manifest.csv").write_text("image,patient,ill\nthin.npz,a,no\nthick.npz,b,no\n")
    tasks = {"ill": {"name": "ill", "kind": "classification", "classes": "no, yes"}}
    config = Config.model_validate({"tasks": tasks, "dimensions": 3, "image-size": 24, "proportions": proportions})
    found = survey(tmp_path, "s", config, 1)
    for of, looked in zip(found.rows, found.examined, strict=True):
        assert bool(looked.fault) == isinstance(decode_row(found.data, of, config), str) == (of.image == refused)


def test_the_exported_sample_is_clean(tmp_path: Path) -> None:
    assert main(["export", str(tmp_path / "sites"), "--sites", "20"]) == 0
    folder = next(path for path in sorted((tmp_path / "sites").iterdir()) if path.name != "test")
    code, found = check(folder, "--app", "pneumonia")
    assert code == 0, found


@pytest.mark.skipif(not (DATA / "formats3d").is_dir(), reason="needs the shared data")
def test_real_series_are_drafted_and_checked(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    for name in ("dicom_ct", "dicom_mr"):
        (folder / name).mkdir(parents=True)
        for path in (DATA / "formats3d" / name).iterdir():
            (folder / name / path.name).symlink_to(path)
    assert main(["site", "init", str(folder)]) == 0
    assert "PGBM" in (folder / "manifest.csv").read_text()
    with open(folder / "site.toml", "a") as file:
        file.write('[task.ill]\nkind = "classification"\nclasses = "no, yes"\n')
    _, found = check(folder)
    assert {"PatientName", "AccessionNumber"} <= {item["name"] for item in found["tags-person"]["items"]}
