"""The window of images of more than 8 bits."""

from __future__ import annotations


def window_ends(window: str) -> tuple[float, float] | None:
    """Return the lower and the upper end of a window, its level and width as text; ``None`` if the text is empty.

    Raises:
        ValueError: if the text is not two numbers, or the width is not above 0.
    """
    if not window:
        return None
    try:
        level, width = (float(word) for word in window.split(","))
    except ValueError:
        level, width = 0.0, 0.0
    if not (width > 0 and abs(level) + width < float("inf")):
        raise ValueError("expected a level and a width above 0, such as '40, 400'")
    return level - width / 2, level + width / 2
