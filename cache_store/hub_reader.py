"""HubReader: the files of one revision of a Hugging Face Hub repository, over HTTP.

`hf_hub_download` is not used: it does not check what it downloads, and begins again at byte 0 in each process. The
session, its configuration, offline mode and token are huggingface_hub's own.
"""

import io
import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the base of all that the HTTP client raises, whichever client this release has
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from cache_store.digest import CHUNK
from cache_store.errors import Busy, Denied, Malformed, Missing, StoreError, StoreFull, Unreachable
from cache_store.patience import ASK_SECONDS, Deadline, retried

TIMEOUT = 15.0  # s to connect, and between any two bytes: a server that says nothing for longer is not there
_LOGIN = "`hf auth login`, or set HF_TOKEN to a token that may read it (and write, to push)."
COMMIT = re.compile(r"[0-9a-f]{40}")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


@contextmanager
def hub_errors(location: str) -> Iterator[None]:
    """What huggingface_hub and its HTTP client raise, as store errors that name the store and the remedy."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise Unreachable(f"{location}: HF_HUB_OFFLINE is set.", remedy="unset it to go online; what was pulled before is used.") from error
    except GatedRepoError as error:
        raise Denied(f"{location} is gated, and you were not let in.", remedy=f"ask for access on its page, then {_LOGIN}") from error
    except RevisionNotFoundError as error:
        raise Missing(f"{location}: no such revision.", remedy="name a branch, tag or commit or leave @revision out.") from error
    except RepositoryNotFoundError as error:
        raise Missing(f"{location}: no such repository, or it is private and not yours to read.", remedy=_LOGIN) from error
    except EntryNotFoundError as error:
        raise Missing(f"{location}: no such file.", remedy="`aot fsck` tells what a store lacks.") from error
    except LocalTokenNotFoundError as error:
        raise Denied(f"{location}: there is no token.", remedy=_LOGIN) from error
    except HFValidationError as error:
        raise Malformed(f"store location {location!r}: {error}", remedy="hf://ORG/REPO or hf://ORG/REPO@REVISION.") from error
    except HfHubHTTPError as error:
        raise _by_status(location, error) from error
    except (HTTPError, OSError, json.JSONDecodeError, KeyError, TypeError) as error:  # the last three: an answer that is not the Hub's
        raise Unreachable(f"{location}: {type(error).__name__}: {error}", remedy="see that the Hub can be reached; try again.") from error


def _by_status(location: str, error: HfHubHTTPError) -> StoreError:
    status = error.response.status_code
    said = (error.server_message or f"HTTP status {status}").split("\n")[0][:200]
    if status in (402, 413, 507) or (status == 403 and re.search("quota|storage", said, re.IGNORECASE)):
        return StoreFull(
            f"{location}: {said}. Nothing was committed.", remedy="free space in the repository's organisation, or use another."
        )
    if status in (401, 403):
        return Denied(f"{location}: {said}", remedy=_LOGIN)
    if status in (409, 412):
        return Busy(f"{location}: somebody else is writing: {said}", remedy="try again.")
    if isinstance(error, BadRequestError):
        return StoreError(f"{location}: {said}")
    return Unreachable(f"{location}: {said}", remedy="try again.")


class HubReader:
    """Reads `repo` at `revision`; once a file was read, at the very commit it was read at, whatever the branch does meanwhile."""

    def __init__(self, repo: str, revision: str, *, api: HfApi, location: str) -> None:
        self._repo, self._api, self.location = repo, api, location
        self.revision = revision
        self.commit: str | None = None

    def small(self, path: str, *, limit: int) -> bytes | None:
        """A file of at most `limit` bytes; None when there is none. One request, tried again where that may help."""
        deadline = Deadline(ASK_SECONDS, f"asking {self.location} for {path}")
        return retried(lambda: self._small(path, limit, deadline), deadline=deadline)

    def _small(self, path: str, limit: int, deadline: Deadline) -> bytes | None:
        try:
            with hub_errors(self.location), self.opened(path, 0) as response:
                found = bytearray()
                for chunk in response.iter_raw(CHUNK):
                    found += chunk
                    deadline.check()
                    if len(found) > limit:
                        raise Unreachable(f"{self.location}: {path} is longer than {limit} bytes.", remedy="it is not a store's file.")
                self._check_length(response, len(found), path)
                return bytes(found)
        except Missing as error:
            if isinstance(error.__cause__, EntryNotFoundError):
                return None
            raise

    def _check_length(self, response: Any, length: int, path: str) -> None:
        declared = response.headers.get("Content-Length")
        if declared is not None and declared != str(length):
            raise Unreachable(f"{self.location}: {path} ended after {length} of {declared} bytes.", remedy="try again.")

    def blob(self, path: str) -> AbstractContextManager["HubBlob"]:
        return closing(HubBlob(self, path))

    @contextmanager
    def opened(self, path: str, position: int) -> Iterator[Any]:
        """The answer to one GET, of the bytes from `position` on; a redirect to another host leaves the token behind."""
        url = hf_hub_url(self._repo, path, revision=self.commit or self.revision, endpoint=self._api.endpoint)
        # not to be unpacked on the way: lengths are checked, and a small answer must not become a large one
        headers = {**build_hf_headers(token=self._api.token), "Accept-Encoding": "identity"}
        if position:
            headers["Range"] = f"bytes={position}-"
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
            hf_raise_for_status(response)
            if "text/html" in response.headers.get("Content-Type", ""):
                raise Unreachable(f"{self.location}: a web page was sent in place of {path}.", remedy="a proxy may ask you to log in.")
            self._remember_commit(response)
            yield response

    def _remember_commit(self, response: Any) -> None:
        if self.commit is None:
            first = response.history[0] if response.history else response
            told = first.headers.get("X-Repo-Commit", "")
            self.commit = told if COMMIT.fullmatch(told) else None


class HubBlob(io.RawIOBase):
    """One file as a seekable stream: each seek elsewhere is a request for the bytes from there on."""

    def __init__(self, reader: HubReader, path: str) -> None:
        super().__init__()
        self._reader, self._path = reader, path
        self._position, self._rest = 0, b""
        self._stack, self._chunks = ExitStack(), iter(())  # type: Any, Any
        self._total: int | None = None
        self._connected = False

    @property
    def total(self) -> int | None:
        """The file's length in bytes as the server declares it; None if it does not."""
        if not self._connected:
            self._connect()
        return self._total

    def seek(self, offset: int, whence: int = 0, /) -> int:
        assert whence == 0
        if offset != self._position:
            self._disconnect()
            self._position = offset
        return offset

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, b"" at the end. Raises Missing, Denied, Unreachable."""
        if size < 0:
            return b"".join(iter(lambda: self.read(CHUNK), b""))
        with hub_errors(self._reader.location):
            if not self._connected:
                self._connect()
            if not self._rest:
                self._rest = next(self._chunks, b"")
        found, self._rest = self._rest[:size], self._rest[size:]
        self._position += len(found)
        return found

    def _connect(self) -> None:
        with hub_errors(self._reader.location):
            response = self._stack.enter_context(self._reader.opened(self._path, self._position))
        self._connected, skip = True, self._position
        declared = response.headers.get("Content-Length")
        self._total = int(declared) if declared and declared.isdigit() else None
        if response.status_code == 206:
            match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != self._position:
                raise Unreachable(f"{self._reader.location}: other bytes were sent than asked for.", remedy="try again.")
            self._total, skip = int(match[2]), 0
        self._chunks = response.iter_raw(CHUNK)
        while skip > 0:  # the server does not know ranges
            chunk = next(self._chunks, b"")
            skip, self._rest = skip - len(chunk), chunk[skip:]
            if not chunk:
                break

    def _disconnect(self) -> None:
        self._stack.close()
        self._stack, self._chunks, self._rest, self._connected = ExitStack(), iter(()), b"", False

    def close(self) -> None:
        self._disconnect()
        super().close()
