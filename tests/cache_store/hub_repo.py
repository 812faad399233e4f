"""The repos of the Hub that `hub_server` serves, what is answered about them, and how a fault spoils an answer."""

import gzip
import hashlib
import io
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

MIB = 1 << 20
LFS_NAMES = (".bin", ".gz", ".pt", ".safetensors", ".zip", ".zst")


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes to send: a part of a file or of a string, and what a fault did to them. A large file is never held whole."""

    source: bytes | Path = b""
    start: int = 0
    stop: int = 0
    flip: int | None = None
    tail: bytes = b""

    @property
    def size(self) -> int:
        return self.stop - self.start + len(self.tail)

    def pieces(self, step: int = MIB) -> Iterator[bytes]:
        with open(self.source, "rb") if isinstance(self.source, Path) else io.BytesIO(self.source) as file:
            file.seek(self.start)
            for offset in range(0, self.stop - self.start, step):
                piece = bytearray(file.read(min(step, self.stop - self.start - offset)))
                if self.flip is not None and 0 <= self.flip - offset < len(piece):
                    piece[self.flip - offset] ^= 1
                yield bytes(piece)
        yield self.tail


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Body = field(default_factory=Body)

    def having(self, headers: dict[str, str | None]) -> "Answer":
        """With these headers; None takes one away."""
        return replace(self, headers={name: value for name, value in (self.headers | headers).items() if value is not None})

    def sending(self, **changes: Any) -> "Answer":
        return replace(self, body=replace(self.body, **changes))

    def saying(self, data: bytes) -> "Answer":
        return replace(self, body=Body(data, 0, len(data)))


def reply(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}).saying(json.dumps(value).encode())


class Refused(Exception):
    """The client goes by the header `X-Error-Code`, and only where there is none by the status."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        coded = {"X-Error-Code": code} if code else {}
        self.answer = reply({"error": message}, status, {"X-Error-Message": message, **coded, **(headers or {})})


def ranged(asked: str | None, source: bytes | Path, size: int, headers: dict[str, str]) -> Answer:
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    found = re.fullmatch(r"bytes=(?:(\d+)-(\d*)|-(\d+))", asked or "")
    if not found:
        return Answer(200, headers, Body(source, 0, size))
    first, last, suffix = found.groups()
    start = max(size - int(suffix), 0) if suffix else int(first)
    stop = min(int(last) + 1, size) if last else size
    if start >= stop:
        raise Refused(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
    return Answer(206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}, Body(source, start, stop))


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a commit. `etag` is the git sha1 of a regular file, the sha256 of an LFS one: what preupload and ETag say."""

    etag: str
    size: int
    data: bytes | None  # None: an LFS object, on disk

    @classmethod
    def regular(cls, data: bytes) -> "Blob":
        return cls(git_sha1(data), len(data), data)

    def entry(self, path: str) -> dict[str, Any]:
        """For tree and paths-info, and, under the other names, for a repo's info."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.etag}\nsize {self.size}\n".encode()
        lfs = {"oid": self.etag, "sha256": self.etag, "size": self.size, "pointerSize": len(pointer)}
        oid = self.etag if self.data is not None else git_sha1(pointer)
        entry = {"type": "file", "path": path, "rfilename": path, "size": self.size, "oid": oid, "blobId": oid}
        return entry if self.data is not None else {**entry, "lfs": lfs}


def upload_mode(path: str, size: int, sample: bytes) -> str:
    try:
        sample[:-3].decode()  # a sample may end inside a character
    except UnicodeDecodeError:
        return "lfs"
    return "lfs" if size > 10 * MIB or b"\0" in sample or path.endswith(LFS_NAMES) else "regular"


Change = tuple[str, Blob | None]  # None deletes a file, or with a final slash a folder


@dataclass(frozen=True, slots=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    date: str
    files: dict[str, Blob]

    def changed(self, changes: Iterable[Change]) -> dict[str, Blob]:
        files = dict(self.files)
        for path, blob in changes:
            if blob is not None:
                files[path] = blob
                continue
            gone = [name for name in files if name == path or (path.endswith("/") and name.startswith(path))]
            if not gone:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del files[name]
        return files

    def entries(self, folder: str = "", *, recursive: bool = True) -> list[dict[str, Any]]:
        inside = f"{folder}/" if folder else ""
        found: dict[str, dict[str, Any]] = {}
        for path, blob in self.files.items():
            if not path.startswith(inside):
                continue
            parts = path.removeprefix(inside).split("/")
            folders = [inside + "/".join(parts[:depth]) for depth in range(1, len(parts))]
            for each in folders if recursive else folders[:1]:
                found[each] = {"type": "directory", "path": each, "size": 0, "oid": git_sha1(each.encode())}
            if recursive or not folders:
                found[path] = blob.entry(path)
        if folder and not found:
            raise Refused(404, "This folder does not exist on this revision", "EntryNotFound")
        return [found[path] for path in sorted(found)]


class Repo:
    """Branches and tags over commits that are never forgotten: a commit stays readable by its sha after a force push."""

    def __init__(self, id: str, *, private: bool, gated: bool) -> None:
        self.id, self.private, self.gated = id, private, gated
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.objects: set[str] = set()
        self._lock = threading.Lock()
        attributes = "".join(f"*{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LFS_NAMES).encode()
        self.branches["main"] = self._keep(None, "initial commit", {".gitattributes": Blob.regular(attributes)})

    def _keep(self, parent: str | None, title: str, files: dict[str, Blob]) -> str:
        told = json.dumps([self.id, parent, title, len(self.commits), [(path, files[path].etag) for path in sorted(files)]])
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"), files)
        return sha

    def at(self, revision: str) -> Commit:
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(name) or self.tags.get(name) or revision
        if sha not in self.commits:
            raise Refused(404, "Invalid rev id", "RevisionNotFound")
        return self.commits[sha]

    def commit(self, branch: str, changes: Iterable[Change], *, title: str, parent: str | None = None) -> str:
        with self._lock:
            if branch not in self.branches:
                raise Refused(404, "Invalid rev id", "RevisionNotFound")
            head = self.at(branch)
            if parent not in (None, head.sha):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            self.branches[branch] = self._keep(head.sha, title, head.changed(changes))
            return self.branches[branch]

    def rewind(self, branch: str, sha: str) -> None:
        with self._lock:
            self.branches[branch] = self.at(sha).sha

    def add_ref(self, refs: dict[str, str], name: str, sha: str) -> Answer:
        with self._lock:
            if name in refs:
                raise Refused(409, "Reference already exists")
            refs[name] = sha
            return reply({})


class Does(Enum):
    """What goes wrong. A number is a status, answered in place of doing what was asked."""

    UNAUTHORIZED, FORBIDDEN, NOT_FOUND, BUSY, STALE, RANGE_REFUSED, TOO_MANY = 401, 403, 404, 409, 412, 416, 429
    BROKEN, BAD_GATEWAY, UNAVAILABLE, TIMED_OUT = 500, 502, 503, 504
    # in place of doing what was asked
    TOO_MANY_RETRY_AFTER, LOGIN_PAGE, EMPTY = "429 with Retry-After: 1", "a login page", "200 and nothing"
    ENTRY_GONE, REVISION_GONE, REPO_GONE = "404 EntryNotFound", "404 RevisionNotFound", "404 RepoNotFound"
    RESET, CLOSE, STALL, GARBAGE = "RST for an answer", "FIN for an answer", "no answer", "no HTTP"
    # it is done, and the answer is another
    DONE_BROKEN, DONE_UNAVAILABLE, DONE_TIMED_OUT, DONE_RESET = "done, then 500", "done, then 503", "done, then 504", "done, then RST"
    FLIP_BIT, TRUNCATED, EXTRA_BYTES, GZIP_BOMB = "a flipped bit at `at`", "shorter, and says so", "longer, and says so", "64 MiB in gzip"
    OTHER_RANGE, RANGE_LIE, RANGE_IGNORED = "206 from byte 0, and says so", "206 from byte 0, and lies", "200 to a Range"
    BAD_JSON, OTHER_JSON, HUGE_HEADERS = "cut JSON", "a list for an object, an object for a list", "a header of 1 MiB"
    OTHER_COMMIT, NO_COMMIT, OTHER_ETAG, NO_ETAG, OTHER_SIZE = "wrong X-Repo-Commit", "none", "wrong ETag", "no ETag", "wrong X-Linked-Size"
    REDIRECT_LOOP, REDIRECT_DEAD, REDIRECT_FILE = "302 to itself", "302 to a dead port", "302 to file:"
    # it is done, and the answer is right but for its sending
    CUT, CUT_RESET, DRIP, STALL_BODY = "FIN at `at`", "RST at `at`", "`rate` bytes a second", "nothing more from `at`"
    LENGTH_LONGER, LENGTH_SHORTER, ENDLESS, ENDLESS_CHUNKED = "Content-Length + 7", "Content-Length - 7", "zeros", "zeros, chunked"


def _from_the_start(answer: Answer, *, whole: bool) -> Answer:
    """Another range than was asked for."""
    if answer.status != 206:
        return answer
    size = answer.headers["Content-Range"].rpartition("/")[2]
    if whole:
        return replace(answer.having({"Content-Range": None}).sending(start=0, stop=int(size)), status=200)
    return answer.having({"Content-Range": f"bytes 0-{answer.body.size - 1}/{size}"}).sending(start=0, stop=answer.body.size)


def _redirect(where: str) -> Callable[[Answer, int], Answer]:
    return lambda answer, at: replace(answer.having({"Location": where}), status=302, body=Body())


INSTEAD: dict[Does, Answer] = {
    **{does: Refused(does.value, "as the test wants it").answer for does in Does if isinstance(does.value, int)},
    Does.TOO_MANY_RETRY_AFTER: Refused(429, "Too many requests", headers={"Retry-After": "1"}).answer,
    Does.ENTRY_GONE: Refused(404, "Entry not found", "EntryNotFound").answer,
    Does.REVISION_GONE: Refused(404, "Invalid rev id", "RevisionNotFound").answer,
    Does.REPO_GONE: Refused(404, "Repository not found", "RepoNotFound").answer,
    Does.LOGIN_PAGE: Answer(200, {"Content-Type": "text/html"}).saying(b"<!doctype html><title>Sign in to the guest network</title>"),
    **dict.fromkeys((Does.RESET, Does.CLOSE, Does.STALL, Does.GARBAGE), Answer(0)),
    Does.EMPTY: Answer(200),
}
AFTER: dict[Does, Callable[[Answer, int], Answer]] = {
    Does.DONE_BROKEN: lambda answer, at: INSTEAD[Does.BROKEN],
    Does.DONE_UNAVAILABLE: lambda answer, at: INSTEAD[Does.UNAVAILABLE],
    Does.DONE_TIMED_OUT: lambda answer, at: INSTEAD[Does.TIMED_OUT],
    Does.DONE_RESET: lambda answer, at: Answer(0),
    Does.FLIP_BIT: lambda answer, at: answer.sending(flip=at),
    Does.TRUNCATED: lambda answer, at: answer.sending(stop=answer.body.start + at),
    Does.EXTRA_BYTES: lambda answer, at: answer.sending(tail=b"and more"),
    Does.GZIP_BOMB: lambda answer, at: answer.having({"Content-Encoding": "gzip"}).saying(gzip.compress(bytes(64 * MIB), 1)),
    Does.OTHER_RANGE: lambda answer, at: _from_the_start(answer, whole=False),
    Does.RANGE_LIE: lambda answer, at: answer.sending(start=0, stop=answer.body.size),
    Does.RANGE_IGNORED: lambda answer, at: _from_the_start(answer, whole=True),
    Does.BAD_JSON: lambda answer, at: answer.saying(b'{"sha": "4'),
    Does.OTHER_JSON: lambda answer, at: answer.saying(b"[7]" if b"{" in next(answer.body.pieces())[:1] else b'{"a": 7}'),
    Does.HUGE_HEADERS: lambda answer, at: answer.having({"X-Filler": "x" * MIB}),
    Does.OTHER_COMMIT: lambda answer, at: answer.having({"X-Repo-Commit": "f" * 40}),
    Does.NO_COMMIT: lambda answer, at: answer.having({"X-Repo-Commit": None}),
    Does.OTHER_ETAG: lambda answer, at: answer.having(dict.fromkeys({"ETag", "X-Linked-ETag"} & set(answer.headers), f'"{"0" * 64}"')),
    Does.NO_ETAG: lambda answer, at: answer.having({"ETag": None, "X-Linked-ETag": None}),
    Does.OTHER_SIZE: lambda answer, at: answer.having({"X-Linked-Size": "7"}),
    Does.REDIRECT_LOOP: _redirect("#"),
    Does.REDIRECT_DEAD: _redirect("http://127.0.0.1:1/"),
    Does.REDIRECT_FILE: _redirect("file:///etc/hostname"),
}
