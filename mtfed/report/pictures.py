"""Single images on the page and what is drawn over them."""

from __future__ import annotations

import base64
import io
import math

import numpy as np

from .html import Html, escape, tag

# Colour, width and dashes of outlines: distinguishable for the colour-blind, bright on an X-ray, and both visible where
# they coincide. Where colours distinguish structures, true outlines are still dashed.
TRUE, PREDICTED = ("#56b4e9", 3.2, "5 4"), ("#ffb000", 1.6, "none")
# Colours of structures: also bright on an X-ray, and different from the two above.
BRIGHT = (
    "#2fd18a", "#ff7f9f", "#f4ec5a", "#b79bff", "#ff8a3d", "#7ff0f0", "#c6e36a", "#e0e0e0", "#6f8cff", "#c9a26b",
)  # fmt: skip
MAX_SIDE = 256  # pixels of an image on the page


def step_of(image: np.ndarray) -> int:
    """Return n, where every n-th pixel of an image (C, H, W) is shown."""
    return math.ceil(max(image.shape) / MAX_SIDE)


def picture(image: np.ndarray, alt: str, *over: Html) -> Html:
    """Return an image (C, H, W) with drawings over it, whose unit is a pixel as shown."""
    return pictures([image], alt, *over)


def pictures(images: list[np.ndarray], alt: str, *over: Html) -> Html:
    """Return images (C, H, W) of the same size side by side in one drawing."""
    step = step_of(images[0])
    small = [image[:, ::step, ::step] for image in images]
    _, height, width = small[0].shape
    between = width // 24
    place = {"width": width, "height": height}
    drawn = [tag("image", href=data_uri(im), x=i * (width + between), **place) for i, im in enumerate(small)]
    whole = len(small) * (width + between) - between
    return tag("svg", *drawn, *over, viewBox=f"0 0 {whole} {height}", role="img", aria_label=alt)


def data_uri(image: np.ndarray) -> str:
    """Return an image (C, H, W) as a data URI: lossless if it is small, JPEG otherwise."""
    from PIL import Image

    buffer = io.BytesIO()
    file_format = "PNG" if max(image.shape) <= 128 else "JPEG"
    Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)).save(buffer, file_format, optimize=True)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def outline(labels: np.ndarray, classes: int) -> str:
    """Return the outlines of all classes but the first as an SVG path, in pixels."""
    from contourpy import contour_generator

    path = []
    for k in range(1, classes):
        inside = np.pad(labels == k, 1).astype(float)  # so that outlines close at the edge of the image
        for line in contour_generator(z=inside).lines(0.5):
            path.append("M" + " ".join(f"{x - 0.5:g},{y - 0.5:g}" for x, y in np.asarray(line)[:-1]) + "Z")
    return "".join(path)


def border(mask: np.ndarray, step: int, colour: str, width: float, dash: str = "none", classes: int = 2) -> Html:
    """Return the outlines of a mask (H, W) for a picture that shows every ``step``-th pixel."""
    path = outline(mask[::step, ::step], classes)
    return tag("path", d=path, class_="outline", stroke=colour, stroke_width=width, stroke_dasharray=dash)


def key(label: str, colour: str, width: float, dash: str = "none") -> Html:
    """Return a legend entry: a line as it appears on an image."""
    back = tag("rect", width=26, height=10, fill="#333")
    line = tag("line", x1=2, x2=24, y1=5, y2=5, stroke=colour, stroke_width=width, stroke_dasharray=dash)
    return tag("li", tag("svg", back, line, viewBox="0 0 26 10", aria_hidden="true"), escape(label))


def colours(shares: np.ndarray) -> np.ndarray:
    """Return the colours (..., 3) uint8 of shares (...) of the dose range, from dark to bright."""
    from matplotlib import colormaps

    return (colormaps["inferno"](np.clip(shares, 0, 1))[..., :3] * 255).round().astype(np.uint8)


def wash(image: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return an image (C, H, W) under the colours of shares (H, W), which are NaN without dose, as (3, H, W)."""
    known = np.nan_to_num(shares)
    cover = (0.75 * np.clip(known / 0.2, 0, 1))[None]  # the image stays visible where the dose is low
    under = np.broadcast_to(image, (3, *image.shape[1:])) * (1 - cover)
    return np.round(under + np.moveaxis(colours(known), -1, 0) * cover).astype(np.uint8)


def colour_bar(low: float, high: float, unit: str) -> Html:
    """Return a colour bar from ``low`` to ``high`` as a legend entry."""
    strip = np.moveaxis(colours(np.linspace(0, 1, 128))[None], -1, 0)  # (3, 1, 128)
    bar = tag("image", href=data_uri(strip), width=128, height=10, preserveAspectRatio="none")
    drawn = tag("svg", bar, viewBox="0 0 128 10", aria_hidden="true", class_="colours")
    return tag("li", f"{low:g} ", drawn, f" {high:g} {unit}")


def ruler(low: float, high: float, true: float, predicted: float) -> Html:
    """Return a scale from ``low`` to ``high`` with the true and the predicted value."""
    positions = [4 + 112 * (min(max(value, low), high) - low) / (high - low) for value in (true, predicted)]
    at_true, at_predicted = (f"{position:.1f}" for position in positions)
    marks = [tag("line", x1=4, x2=116, y1=7, y2=7, stroke="#9aa5b1")]
    marks.append(tag("circle", cx=at_true, cy=7, r=5, fill="none", stroke="#0072b2", stroke_width=2))
    marks.append(tag("circle", cx=at_predicted, cy=7, r=3, fill="#d55e00"))
    return tag("svg", *marks, viewBox="0 0 120 14", aria_hidden="true", class_="ruler")
