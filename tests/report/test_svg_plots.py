"""The plots, and how the page embeds them."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

from report_samples import comparison
from sample_results import example

from dmoerm.report import report_html
from dmoerm.report.page import heat_colors, luminance
from dmoerm.report.svg_plots import color_of


def test_the_same_input_gives_the_same_page() -> None:
    given = comparison(("general", "dmoerm"), ("chitchat",)), example()
    again = (type(results).model_validate_json(results.to_json()) for results in given)
    assert report_html(*given) == report_html(*again)


def test_plots_are_documents_of_their_own_and_ids_are_unique() -> None:
    markup = report_html(example(), example(), comparison(("general", "dmoerm"), ("chitchat",)))
    assert "<svg" not in markup, "inline, clip paths of two plots might share an id"
    ids = re.findall(r' id="([^"]+)"', markup)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', markup)) <= set(ids)
    assert set(re.findall(r'aria-labelledby="([^"]+)"', markup)) <= set(ids)
    assert {"Run: train (1)", "Run: train (2)"} <= set(re.findall(r"<h2[^>]*>([^<]+)", markup))
    images = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)"', markup)
    assert len(images) == markup.count("<img")
    for _, image in images:
        svg = ElementTree.fromstring(base64.b64decode(image))
        inner = [element.get("id") for element in svg.iter() if element.get("id")]
        assert len(inner) == len(set(inner))


def test_text_on_a_heat_map_is_legible() -> None:
    for share in range(-100, 101):
        ground, ink = heat_colors(share / 100)
        light = [luminance([int(c[i : i + 2], 16) for i in (1, 3, 5)]) + 0.05 for c in (ground, ink)]
        assert max(light) / min(light) > 4.5, share


def test_methods_keep_their_color_and_families_share_one() -> None:
    own = ("dmoerm", "general", "per_task", "ensemble_uwo", "bagged_uwo", "warm", "gated", "no_inner", "a judge")
    assert len({color_of(method) for method in own}) == len(own)
    assert color_of("ensemble_mean") == color_of("ensemble_wco")
