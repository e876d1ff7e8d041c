"""Single images on the page, with what lies over them."""

from __future__ import annotations

import base64
import io
import math

import numpy as np

from .html import Html, escape, tag

# Colour, width and dashes of what is drawn over an image: apart for the colour-blind, bright on an X-ray, both seen
# where they agree. Where colours tell structures, what is true is dashed all the same.
TRUE, PREDICTED = ("#56b4e9", 3.2, "5 4"), ("#ffb000", 1.6, "none")
# Of structures, bright on an X-ray likewise, and neither of the two above.
BRIGHT = (
    "#2fd18a", "#ff7f9f", "#f4ec5a", "#b79bff", "#ff8a3d", "#7ff0f0", "#c6e36a", "#e0e0e0", "#6f8cff", "#c9a26b",
)  # fmt: skip
LONGEST = 256  # pixels of an image's side on the page


def step_of(image: np.ndarray) -> int:
    """Return which pixels of an image (C, H, W) are shown: every first, second, or n-th."""
    return math.ceil(max(image.shape) / LONGEST)


def picture(image: np.ndarray, alt: str, *over: Html) -> Html:
    """Return an image (C, H, W) with what lies over it, drawn in the pixels that are shown."""
    return pictures([image], alt, *over)


def pictures(images: list[np.ndarray], alt: str, *over: Html) -> Html:
    """Return images (C, H, W) of one size side by side as one drawing."""
    step = step_of(images[0])
    small = [image[:, ::step, ::step] for image in images]
    _, height, width = small[0].shape
    between = width // 24
    drawn = [
        tag("image", href=data_uri(image), x=i * (width + between), width=width, height=height)
        for i, image in enumerate(small)
    ]
    whole = len(small) * (width + between) - between
    return tag("svg", *drawn, *over, viewBox=f"0 0 {whole} {height}", role="img", aria_label=alt)


def data_uri(image: np.ndarray) -> str:
    """Return an image (C, H, W) for a page that loads nothing: exact if it is small, else compressed."""
    from PIL import Image

    written = io.BytesIO()
    kind = "PNG" if max(image.shape) <= 128 else "JPEG"
    Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)).save(written, kind, optimize=True)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(written.getvalue()).decode()}"


def outline(labels: np.ndarray, classes: int) -> str:
    """Return the borders of all structures as an SVG path in pixels."""
    from contourpy import contour_generator

    path = []
    for k in range(1, classes):
        inside = np.pad(labels == k, 1).astype(float)  # closed where it meets the image's edge
        for line in contour_generator(z=inside).lines(0.5):
            path.append("M" + " ".join(f"{x - 0.5:g},{y - 0.5:g}" for x, y in np.asarray(line)[:-1]) + "Z")
    return "".join(path)


def border(mask: np.ndarray, step: int, colour: str, width: float, dash: str = "none", classes: int = 2) -> Html:
    """Return the outlines of a mask (H, W) over a picture that shows every ``step``-th pixel."""
    path = outline(mask[::step, ::step], classes)
    return tag("path", d=path, class_="outline", stroke=colour, stroke_width=width, stroke_dasharray=dash)


def key(label: str, colour: str, width: float, dash: str = "none") -> Html:
    """Return an entry of a legend: a line as it looks on an image."""
    back = tag("rect", width=26, height=10, fill="#333")
    line = tag("line", x1=2, x2=24, y1=5, y2=5, stroke=colour, stroke_width=width, stroke_dasharray=dash)
    return tag("li", tag("svg", back, line, viewBox="0 0 26 10", aria_hidden="true"), escape(label))


def colours(shares: np.ndarray) -> np.ndarray:
    """Return shares (...) of a dose's range as colours (..., 3) uint8, from dark to bright."""
    from matplotlib import colormaps

    return (colormaps["inferno"](np.clip(shares, 0, 1))[..., :3] * 255).round().astype(np.uint8)


def wash(image: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return an image (C, H, W) under the colours of shares (H, W), NaN where there are none, as (3, H, W)."""
    known = np.nan_to_num(shares)
    cover = (0.75 * np.clip(known / 0.2, 0, 1))[None]  # the image stays in sight where there is next to nothing
    under = np.broadcast_to(image, (3, *image.shape[1:])) * (1 - cover)
    return np.round(under + np.moveaxis(colours(known), -1, 0) * cover).astype(np.uint8)


def colour_bar(low: float, high: float, unit: str) -> Html:
    """Return a scale of the colours from ``low`` to ``high``."""
    strip = np.moveaxis(colours(np.linspace(0, 1, 128))[None], -1, 0)  # (3, 1, 128)
    bar = tag("image", href=data_uri(strip), width=128, height=10, preserveAspectRatio="none")
    drawn = tag("svg", bar, viewBox="0 0 128 10", aria_hidden="true", class_="colours")
    return tag("li", f"{low:g} ", drawn, f" {high:g} {unit}")


def ruler(low: float, high: float, true: float, predicted: float) -> Html:
    """Return a scale from ``low`` to ``high`` with the true and the predicted value on it."""
    at_true, at_predicted = (
        f"{4 + 112 * (min(max(value, low), high) - low) / (high - low):.1f}" for value in (true, predicted)
    )
    marks = [tag("line", x1=4, x2=116, y1=7, y2=7, stroke="#9aa5b1")]
    marks.append(tag("circle", cx=at_true, cy=7, r=5, fill="none", stroke="#0072b2", stroke_width=2))
    marks.append(tag("circle", cx=at_predicted, cy=7, r=3, fill="#d55e00"))
    return tag("svg", *marks, viewBox="0 0 120 14", aria_hidden="true", class_="ruler")
