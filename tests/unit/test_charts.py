"""A chart is well-formed and shows what it was given."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from bench.charts import BOTTOM, LEFT, RIGHT, TOP, Axis, Chart, Series, render

SVG = "{http://www.w3.org/2000/svg}"
LINEAR, LOG = Axis("clients"), Axis("ms", log=True)


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(render(chart))


def lines(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [
        [
            (float(x), float(y))
            for x, y in (pair.split(",") for pair in line.attrib["points"].split())
        ]
        for line in root.iter(f"{SVG}polyline")
    ]


def test_each_line_has_as_many_points_as_its_data_and_all_are_inside_the_frame() -> None:
    data = [(1.0, 3.0), (2.0, 0.02), (8.0, 900.0)]
    root = drawn(Chart("t", LINEAR, LOG, [Series("a", data), Series("b", data[:2], dots=False)]))
    assert [len(line) for line in lines(root)] == [3, 2]
    assert len(list(root.iter(f"{SVG}circle"))) == 3
    for x, y in (point for line in lines(root) for point in line):
        assert LEFT <= x <= RIGHT
        assert TOP <= y <= BOTTOM


def test_what_is_more_is_further_right_and_higher_up() -> None:
    (line,) = lines(drawn(Chart("t", LINEAR, LINEAR, [Series("a", [(1, 1), (2, 5)])])))
    assert line[0][0] < line[1][0]
    assert line[0][1] > line[1][1]


def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis() -> None:
    points = [(10.0, 1.0), (100.0, 1.0), (1000.0, 1.0)]
    (line,) = lines(drawn(Chart("t", LOG, LINEAR, [Series("a", points)])))
    assert line[1][0] - line[0][0] == pytest.approx(line[2][0] - line[1][0], abs=0.2)


def test_titles_labels_and_names_are_shown_whatever_is_in_them() -> None:
    chart = Chart("a < b & c", Axis("x > 1"), Axis("y"), [Series("<both>", [(1, 1)])])
    texts = {text.text for text in drawn(chart).iter(f"{SVG}text")}
    assert {"a < b & c", "x > 1", "y", "<both>"} <= texts


@pytest.mark.parametrize("values", [[0.0, 0.0], [7.0, 7.0], [0.0013, 0.9], [1.0, 123_456.0]])
def test_any_range_has_a_scale(values: list[float]) -> None:
    points = list(enumerate(values))
    (line,) = lines(drawn(Chart("t", LINEAR, LINEAR, [Series("a", points)])))
    assert all(TOP <= y <= BOTTOM for _, y in line)


@pytest.mark.parametrize("values", [[7.0, 7.0], [10.0, 10.0], [0.0013, 0.9], [1.0, 123_456.0]])
def test_any_range_above_zero_has_a_logarithmic_scale(values: list[float]) -> None:
    points = list(enumerate(values))
    (line,) = lines(drawn(Chart("t", LINEAR, LOG, [Series("a", points)])))
    assert all(TOP <= y <= BOTTOM for _, y in line)


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        render(Chart("t", LINEAR, LINEAR, [Series("a", [])]))


def test_zero_is_refused_on_a_logarithmic_axis() -> None:
    with pytest.raises(ValueError, match="no zero"):
        render(Chart("t", LOG, LINEAR, [Series("a", [(0, 1), (1, 1)])]))
