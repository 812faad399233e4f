"""HubReader: the files of one revision of a Hugging Face Hub repository, over HTTP.

`hf_hub_download` is not used: it does not check what it downloads, and begins again at byte 0 in each process. The
session, its configuration, offline mode and token are huggingface_hub's own.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session

from aot.cache_store.digest import CHUNK
from aot.cache_store.errors import Unreachable
from aot.cache_store.hub_errors import TIMEOUT, NoSuchFile, hub_errors, refusal
from aot.cache_store.patience import ASK_SECONDS, Deadline, retried

COMMIT = re.compile(r"[0-9a-f]{40}")
_REDIRECTS = 5
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


class HubReader:
    """Reads `repo` at `revision`; once a file was read, at the very commit it was read at, whatever the branch does meanwhile."""

    def __init__(self, repo: str, revision: str, *, api: HfApi, location: str) -> None:
        self._repo, self._api, self.location = repo, api, location
        self.revision = revision
        self.commit: str | None = None
        get_session()  # now: what making it takes is no silence of the server

    def small(self, path: str, *, limit: int, sound: Callable[[bytes], bool] = lambda _: True) -> bytes | None:
        """A file of at most `limit` bytes; None when there is none. One request, tried again where that may help.

        What is not `sound` is asked for once more, in case it was spoilt on its way, and then returned as it is.
        """
        deadline = Deadline(ASK_SECONDS, f"asking {self.location} for {path}")
        found = retried(lambda: self._small(path, limit, deadline), deadline=deadline)
        if found is None or sound(found):
            return found
        return retried(lambda: self._small(path, limit, deadline), deadline=deadline)

    def _small(self, path: str, limit: int, deadline: Deadline) -> bytes | None:
        try:
            with hub_errors(self.location), self.opened(path, 0) as response:
                found = bytearray()
                for chunk in response.iter_raw():
                    found += chunk
                    deadline.check()
                    if len(found) > limit:
                        raise Unreachable(f"{self.location}: {path} is longer than {limit} bytes.", remedy="it is not a store's file.")
                self._check_length(response, len(found), path)
                return bytes(found)
        except NoSuchFile:
            return None

    def _check_length(self, response: Any, length: int, path: str) -> None:
        declared = response.headers.get("Content-Length")
        if declared is not None and declared != str(length):
            raise Unreachable(f"{self.location}: {path} ended after {length} of {declared} bytes.", remedy="try again.")

    def blob(self, path: str) -> AbstractContextManager["HubBlob"]:
        return closing(HubBlob(self, path))

    @contextmanager
    def opened(self, path: str, position: int) -> Iterator[Any]:
        """The answer to one GET, of the bytes from `position` on. Nothing of an answer is read that was not asked for.

        Redirects are followed here: the client would read their bodies, and those of errors, to an end that a hostile server
        never sends. The token goes to the Hub alone.
        """
        url = hf_hub_url(self._repo, path, revision=self.commit or self.revision, endpoint=self._api.endpoint)
        # not to be unpacked on the way: lengths are checked, and a small answer must not become a large one
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={position}-"} if position else {})}
        secret = build_hf_headers(token=self._api.token)
        for _ in range(_REDIRECTS):
            same = urlsplit(url)[:2] == urlsplit(self._api.endpoint)[:2]
            sent = {**secret, **headers} if same else headers
            with get_session().stream("GET", url, headers=sent, timeout=TIMEOUT, follow_redirects=False) as response:
                if same:
                    self._remember_commit(response)
                if response.status_code >= 400:
                    raise refusal(self.location, response.status_code, response.headers)
                if response.status_code < 300:
                    if "text/html" in response.headers.get("Content-Type", ""):
                        raise Unreachable(f"{self.location}: a web page was sent in place of {path}.", remedy="a proxy may want a login.")
                    yield response
                    return
                url = urljoin(url, response.headers.get("Location", ""))
        raise Unreachable(f"{self.location}: {path} is redirected more than {_REDIRECTS} times.", remedy="try again.")

    def _remember_commit(self, response: Any) -> None:
        told = response.headers.get("X-Repo-Commit", "")
        if self.commit is None and COMMIT.fullmatch(told):
            self.commit = told


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
        self._chunks = response.iter_raw()  # as they come: to fill a chunk from a server that drips would take for ever
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
