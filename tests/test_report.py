"""The HTML report: well formed, everything escaped, headings and pictures that a screen reader can use."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from mdsc.errors import UserError
from mdsc.evaluation.report import (
    Report,
    ReportImage,
    ReportTable,
    Section,
    Verdict,
    check_report_path,
    new_figure,
    number,
    settings_section,
)

EVIL = "\"><script>alert('x')</script>&"
VOID = {"meta", "img"}


class Tags(HTMLParser):
    """Fails where tags are not closed in order; keeps what there is."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def parsed() -> Tags:
    figure = new_figure(3.0, 2.0)
    figure.subplots().plot([0, 1])
    image = ReportImage.of(figure, alt=EVIL, caption=EVIL)
    table = ReportTable(("a", EVIL), [[EVIL, "1"], ["model", "2"]], caption=EVIL, ours=["model"])
    settings = {"input": EVIL, "versions": {"numpy": "2"}, "ratios": [0.2, 0.5], "train": None}
    first = Section("First", [Verdict(EVIL, "bad")], [EVIL], [table], [image])
    report = Report(EVIL, EVIL, [first, settings_section(settings)])
    tags = Tags()
    tags.feed(report.html())
    tags.close()
    return tags


def test_tags_are_closed_and_what_users_wrote_is_text(parsed):
    assert parsed.open == []
    names = [tag for tag, _ in parsed.seen]
    assert "script" not in names
    # Title, heading, subtitle, verdict, paragraph, two headings of the table, its caption, the picture's, a setting.
    assert parsed.text.count(EVIL) == 10
    [image] = [attributes for tag, attributes in parsed.seen if tag == "img"]
    assert image["alt"] == EVIL
    assert image["src"].startswith("data:image/png;base64,")


def test_parts_are_found_from_the_contents_and_rows_have_headings(parsed):
    targets = {attributes["href"][1:] for tag, attributes in parsed.seen if tag == "a"}
    ids = {attributes["id"] for _, attributes in parsed.seen if "id" in attributes}
    assert targets == ids == {"part1", "part2"}
    scopes = [attributes.get("scope") for tag, attributes in parsed.seen if tag == "th"]
    assert scopes == ["col", "col", "row", "row"]
    assert [attributes for tag, attributes in parsed.seen if tag == "tr"][-1] == {"class": "ours"}


def test_settings_are_flat_and_none_is_a_word(parsed):
    for words in ("versions: numpy", "0.2, 0.5", "none"):
        assert words in parsed.text


def test_numbers_that_are_not_defined_are_na():
    assert number(float("nan")) == number(None) == "n/a"
    assert number(0.12345) == "0.1235"
    with pytest.raises(UserError, match=r"r\.txt does not end in \.png or \.html"):
        check_report_path(Path("r.txt"), [".png", ".html"])
