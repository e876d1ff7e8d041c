"""Check the images and labels of a site and write a page about them: ``mtfed site check``."""

from .check import check

__all__ = ["check"]
