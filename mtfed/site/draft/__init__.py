"""Draft the manifest and the site file of a folder of images: ``mtfed site init``."""

from .draft import Draft, draft
from .write import refuse_existing, summary, write_draft

__all__ = ["Draft", "draft", "refuse_existing", "summary", "write_draft"]
