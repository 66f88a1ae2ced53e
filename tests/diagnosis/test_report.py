"""The report of an answer: one page without network or script, the same figures in JSON and CSV, and an index of several."""

from __future__ import annotations

import csv
import json
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import pytest
import torch
from diagnosed_answers import TEXT, make_diagnosis, make_word
from PIL import Image

from lvlm_guard import InputError
from lvlm_guard.diagnosis.report.drawing import (
    MOST_CELLS,
    draw_heads,
    draw_map,
    encode_picture,
    find_colour,
    has_view,
    pool,
)
from lvlm_guard.diagnosis.report.files import opened_folder, prepare_folder
from lvlm_guard.diagnosis.report.page import render, split_answer
from lvlm_guard.diagnosis.report.templating import write_number
from lvlm_guard.diagnosis.report.writing import write_index, write_report


class Elements(HTMLParser):
    """Keeps tags with their attributes, and the text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page():
    return render(make_diagnosis())


def test_the_page_needs_nothing_else(page):
    elements = Elements(page)
    assert not any(tag in ("script", "link", "iframe", "object") for tag, _ in elements.tags)
    sources = [
        value for _, attributes in elements.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert all(re.match("data:image/(png|jpeg);base64,", source) for source in sources)
    assert not re.search(r"url\((?!data:)", page)
    assert "default-src 'none'" in page


def test_text_of_a_model_is_no_markup(page):
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "\u202e" not in page


def test_every_word_has_a_row_with_its_figures(page):
    text = re.sub(r"\s+", " ", Elements(page).text)
    for figure in (
        "0.937",
        "\u22122.700",
        "\u22120.500",
        "0.700",
        "0.600",
        "\u22122.500",
        "2.000",
        "\u22120.800",
        "0.400",
        "pan",
    ):
        assert figure in text
    rows = re.findall(r'<tr[^>]*><th scope="row">(\w+)</th>', page.partition('<table class="words">')[2])
    assert rows == ["a", "red", "mug"]


def test_words_with_maps_are_chosen_by_keyboard(page):
    elements = Elements(page)
    radios = [attributes for tag, attributes in elements.tags if tag == "input"]
    assert [radio["type"] for radio in radios] == ["radio"]
    assert "checked" in radios[0]
    assert all(radio["aria-label"] for radio in radios)
    labels = {attributes["for"] for tag, attributes in elements.tags if tag == "label"}
    assert labels == {radio["id"] for radio in radios}


def test_doubt_is_not_told_by_colour_alone(page):
    assert re.search(r'<label class="word doubtful"[^>]*>red<span class="hidden-text"> \(doubt 0\.937\)', page)
    assert "underline wavy" in page


def test_cells_say_their_figures(page):
    assert "row 1, column 1: 1.500" in page
    assert "row 1, column 2: \u22120.500" in page
    assert "layer 2, head 3" in page
    assert 'class="down"' in page


def test_what_hovering_shows_stands_in_a_table_too(page):
    """Who has a keyboard or a finger, and no mouse, sees every figure as well."""
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    hovered = re.findall(r"<title>[^<]*: ([^<]*)</title>", page)
    words = re.findall(r'title="doubt ([^ ]+) by', page)
    assert len(hovered) == 12 + 4 + 6 + 6 + 2
    assert len(words) == 3
    assert not set(hovered + words) - set(cells)
    for kind, rows, columns in (("Occlusion", 2, 2), ("Attention", 2, 3), ("Logit lens", 2, 3)):
        table = re.search(rf'aria-label="{kind} by row and column">(.*?)</table>', page, re.DOTALL)[1]
        assert table.count("<td") == rows * columns


def test_a_column_without_figures_is_left_out(page):
    assert "patch evi" in page
    without = tuple(replace(word, evidence=None) for word in make_diagnosis().words)
    bare = render(make_diagnosis(words=without)).partition('<table class="words">')[2]
    assert "patch evi" not in bare
    assert {row.count("<td") for row in re.findall(r"<tr.*?</tr>", bare)} == {0, bare.count('scope="col"') - 1}


def test_photographs_are_jpegs_and_drawings_are_exact():
    photograph, drawing = (
        Image.radial_gradient("L").resize((900, 600)).convert("RGB"),
        Image.new("RGB", (40, 30), "teal"),
    )
    for longest in (448, 160):
        shown = encode_picture(photograph, longest)
        assert (shown.uri[:16], shown.is_drawn, shown.width) == ("data:image/jpeg;", False, longest)
    shown = encode_picture(drawing)
    assert (shown.uri[:15], shown.is_drawn) == ("data:image/png;", True)
    with Image.open(BytesIO(b64decode(shown.uri.partition(",")[2]))) as read:
        assert read.tobytes() == drawing.tobytes()


def test_the_same_diagnosis_gives_the_same_page(page):
    assert render(make_diagnosis()) == page


def test_the_answer_is_whole_in_its_pieces():
    pieces = split_answer(make_diagnosis(), {1})
    assert "".join(piece.text for piece in pieces) == TEXT
    assert [piece.shade for piece in pieces if piece.word is not None] == [0.0, 0.9371, 0.25]


def test_without_maps_there_is_still_a_page():
    page = render(make_diagnosis(maps=None))
    assert "Occlusion" not in page
    assert "without the picture" in page.lower()


def test_a_picture_that_was_cut_is_what_maps_lie_on():
    assert has_view(Image.new("RGB", (60, 40)), Image.new("RGB", (40, 40)))
    assert not has_view(Image.new("RGB", (60, 40)), Image.new("RGB", (336, 224)))
    assert not has_view(Image.new("RGB", (60, 40)), None)
    page = render(make_diagnosis(model_view=Image.new("RGB", (40, 40), "navy")))
    assert ".base.view" in page
    assert page.count('<div class="base view') == 2
    assert page.count('<div class="base picture') == 1


def test_fine_grids_are_shown_as_means():
    levels = torch.arange(60 * 30, dtype=torch.float64).reshape(60, 30)
    pooled, by = pool(levels)
    assert by == (3, 2)
    assert max(pooled.shape) <= MOST_CELLS
    assert float(pooled[0, 0]) == float(levels[:3, :2].mean())
    assert draw_map("lens", "view", levels.flatten().tolist(), (60, 30)).pooled == (3, 2)


def test_an_even_map_hides_nothing():
    cells = draw_map("attention", "view", [0.25] * 4, (2, 2)).cells
    assert {cell.veil for cell in cells} == {0.0}
    assert {cell.veil for cell in draw_map("occlusion", "picture", [0.0] * 4, (2, 2)).cells} == {0.0}


def test_heads_of_different_numbers_are_drawn():
    heads = draw_heads([[0.5, 1.0], [0.25]])
    assert (heads.heads, heads.layers, len(heads.cells)) == (2, 2, 3)
    assert find_colour(0.0) == "#00224e"
    assert find_colour(2.0) == "#fee838"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\u2013"),
        (True, "yes"),
        (0.5, "0.500"),
        (-0.25, "\u22120.250"),
        (1e-5, "1.0e\u221205"),
        (0.0, "0.000"),
        (2097150.0, "2.09715e+06"),
        (3, "3"),
    ],
)
def test_figures_are_written_short(value, text):
    assert write_number(value) == text


def test_files_hold_the_same_figures(tmp_path):
    diagnosis = make_diagnosis()
    path = write_report(diagnosis, tmp_path / "report")
    assert sorted(file.name for file in path.parent.iterdir()) == ["answer.csv", "answer.html", "answer.json"]
    assert json.loads((path.parent / "answer.json").read_text()) == json.loads(json.dumps(diagnosis.to_dict()))
    rows = list(csv.DictReader((path.parent / "answer.csv").read_text().splitlines()))
    assert [row["text"] for row in rows] == ["a", "red", "mug"]
    assert [float(row["doubt"]) for row in rows] == [0.5, 0.9371, 0.25]
    assert rows[1]["causes"] == "prior; decoding"


def test_no_cell_is_a_formula(tmp_path):
    words = (make_word("=1", len(TEXT) - 4, level=None, choice="=SUM(A1)"),)
    path = write_report(make_diagnosis(words=words, maps=None), tmp_path / "report").with_suffix(".csv")
    assert "'=SUM(A1)" in path.read_text()


def test_several_answers_have_an_index_and_fewer_leave_no_old_pages(tmp_path):
    several = [make_diagnosis(), make_diagnosis(maps=None), make_diagnosis(words=(), maps=None)]
    for number, diagnosis in enumerate(several):
        write_report(diagnosis, tmp_path, number, 3)
    write_index(several, tmp_path, 3)
    index = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', index) == ["answer-1.html", "answer-2.html", "answer-3.html"]
    assert "<script>" not in index
    assert 'href="index.html"' in (tmp_path / "answer-1.html").read_text()
    write_report(several[0], tmp_path)
    write_index(several[:1], tmp_path, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["answer.csv", "answer.html", "answer.json"]


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds something else \('thesis.txt'\)"):
        write_report(make_diagnosis(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(InputError, match="is a file"):
        prepare_folder(tmp_path / "thesis.txt")
    with pytest.raises(InputError, match="can be no file or folder"):
        prepare_folder(tmp_path / "a\0b")


def test_a_new_folder_that_stays_empty_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), opened_folder(tmp_path / "new"):
        _ = 1 / (not (tmp_path / "new").is_dir())
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with opened_folder(tmp_path / "old"):
        pass
    with opened_folder(tmp_path / "written"):
        write_report(make_diagnosis(), tmp_path / "written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "written"]


def test_a_long_answer_has_a_page():
    text = " ".join(["mug"] * 3000)
    words = tuple(make_word("mug", 4 * number) for number in range(3000))
    page = render(make_diagnosis(answer=text, words=words, maps=None))
    assert page.count('<th scope="row">mug</th>') == 3000
    assert len(page) < 4_000_000
