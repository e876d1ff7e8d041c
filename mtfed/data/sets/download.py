"""Download files of data sets: interrupted downloads are resumed, and sizes and checksums are verified."""

from __future__ import annotations

import hashlib
import os
import time
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from ...errors import MtfedError
from .dataset import RemoteFile
from .meter import OnProgress, ignore_progress

MAX_FAILURES = 5  # failures in a row without a byte received
RETRY_DELAY = 1.0  # seconds before the first retry; doubled for every further one
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 2**18  # bytes
MAX_BYTES = 2**40  # bytes of a file of unknown size
RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class _SafeRedirects(request.HTTPRedirectHandler):
    """Follow redirects to other servers, but not from https to http, and not to other schemes."""

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> request.Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new != "https"):
            raise MtfedError(f"{req.full_url} redirects to {newurl}, which is not safe to follow; get it by hand.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def download(file: RemoteFile, folder: Path, on_progress: OnProgress = ignore_progress) -> Path:
    """Download a file into a folder, unless it is already there and correct; return its path.

    The bytes received are kept in ``NAME.part`` until the file is complete and verified; a later call resumes there.

    Args:
        file: the file, with its address.
        folder: where it goes.
        on_progress: called with the number of bytes received and the total (0: unknown).

    Raises:
        MtfedError: the file cannot be downloaded, or is not the file that its owners provide and has been removed.
    """
    path = folder / file.name
    if path.exists():
        check_placed(file, path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _download_part(file, part, on_progress)
        if mismatch := _mismatch(file, part):
            part.unlink()
            raise MtfedError(f"{file.name} {mismatch}; it has been removed, get it again from {file.url}.")
        os.replace(part, path)
    except OSError as error:
        raise MtfedError(f"Cannot write {part}: {error.strerror or error}; fix that and try again.") from None
    return path


def check_placed(file: RemoteFile, path: Path) -> None:
    """Refuse a file placed by the user if it is not the one that its owners provide; the file is not removed."""
    if mismatch := _mismatch(file, path):
        raise MtfedError(f"{path} {mismatch}; it is not the file that its owners provide, replace or remove it.")


def _mismatch(file: RemoteFile, path: Path) -> str:
    """Return how a file differs from what its owners provide, in size or checksum; empty if it does not."""
    size = path.stat().st_size
    if file.size and size != file.size:
        return f"should have {file.size} bytes, it has {size}"
    for algorithm, expected in (("md5", file.md5), ("sha256", file.sha256)):
        if expected:
            with open(path, "rb") as content:
                digest = hashlib.file_digest(content, algorithm).hexdigest()
            if digest != expected:
                return f"should have the {algorithm} checksum {expected}, it has {digest}"
    return ""


def _download_part(file: RemoteFile, part: Path, on_progress: OnProgress) -> None:
    """Fill ``part`` until the file is complete, retrying as long as requests bring bytes."""
    if urlsplit(file.url).scheme not in ("http", "https"):
        raise MtfedError(f"Expected an address that begins with https:// for {file.name}, got {file.url!r}.")
    failures, reason = 0, ""
    while failures < MAX_FAILURES:
        if failures:
            time.sleep(RETRY_DELAY * 2 ** (failures - 1))
        before = part.stat().st_size if part.exists() else 0
        try:
            if _request(file, part, before, on_progress):
                return
            reason = "the connection ended early"
        except HTTPError as error:
            if error.code == 416 and before:  # no bytes after those in the part: it is complete, or of another file
                if file.size == before:
                    return
                part.unlink()
            elif error.code not in RETRYABLE_STATUS:
                raise _download_error(file, f"its server answers {error.code} {error.reason}") from None
            reason = f"its server answers {error.code} {error.reason}"
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        has_grown = part.exists() and part.stat().st_size > before
        failures = 0 if has_grown else failures + 1
    raise _download_error(file, reason)


def _request(file: RemoteFile, part: Path, start: int, on_progress: OnProgress) -> bool:
    """Request the bytes after ``start``, and return whether the file is complete."""
    # Some servers refuse requests without an agent; a compressed reply could not be resumed.
    headers = {"User-Agent": "mtfed", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with _opener().open(request.Request(file.url, headers=headers), timeout=TIMEOUT) as reply:
        if reply.status == 206 and not reply.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise HTTPException("it sends another part of the file than the one requested")
        if reply.headers.get_content_type() == "text/html" and not file.name.endswith((".html", ".htm")):
            raise _download_error(file, "its server sends a page instead of the file")
        done = start if reply.status == 206 else 0  # a server without range requests begins again
        total = _total_size(reply, done)
        limit = file.size or total or MAX_BYTES
        with open(part, "ab" if done else "wb") as out:
            while block := reply.read(BLOCK):
                done += len(block)
                if done > limit:
                    out.close()
                    part.unlink()
                    raise _download_error(file, f"it is longer than the {limit} bytes that it should have")
                out.write(block)
                on_progress(done, file.size or total)
        return done == total if total else done == file.size or not file.size


def _total_size(reply: HTTPResponse, start: int) -> int:
    """Return the size of the complete file according to the server; 0 if the server does not send it."""
    length = reply.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() else 0


def _opener() -> request.OpenerDirector:
    """Return an opener of http and https addresses; unlike urllib's default it opens neither files nor ftp."""
    opener = request.OpenerDirector()
    basic = (request.ProxyHandler(), request.HTTPHandler(), request.HTTPSHandler(), request.HTTPDefaultErrorHandler())
    for handler in (*basic, _SafeRedirects(), request.HTTPErrorProcessor()):
        opener.add_handler(handler)
    return opener


def _download_error(file: RemoteFile, reason: str) -> MtfedError:
    return MtfedError(f"Cannot fetch {file.name} from {file.url}: {reason}.")
