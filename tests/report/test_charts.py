"""Charts as SVG."""

from html_page import Page

from vqjax.report import charts


def test_charts_are_the_same_every_time_and_escape_their_texts():
    def draw():
        return charts.distance_by_count("x", "<FD> & co", [10, 20, 40], [3.0, 2.0, 1.5], None)

    first, second = draw(), draw()
    assert first == second
    Page(first.svg)
    assert "<FD>" not in first.svg and "too few" in first.caption
    assert all(i.startswith("x-") for i in Page(first.svg).ids)
