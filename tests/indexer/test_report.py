"""Reports: JSON and back, the table of the terminal, and pages that need nothing and run nothing."""

import base64
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.encoder import EncoderName, EncoderSpec
from indexer.errors import BuildError
from indexer.evaluate.compare import Cell, Column, Comparison, Row, compare
from indexer.evaluate.page import comparison_page, report_page, thumbnails
from indexer.evaluate.plots import Line, curves, lines, matrix
from indexer.evaluate.queries import Asked, Kind, PerQuery, Queries, texts
from indexer.evaluate.report import (
    Confusion,
    Evaluation,
    Example,
    Figure,
    Hit,
    Report,
    Section,
    SweepPoint,
    Unit,
)
from indexer.samples import load_samples
from tests.conftest import POLICY

SPEC = EncoderSpec(name=EncoderName(model="demo"), dim=16, image="a" * 64, text="b" * 64)
HOSTILE = (
    """<script>alert("1")</script>'"><img src=http://evil.example/x onerror=alert(1)>$\\frac{$ &amp; {{ 7 * 7 }}"""
)
PIXEL = "data:image/jpeg;base64,AAAA"


def figure(name: str, value: float, unit: Unit = Unit.PART, interval: tuple[float, float] | None = None) -> Figure:
    queries = 1_234 if unit is Unit.PART else None
    return Figure(name=name, title=name.upper(), unit=unit, value=value, interval=interval, queries=queries)


def report(label: str = "cat") -> Report:
    """Return a report with everything in it; `label` stands wherever users' words may stand."""
    return Report(
        model=label,
        encoder=SPEC,
        data=label,
        pictures=1_234,
        skipped=5,
        groups=f"Groups of {label}.",
        sections=(
            Section(
                title="Image to image",
                protocol=f"All against all, column {label}.",
                figures=(figure("map", 0.5248, interval=(0.5, 0.55)), figure("r1", 1.0)),
            ),
            Section(title="k-NN classification", protocol="Votes.", figures=(figure("accuracy", 0.9),)),
            Section(title="Modality gap", protocol="", figures=(figure("gap", 0.0351, Unit.DISTANCE),)),
            Section(title="Approximate index", protocol="", figures=(figure("speed", 12.345, Unit.TIMES),)),
        ),
        absent={"Text to image": f"No {label} has a caption."},
        curve=tuple(np.linspace(1, 0.2, 101).tolist()),
        sweep=tuple(SweepPoint(k=k, temperature=t, accuracy=0.5 + k / 200) for t in (0.1, 0.5) for k in (1, 5, 21)),
        confusion=Confusion(labels=(label, "_dog"), counts=((3, 1), (0, 7)), classes=40),
        examples=(
            Example(
                kind=Kind.PICTURE,
                standing="best",
                query=f"{label}/1.png",
                label=label,
                score=0.75,
                hits=(
                    Hit(picture="seen.png", label=label, right=True),
                    Hit(picture=f"{label}/unseen.png", label=None, right=False),
                ),
            ),
            Example(kind=Kind.CAPTION, standing="worst", query=f"a {label}", label=None, score=17, hits=()),
        ),
    )


def comparison(label: str = "cat") -> Comparison:
    first = Cell(value=0.5, interval=(0.4, 0.6), seeds=(0.5,), spread=None, difference=None, difference_interval=None)
    tuned = Cell(
        value=0.625,
        interval=(0.6, 0.65),
        seeds=(0.6, 0.65),
        spread=0.0354,
        difference=0.125,
        difference_interval=(-0.01, 0.2),
    )
    gap = Cell(value=1.5, interval=None, seeds=(1.5,), spread=None, difference=-0.25, difference_interval=None)
    return Comparison(
        data=label,
        pictures=9,
        groups="Groups.",
        columns=(
            Column(name="image_to_image_map", title="I2I mAP", unit=Unit.PART),
            Column(name="modality_gap", title="Gap", unit=Unit.DISTANCE),
        ),
        headlines=1,
        rows=(
            Row(
                model=label, cells=(first, first.model_copy(update={"value": 1.75, "interval": None})), curve=(1.0, 0.5)
            ),
            Row(model="tuned", cells=(tuned, gap), curve=(1.0, 0.7)),
        ),
        protocols={"Image to image": f"Column {label}."},
    )


class Page(HTMLParser):
    """What a page is made of: its tags with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_report_comes_back_from_json_as_it_was() -> None:
    assert Report.model_validate_json(report().model_dump_json()) == report()
    assert Comparison.model_validate_json(comparison().model_dump_json()) == comparison()


def test_the_table_shows_every_figure_with_its_interval_and_every_reason() -> None:
    assert report().table().splitlines() == [
        "cat on cat: 1,234 pictures, 5 skipped",
        "",
        "Image to image",
        "  MAP          52.5  [50.0, 55.0]      1,234 queries",
        "  R1          100.0                    1,234 queries",
        "",
        "k-NN classification",
        "  ACCURACY     90.0                    1,234 queries",
        "",
        "Modality gap",
        "  GAP         0.035",
        "",
        "Approximate index",
        "  SPEED      12.35x",
        "",
        "No figures",
        "  Text to image: No cat has a caption.",
    ]


def test_a_comparison_is_two_tables_in_text_and_in_markdown() -> None:
    assert comparison("ba|se").table().splitlines() == [
        "       I2I mAP",
        "ba|se  50.0 [40.0, 60.0]",
        "tuned  62.5 ± 3.5 [60.0, 65.0]",
        "",
        "less ba|se  I2I mAP",
        "tuned       +12.5 [-1.0, +20.0]",
    ]
    assert comparison("ba|se").markdown(every=True).splitlines() == [
        "|  | I2I mAP | Gap |",
        "| --- | --- | --- |",
        "| ba\\|se | 50.0 [40.0, 60.0] | 1.750 |",
        "| tuned | 62.5 ± 3.5 [60.0, 65.0] | 1.500 |",
        "",
        "| less ba\\|se | I2I mAP | Gap |",
        "| --- | --- | --- |",
        "| tuned | +12.5 [-1.0, +20.0] | -0.250 |",
    ]


# Files

QUERIES = Queries(
    {
        Kind.PICTURE: Asked(texts(["a.png", "ü.png"]), texts(["label a", "label b"])),
        Kind.CAPTION: Asked(texts([]), texts([])),
    },
    {"map": PerQuery(Kind.PICTURE, np.array([1]), np.array([0.25]))},
)


def test_queries_are_saved_and_loaded_without_pickle(tmp_path: Path) -> None:
    Evaluation(report(), QUERIES).save(tmp_path)
    loaded = Evaluation.load(tmp_path)
    assert loaded.report == report()
    pictures = loaded.queries.asked[Kind.PICTURE]
    assert (pictures.names.tolist(), pictures.groups.tolist()) == (["a.png", "ü.png"], ["label a", "label b"])
    assert loaded.queries.asked[Kind.CAPTION].names.tolist() == []
    found = loaded.queries.values["map"]
    assert (found.kind, found.rows.tolist(), found.values.tolist()) == (Kind.PICTURE, [1], [0.25])
    with np.load(tmp_path / "queries.npz", allow_pickle=False) as file:
        assert file["picture/map/values"].tolist() == [0.25]


@pytest.mark.parametrize("name", ["report.json", "queries.npz"])
@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04 torn", b"\xff\xfe", None])
def test_what_is_no_evaluation_is_refused(tmp_path: Path, name: str, content: bytes | None) -> None:
    Evaluation(report(), QUERIES).save(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BuildError, match=f"{name} (is no report|holds no queries) of an evaluation"):
        Evaluation.load(tmp_path)


def test_an_npz_file_of_something_else_is_refused(tmp_path: Path) -> None:
    Evaluation(report(), QUERIES).save(tmp_path)
    np.savez(tmp_path / "queries.npz", other=np.arange(3))
    with pytest.raises(BuildError, match="holds no queries of an evaluation"):
        Evaluation.load(tmp_path)


# Pages

PAGES = {
    "report": lambda label: report_page(report(label), {f"{label}/1.png": PIXEL, "seen.png": PIXEL}),
    "comparison": lambda label: comparison_page(comparison(label)),
}


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("label", ["cat", HOSTILE])
def test_a_page_loads_nothing_and_runs_nothing(kind: str, label: str) -> None:
    whole = PAGES[kind](label)
    page = Page(whole)
    assert "script" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    assert not re.findall(r"url\((?!#)|@import", whole)
    policy = next(
        attributes for _, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert str(policy["content"]).startswith("default-src 'none'; img-src data:")


@pytest.mark.parametrize("kind", PAGES)
def test_hostile_words_are_shown_as_they_are(kind: str) -> None:
    page = Page(PAGES[kind](HOSTILE))
    assert HOSTILE in page.text
    assert "49" not in page.text.replace("1,249", "")  # nothing worked out what stands in braces
    assert not any(attributes.get("src") == "http://evil.example/x" for _, attributes in page.tags)


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_is_told_to_those_who_cannot_see_it(kind: str) -> None:
    page = Page(PAGES[kind]("cat"))
    assert ("html", {"lang": "en"}) in page.tags
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    plots = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert plots
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in plots)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


@pytest.mark.parametrize("kind", PAGES)
def test_no_name_is_given_twice_to_different_parts_of_a_page(kind: str) -> None:
    page = PAGES[kind]("cat")
    names = re.findall(r'<(path|clipPath|g) [^>]*?id="([^"]+)"', page)
    assert len({name for _, name in names}) == len(names)


def test_a_report_page_shows_every_figure_reason_plot_and_hit() -> None:
    page = Page(PAGES["report"]("cat"))
    words = " ".join(page.text.split())
    assert "MAP 52.5 [50.0, 55.0] 1,234" in words
    assert "GAP 0.035 - -" in words
    assert "Text to image: No cat has a caption." in words
    assert "All against all, column cat." in words
    assert "the 2 most confused of 40 classes" in words
    assert "Best by picture: average precision 75.0 %" in words
    assert "Worst by caption: “a cat”, first right picture at rank 17" in words
    assert "✓ right" in words
    assert "✗ wrong" in words
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    classes = [attributes.get("class") for tag, attributes in page.tags if tag == "li" and attributes]
    assert classes == ["right", "wrong"]
    alts = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert alts == ["query: cat/1.png, label cat", "hit 1, right: seen.png, label cat"]
    assert "hit 2, wrong: cat/unseen.png" in words  # there is no thumbnail


def test_a_report_without_plots_and_examples_is_a_page_too() -> None:
    bare = Report(model="m", encoder=SPEC, data="d", pictures=1, skipped=0, groups="", sections=(), absent={})
    page = Page(report_page(bare, {}))
    assert "svg" not in {tag for tag, _ in page.tags}
    assert bare.table() == "m on d: 1 pictures, 0 skipped"


def test_a_comparison_page_shows_values_differences_and_one_plot_for_all() -> None:
    page = Page(PAGES["comparison"]("cat"))
    words = " ".join(page.text.split())
    assert "tuned 62.5 ± 3.5 [60.0, 65.0] +12.5 [-1.0, +20.0]" in words
    assert "tuned 1.500 -0.250" in words
    assert "standard deviation over training seeds" in words
    assert "Column cat." in words
    (plot,) = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert str(plot).endswith("cat, tuned.")


def test_thumbnails_are_small_pictures_of_those_that_examples_name(source: Path) -> None:
    Image.new("RGB", (600, 300), "red").save(source / "red" / "0.png")
    samples = load_samples(source / "table.csv", None, POLICY)
    names = ["red/0.png", "blue/1.png", "green/2.png", "red/gone.png"]
    (source / "green" / "2.png").write_bytes(b"damaged since")
    example = Example(
        kind=Kind.PICTURE,
        standing="best",
        query=names[0],
        label="red",
        score=1,
        hits=tuple(Hit(picture=name, label=None, right=True) for name in names[1:]),
    )
    found = thumbnails(report().model_copy(update={"examples": (example,)}), samples)
    assert set(found) == {"red/0.png", "blue/1.png"}
    data = base64.b64decode(found["red/0.png"].removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (128, 64))


# Plots


def test_a_plot_is_sound_xml_of_the_colour_around_it_and_the_same_each_time() -> None:
    plot = curves({"loss": [3, 2, 1], "_other": [1, 2, 3]}, "Loss", "step", "nats")
    root = ET.fromstring(plot)  # noqa: S314 - our own
    texts_shown = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Loss", "step", "nats", "loss", "\u200b_other"} <= set(texts_shown)
    assert "currentColor" in plot
    assert "#000000" not in plot
    assert plot == curves({"loss": [3, 2, 1], "_other": [1, 2, 3]}, "Loss", "step", "nats")
    assert root.get("aria-label") == "Loss: nats against step; loss, _other."


@pytest.mark.parametrize("label", [HOSTILE, r"$\frac{$", "日本 😀 مرحبا", "\x00\x07\x1b\ud800", "", "_" * 300])
def test_any_label_can_be_plotted(label: str) -> None:
    for plot in (
        curves({label: [1, 2], "b": [2, 1]}, "Title", "x", "y"),
        lines({label: Line([0.1, 0.2], [1, 101]), "b": Line([0.1], [5])}, "Title", "x", "y", logarithmic=True),
        matrix([label, "b"], [[1, 0], [2, 3]], "Title", "x", "y"),
    ):
        ET.fromstring(plot)  # noqa: S314 - our own


def test_a_plot_puts_points_where_they_belong() -> None:
    root = ET.fromstring(lines({"a": Line([0, 1, 0.5], [0, 1, 2])}, "T", "x", "y", ylimits=(0, 1)))  # noqa: S314
    paths = [node for node in root.iter("{http://www.w3.org/2000/svg}path") if "#3b82d0" in str(node.get("style"))]
    points = re.findall(r"[ML] ([\d.]+) ([\d.]+)", str(paths[0].get("d")))
    (x0, y0), (x1, y1), (x2, y2) = ((float(x), float(y)) for x, y in points)
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2))  # y grows downwards


def test_a_matrix_writes_every_count_that_is_not_zero() -> None:
    root = ET.fromstring(matrix(["a", "b"], [[12, 0], [345, 6]], "T", "x", "y"))  # noqa: S314
    shown = [str(node.text) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(each for each in shown if each.isdecimal()) == ["12", "345", "6"]


def test_a_comparison_of_one_model_is_one_table() -> None:
    one = compare({"only": [Evaluation(report(), QUERIES)]})
    assert "less" not in one.table(every=True)
