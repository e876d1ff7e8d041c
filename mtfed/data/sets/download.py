"""Files from their owners' servers: fetched on from where a download stopped, and checked before they count."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from ...errors import MtfedError
from .dataset import RemoteFile

TRIES = 5  # in a row that bring no byte
WAIT = 1.0  # seconds before the second try; doubled for every further one
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 2**18  # bytes
MAX_BYTES = 2**40  # of a file whose size is not known
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # answers that may be others next time
Tell = Callable[[int, int], None]  # bytes that are here, of how many (0: not known)


class _Redirects(HTTPRedirectHandler):
    """Follow to other servers, but not from https to http, and to no other kind of address."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old == "https" and new != "https"):
            raise MtfedError(f"{req.full_url} leads on to {newurl}, which is not safe to follow; get the file by hand.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def download(file: RemoteFile, folder: Path, tell: Tell = lambda done, of: None) -> Path:
    """Fetch a file into a folder, unless it is there and right; return its path.

    What has come lies in ``NAME.part`` until it is whole and checked; a later call goes on from there.

    Args:
        file: with the address.
        folder: where it goes.
        tell: is told how many bytes are here, of how many (0: not known).

    Raises:
        MtfedError: it cannot be fetched, or is not the file that its owners give, and has been removed.
    """
    path = folder / file.name
    if path.exists():
        check_placed(file, path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _fetch(file, part, tell)
        if wrong := _fault(file, part):
            part.unlink()
            raise MtfedError(f"{file.name} {wrong}; it has been removed, get it again from {file.url}.")
        os.replace(part, path)
    except OSError as error:
        raise MtfedError(f"Cannot write {part}: {error.strerror or error}; mend that and try again.") from None
    return path


def check_placed(file: RemoteFile, path: Path) -> None:
    """Refuse a file that somebody has placed, if it is not what its owners give; it is theirs, and stays."""
    if wrong := _fault(file, path):
        raise MtfedError(f"{path} {wrong}; it is not the file that its owners give, replace or remove it.")


def _fault(file: RemoteFile, path: Path) -> str:
    """Say how a file differs in size or checksum from what its owners give; nothing if it does not."""
    size = path.stat().st_size
    if file.size and size != file.size:
        return f"should have {file.size} bytes, it has {size}"
    for name, expected in (("md5", file.md5), ("sha256", file.sha256)):
        if expected:
            with open(path, "rb") as content:
                found = hashlib.file_digest(content, name).hexdigest()
            if found != expected:
                return f"should have the {name} checksum {expected}, it has {found}"
    return ""


def _fetch(file: RemoteFile, part: Path, tell: Tell) -> None:
    """Fill ``part`` until it is whole, over as many tries as bring something."""
    if urlsplit(file.url).scheme not in ("http", "https"):
        raise MtfedError(f"Expected an address that begins with https:// for {file.name}, got {file.url!r}.")
    failed, reason = 0, ""
    while failed < TRIES:
        if failed:
            time.sleep(WAIT * 2 ** (failed - 1))
        before = part.stat().st_size if part.exists() else 0
        try:
            if _try(file, part, before, tell):
                return
            reason = "the connection ended early"
        except HTTPError as error:
            if error.code == 416 and before:  # there is nothing after what is here: whole, or of another file
                if file.size == before:
                    return
                part.unlink()
            elif error.code not in AGAIN:
                raise _cannot(file, f"its server answers {error.code} {error.reason}") from None
            reason = f"its server answers {error.code} {error.reason}"
        except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        came = part.exists() and part.stat().st_size > before
        failed = 0 if came else failed + 1
    raise _cannot(file, reason)


def _try(file: RemoteFile, part: Path, start: int, tell: Tell) -> bool:
    """Fetch what is missing after ``start`` bytes, and say whether that was all."""
    # Some servers turn away what names no agent; a packed answer could not be gone on with.
    headers = {"User-Agent": "mtfed", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with _opener().open(Request(file.url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise HTTPException("it sends another part of the file than it was asked for")
        if answer.headers.get_content_type() == "text/html" and not file.name.endswith((".html", ".htm")):
            raise _cannot(file, "its server sends a page instead of the file")
        done = start if answer.status == 206 else 0  # it may not know of parts, and begins again
        whole = _whole(answer, done)
        most = file.size or whole or MAX_BYTES
        with open(part, "ab" if done else "wb") as out:
            while block := answer.read(BLOCK):
                done += len(block)
                if done > most:
                    out.close()
                    part.unlink()
                    raise _cannot(file, f"it is longer than the {most} bytes that it should have")
                out.write(block)
                tell(done, file.size or whole)
        return done == whole if whole else done == file.size or not file.size


def _whole(answer: HTTPResponse, start: int) -> int:
    """Return the size of the whole file as the server tells it; 0 if it does not."""
    length = answer.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() else 0


def _opener() -> OpenerDirector:
    """Return what opens http and https and, unlike urllib's own, neither files nor ftp."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        _Redirects(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _cannot(file: RemoteFile, reason: str) -> MtfedError:
    return MtfedError(f"Cannot fetch {file.name} from {file.url}: {reason}.")
