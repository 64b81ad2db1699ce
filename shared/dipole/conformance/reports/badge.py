"""The verdict as a picture: a small SVG for an author's page, which says in text what it shows."""

from __future__ import annotations

from xml.etree import ElementTree

from dipole.conformance.reports.verdict import Verdict

HEIGHT, FONT_SIZE, PADDING, RADIUS = 20, 11, 8, 3
LETTER_WIDTH = 6.4  # of a proportional font of that size, on average; `textLength` makes any font keep to it
LABEL_COLOUR = "#24292f"
# white on each has a contrast of 4.5 or more (WCAG AA)
COLOURS = {"conforms": "#1a7f37", "fails": "#b42318"}


def draw_badge(verdict: Verdict) -> ElementTree.Element:
    """`ranking protocol v1 | conforms, 42 checks`, on green or on red."""
    label, said = f"ranking protocol v{verdict.protocol_version}", verdict.sentence
    left, right = (round(len(text) * LETTER_WIDTH) + 2 * PADDING for text in (label, said))
    size = {"width": f"{left + right}", "height": f"{HEIGHT}", "viewBox": f"0 0 {left + right} {HEIGHT}"}
    named = {"role": "img", "aria-label": f"{label}: {said}"}
    picture = ElementTree.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size, **named})
    ElementTree.SubElement(picture, "title").text = f"{label}: {said}"
    colour = COLOURS["conforms" if verdict.conforms else "fails"]
    # no clipPath: it would need an id, which pages that hold several badges have once
    for start, width, fill, radius in (
        (0, left + right, colour, RADIUS),
        (0, left, LABEL_COLOUR, RADIUS),
        (left - RADIUS, RADIUS, LABEL_COLOUR, 0),
    ):
        box = {"x": f"{start}", "width": f"{width}", "height": f"{HEIGHT}", "rx": f"{radius}", "fill": fill}
        ElementTree.SubElement(picture, "rect", box)
    font = {"fill": "#ffffff", "font-family": "Verdana, DejaVu Sans, sans-serif", "font-size": f"{FONT_SIZE}"}
    for text, start, width in ((label, 0, left), (said, left, right)):
        place = {"x": f"{start + PADDING}", "y": "14", "textLength": f"{width - 2 * PADDING}"}
        ElementTree.SubElement(picture, "text", {**font, **place, "lengthAdjust": "spacingAndGlyphs"}).text = text
    return picture
