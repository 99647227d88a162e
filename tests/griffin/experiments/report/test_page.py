"""A page is one file that loads no other file, and no text in it becomes markup."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest

from griffin.errors import GriffinError
from griffin.experiments.common.results import Table, escaped
from griffin.experiments.report import page as module
from griffin.experiments.report.page import page

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><text>words</text></svg>'
EVIL = "<script>alert(1)</script> | &lt; [x](http://example.org/) ![y](z.svg) `*_# ~~s~~\r\n# no heading"


class Tags(HTMLParser):
    """Every tag with its attributes, and all words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my model").mkdir()
    (tmp_path / "my model" / "a.svg").write_text(SVG)
    return tmp_path


def test_pictures_are_inside(folder: Path) -> None:
    """The address holds the file itself, and the alternative text stays."""
    (picture,) = Tags(page("![what it shows](my%20model/a.svg)", "t", folder)).of("img")
    head, _, content = str(picture["src"]).partition(",")

    assert head == "data:image/svg+xml;base64"
    assert base64.b64decode(content).decode() == SVG
    assert picture["alt"] == "what it shows"


def test_nothing_is_fetched(folder: Path) -> None:
    """No tag and no style loads anything but data, and a policy forbids it. Links may lead elsewhere."""
    text = page("[paper](https://arxiv.org/abs/2404.01365)\n\n![p](my%20model/a.svg)\n\n## A", "t", folder)
    found = Tags(text)

    assert found.of("script", "link", "iframe", "object", "embed", "video", "audio", "source", "base", "form") == []
    assert all(str(attributes["src"]).startswith("data:") for _, attributes in found.tags if "src" in attributes)
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = (meta["content"] for meta in found.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'; img-src data:")
    assert "https://arxiv.org/abs/2404.01365" in [link["href"] for link in found.of("a")]


@pytest.mark.parametrize("place", ["# {}", "## {}", "{}", "- {}", "> **{}**", "![{}](my%20model/a.svg)"])
def test_names_are_no_markup(folder: Path, place: str) -> None:
    """A model's name is plain text everywhere, also in the title and in the contents."""
    text = page(place.format(escaped(EVIL)), EVIL, folder)
    found = Tags(text)
    plain = Tags(page(place.format("plain"), "plain", folder))

    assert "<script" not in text
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in plain.tags]
    if "!" not in place:
        assert EVIL.replace("\r", " ").replace("\n", " ") in "".join(found.words)


def test_cells_are_no_markup(folder: Path) -> None:
    """A table of such names keeps its number of cells."""
    table = Table([EVIL, "b"], [["a", EVIL], [EVIL, "1"]], caption=EVIL)
    found = Tags(page(table.markdown(), "t", folder))

    assert (len(found.of("th")), len(found.of("td"))) == (2, 4)
    assert found.of("script", "img", "a", "h1") == []


def test_html_stays_text(folder: Path) -> None:
    """Also if it was not escaped."""
    found = Tags(page("<b onclick='x'>bold</b>\n\n<script>alert(1)</script>", "t", folder))

    assert found.of("b", "script") == []
    assert "<script>alert(1)</script>" in "".join(found.words)


def test_contents(folder: Path) -> None:
    """Headings of the second and third level are linked, each to its own place, even if two have the same words."""
    found = Tags(page("# Top\n\n## Speed (Table 3)\n\n### model\n\n## Other\n\n### model\n\n#### deep", "t", folder))
    names = [str(attributes["id"]) for attributes in found.of("h1", "h2", "h3", "h4")]

    assert [link["href"] for link in found.of("a")] == ["#speed-table-3", "#model", "#other", "#model-2"]
    assert names == ["top", "speed-table-3", "model", "other", "model-2", "deep"]


def test_tables_scroll_on_their_own(folder: Path) -> None:
    """Each has a frame that a keyboard reaches. Words are on the left and figures on the right."""
    found = Tags(page(Table(["a", "b", "c"], [["x", "y", "1"]], words=2).markdown(), "t", folder))

    assert found.of("div") == [{"class": "table", "tabindex": "0", "role": "group"}]
    assert found.of("td") == [{}, {}, {"style": "text-align:right"}]


def test_a_number_keeps_its_unit(folder: Path) -> None:
    """A line does not break between them; code does not change."""
    text = page("lost 5 % of it, `5 %`", "t", folder)

    assert "lost 5\N{NO-BREAK SPACE}% of it, <code>5 %</code>" in text


def test_both_themes(folder: Path) -> None:
    """The page declares both, and the dark theme has its own colours."""
    text = page("a", "t", folder)

    assert "color-scheme: light dark" in text
    assert "@media (prefers-color-scheme: dark)" in text
    assert "@media print" in text


@pytest.mark.parametrize("address", ["nowhere.svg", "https://example.org/a.svg", "notes.txt"])
def test_a_missing_picture_is_one_line(folder: Path, address: str) -> None:
    """A file that is missing, an address elsewhere, and a file that is no picture."""
    with pytest.raises(GriffinError, match="picture") as caught:
        page(f"![a]({address})", "t", folder)

    assert len(str(caught.value).splitlines()) == 1


def test_a_page_needs_markdown_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If it is missing, the error says how to install it."""
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GriffinError, match=r"pip install .* '\.\[experiments\]'"):
        page("a", "t", tmp_path)
