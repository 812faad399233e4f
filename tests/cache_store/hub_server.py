"""A Hugging Face Hub on the loopback, and a CDN beside it, for tests that run the real client against it and let things go wrong."""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlencode

from tests.cache_store.hub_jobs import Job, Jobs
from tests.cache_store.hub_repo import AFTER, INSTEAD, MIB, Answer, Blob, Change, Does, Refused, Repo, ranged, reply, upload_mode

__all__ = ["Does", "Fault", "Hub", "Request"]

# an upload by Xet needs a server that is not here. The client reads this when it is imported, and may have been imported already
os.environ["HF_HUB_DISABLE_XET"] = "1"
if "huggingface_hub.constants" in sys.modules:
    sys.modules["huggingface_hub.constants"].HF_HUB_DISABLE_XET = True  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it was answered; status 0 where no status was sent."""

    method: str
    path: str
    range: str | None
    status: int
    authorized: bool
    cdn: bool


@dataclass(frozen=True, slots=True)
class Fault:
    method: str  # a regex for the whole of it
    path: str  # a regex to be found in it
    does: Does
    times: int = 1  # -1: always
    at: int | None = None  # a byte of the body as it is sent, so of the range; None: its middle
    after: int = 0  # so many requests are let through before, of those that no fault added earlier took
    rate: int = 1024


class Faults:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[tuple[Fault, list[int]]] = []

    def add(self, *faults: Fault) -> None:
        with self._lock:
            self._seen += [(fault, []) for fault in faults]

    def clear(self) -> None:
        with self._lock:
            self._seen = []

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault, seen in self._seen:
                if re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    seen.append(1)
                    if len(seen) > fault.after and (fault.times < 0 or len(seen) <= fault.after + fault.times):
                        return fault
        return None


class Hub:
    """The Hub and its CDN, from `with` to the end of it. Both stop at once, whatever they are in the middle of sending."""

    def __init__(self, folder: Path) -> None:
        self.objects = folder / "objects"
        self.objects.mkdir(parents=True)
        self.token, self.read_token, self.stranger_token = "hf_owner_writes", "hf_owner_reads", "hf_somebody_else"
        self.page_size = 1000
        self.faults = Faults()
        self.requests: list[Request] = []
        self.repos: dict[str, Repo] = {}
        self.jobs = Jobs()
        self.stopping = threading.Event()
        self._secret = secrets.token_bytes(16)
        self._ports = [Port(self, routes) for routes in (HUB, CDN)]
        self.endpoint, self.cdn = (f"http://127.0.0.1:{port.server_port}" for port in self._ports)

    def __enter__(self) -> Self:
        for port in self._ports:
            threading.Thread(target=port.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for port in self._ports:
            port.close()

    def create(self, repo_id: str, *, private: bool = False, gated: bool = False) -> str:
        self.repos[repo_id] = Repo(repo_id, private=private, gated=gated)
        return self.head(repo_id)

    def head(self, repo_id: str, revision: str = "main") -> str:
        return self.repos[repo_id].at(revision).sha

    def files(self, repo_id: str, revision: str = "main") -> list[str]:
        return sorted(self.repos[repo_id].at(revision).files)

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        blob = self.repos[repo_id].at(revision).files[path]
        return (self.objects / blob.etag).read_bytes() if blob.data is None else blob.data

    def write(self, repo_id: str, path: str, data: bytes | None) -> str:
        """A commit by somebody else; None deletes."""
        blob = None if data is None else Blob.regular(data)
        if data is not None and upload_mode(path, len(data), data[:512]) == "lfs":
            blob = Blob(self.keep(repo_id, iter([data])), len(data), None)
        return self.repos[repo_id].commit("main", [(path, blob)], title="by somebody else")

    def rewind(self, repo_id: str, sha: str) -> None:
        """A force push."""
        self.repos[repo_id].rewind("main", sha)

    def keep(self, repo_id: str, pieces: Iterator[bytes], announced: str | None = None) -> str:
        """An object of the repo's, streamed to disk."""
        digest, part = hashlib.sha256(), self.objects / f"{secrets.token_hex(8)}.part"
        with part.open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
        if announced not in (None, digest.hexdigest()):
            raise Refused(400, "XAmzContentSHA256Mismatch")
        part.replace(self.objects / digest.hexdigest())
        self.repos[repo_id].objects.add(digest.hexdigest())
        return digest.hexdigest()

    def object(self, repo: Repo, oid: str) -> Blob:
        if oid not in repo.objects:
            raise Refused(400, "LFS pointer pointed to a file that does not exist")
        return Blob(oid, (self.objects / oid).stat().st_size, None)

    def signed(self, path: str) -> str:
        return f"{self.cdn}{path}?Signature={hmac.digest(self._secret, path.encode(), 'sha256').hex()}"


class Handler(BaseHTTPRequestHandler):
    """A connection: what is asked, what is answered (`HUB` and `CDN` say by which method), and how it is sent."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Port"

    def do_GET(self) -> None:
        self.hub, self.incoming = self.server.hub, self._incoming()
        self.target, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.range = self.headers.get("Range")
        fault = self.hub.faults.take(self.command, self.path)
        try:
            self._serve(fault)
        except ConnectionError:  # the client went away
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None: ...

    def _serve(self, fault: Fault | None) -> None:
        does = fault and fault.does
        answer = INSTEAD[does] if does in INSTEAD else self._route()
        size = answer.body.size
        at = size // 2 if fault is None or fault.at is None else min(fault.at, size)
        answer = AFTER[does](answer, at) if does in AFTER else answer
        for _ in self.incoming:  # a body that was left unread would make an RST of our FIN, and the next request of its rest
            pass
        authorized = self.token is not None
        self.hub.requests.append(Request(self.command, self.path, self.range, answer.status, authorized, self.server.routes is CDN))
        if fault is not None and does in SENDS:
            SENDS[does](self, answer, at, fault)
        else:
            self.send(answer)

    def _route(self) -> Answer:
        try:
            for methods, pattern, access, route in self.server.routes:
                found = re.fullmatch(pattern, self.target)
                if found and self.command in methods.split():
                    groups = [unquote(group or "") for group in found.groups()]
                    return route(self, self._allowed(groups[0], access), *groups[1:]) if groups else route(self)
        except Refused as refused:
            return refused.answer
        return Refused(404, "Sorry, we can't find the page you are looking for.").answer

    def _allowed(self, id: str, access: str) -> Repo:
        if access == "signed":
            if self.token:
                raise Refused(400, "Only one auth mechanism allowed")  # as S3 says it; and a token must never get here
            if self.hub.signed(self.target).partition("?")[2] != self.path.partition("?")[2]:
                raise Refused(403, "Access denied")
            return self.hub.repos[id]
        if self.token not in (None, self.hub.token, self.hub.read_token, self.hub.stranger_token):
            raise Refused(401, "Invalid credentials in Authorization header")
        repo, owner = self.hub.repos.get(id), self.token in (self.hub.token, self.hub.read_token)
        if repo is None or (repo.private and not owner):
            raise Refused(404 if self.token else 401, "Repository not found", "RepoNotFound")
        if repo.gated and access == "read" and not owner:
            raise Refused(403 if self.token else 401, "Access to this model is restricted", "GatedRepo")
        if access == "write" and self.token != self.hub.token:
            raise Refused(403 if self.token else 401, "You must use a write token to upload to a repository")
        return repo

    def _incoming(self) -> Iterator[bytes]:
        """The request's body, a piece at a time."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self._exactly(size)
                self.rfile.readline()
            self.rfile.readline()
        left = int(self.headers.get("Content-Length", 0))
        while left:
            yield self._exactly(min(left, MIB))
            left -= min(left, MIB)

    def _exactly(self, size: int) -> bytes:
        piece = self.rfile.read(size)
        if len(piece) < size:
            raise ConnectionResetError
        return piece

    def json(self) -> Any:
        return json.loads(b"".join(self.incoming))

    def begin(self, answer: Answer, name: str, value: str) -> None:
        self.send_response(answer.status)
        for each in [*answer.headers.items(), (name, value)]:
            self.send_header(*each)
        self.end_headers()

    def send(self, answer: Answer, *, stop: int | None = None, more: int = 0, rate: int = 0) -> None:
        self.close_connection |= stop is not None or more != 0
        self.begin(answer, "Content-Length", str(max(answer.body.size + more, 0)))
        body = answer.body if stop is None else replace(answer.body, stop=answer.body.start + stop, tail=b"")
        if self.command == "HEAD" or not body.size:
            return
        if isinstance(body.source, Path) and body.flip is None and not body.tail and not rate:
            with body.source.open("rb") as file:
                self.connection.sendfile(file, body.start, body.size)
            return
        for piece in body.pieces(max(rate // 10, 1) if rate else MIB):
            self.wfile.write(piece)
            if rate and self.hub.stopping.wait(0.1):
                return

    def send_endless(self, answer: Answer, *, chunked: bool) -> None:
        self.begin(answer, *(("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")))
        piece = bytes(65536)
        while not self.hub.stopping.is_set():
            self.wfile.write(b"10000\r\n%b\r\n" % piece if chunked else piece)

    def stall(self, answer: Answer | None = None, at: int = 0) -> None:
        if answer is not None:
            self.send(answer, stop=at)
        self.hub.stopping.wait()
        self.close_connection = True

    def reset(self, answer: Answer | None = None, at: int = 0) -> None:
        if answer is not None:
            self.send(answer, stop=at)
        self.close_connection = True
        self.hub.stopping.wait(0.05)  # what was sent may arrive, as an RST takes the rest of it away
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def close(self, last_words: bytes = b"") -> None:
        self.wfile.write(last_words)
        self.close_connection = True

    def whoami(self) -> Answer:
        names = {self.hub.token: "write", self.hub.read_token: "read", self.hub.stranger_token: "write"}
        if self.token not in names:
            raise Refused(401, "Invalid username or password.")
        token = {"displayName": "tests", "role": names[self.token]}
        name = "somebody-else" if self.token == self.hub.stranger_token else "owner"
        return reply({"type": "user", "name": name, "orgs": [], "auth": {"type": "access_token", "accessToken": token}})

    def begin_job(self) -> Answer:
        if self.token != self.hub.token:
            raise Refused(403 if self.token else 401, "You don't have the rights to run jobs under this namespace")
        return reply(self.hub.jobs.begin(self.target.rpartition("/")[2], self.json()).told())

    def _job(self, kept: int) -> Job:
        id = self.target.split("/")[kept]
        if self.token not in (self.hub.token, self.hub.read_token):
            raise Refused(401, "Invalid username or password.")
        if id not in self.hub.jobs.all:
            raise Refused(404, "Job not found")
        return self.hub.jobs.all[id]

    def job(self) -> Answer:
        return reply(self._job(4).told())

    def job_log(self) -> Answer:
        return reply({}, headers={"Content-Type": "text/event-stream"}).saying(self._job(4).log())

    def cancel_job(self) -> Answer:
        job = self._job(4)
        job.cancel()
        return reply(job.told())

    def validate_yaml(self) -> Answer:
        return reply({"errors": [], "warnings": []})

    def create_repo(self) -> Answer:
        if self.token != self.hub.token:
            raise Refused(403 if self.token else 401, "You don't have the rights to create a model under this namespace")
        asked = self.json()
        id = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        told = {"name": id, "url": f"{self.hub.endpoint}/{id}"}
        repo = Repo(id, private=asked.get("visibility") == "private", gated=False)
        if self.hub.repos.setdefault(id, repo) is not repo:
            return reply({**told, "error": "You already created this model repo"}, 409)
        return reply(told)

    def info(self, repo: Repo, revision: str = "main") -> Answer:
        commit = repo.at(revision)
        siblings = [blob.entry(path) if "blobs" in self.query else {"rfilename": path} for path, blob in sorted(commit.files.items())]
        id = repo.id.removeprefix("kernels/")
        told = {"id": id, "modelId": id, "sha": commit.sha, "lastModified": commit.date, "siblings": siblings, "tags": []}
        return reply({**told, "private": repo.private, "gated": "auto" if repo.gated else False, "disabled": False})

    def tree(self, repo: Repo, revision: str, folder: str) -> Answer:
        after = self.query.get("cursor", [""])[0]
        entries = repo.at(revision).entries(folder, recursive=self.query.get("recursive") == ["true"])
        left = [entry for entry in entries if entry["path"] > after]
        page = left[: self.hub.page_size]
        if page == left:
            return reply(page)
        query = urlencode({**self.query, "cursor": page[-1]["path"]}, doseq=True)
        return reply(page, headers={"Link": f'<{self.hub.endpoint}{self.target}?{query}>; rel="next"'})

    def paths_info(self, repo: Repo, revision: str) -> Answer:
        asked = parse_qs(b"".join(self.incoming).decode()).get("paths", [])
        return reply([entry for entry in repo.at(revision).entries() if entry["path"] in asked])

    def preupload(self, repo: Repo, revision: str) -> Answer:
        files, told = repo.at(revision).files, []
        for file in self.json()["files"]:
            mode = upload_mode(file["path"], file["size"], base64.b64decode(file["sample"]))
            known = {"oid": files[file["path"]].etag} if file["path"] in files else {}
            told.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **known})
        return reply({"files": told})

    def batch(self, repo: Repo) -> Answer:
        told: list[dict[str, Any]] = []
        for each in self.json()["objects"]:
            put = {"href": self.hub.signed(f"/upload/{repo.id}/{each['oid']}")}
            check = {"href": f"{self.hub.endpoint}/{repo.id}.git/info/lfs/verify"}
            told.append({**each, **({} if each["oid"] in repo.objects else {"actions": {"upload": put, "verify": check}})})
        return reply({"transfer": "basic", "objects": told})

    def verify(self, repo: Repo) -> Answer:
        asked = self.json()
        if self.hub.object(repo, asked["oid"]).size != asked["size"]:
            raise Refused(400, "Size mismatch")
        return reply({})

    def commit(self, repo: Repo, branch: str) -> Answer:
        header, *lines = [json.loads(line) for line in b"".join(self.incoming).splitlines()]
        changes = [self._change(repo, line["key"], line["value"]) for line in lines]
        sha = repo.commit(branch, changes, title=header["value"]["summary"], parent=header["value"].get("parentCommit"))
        return reply({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.endpoint}/{repo.id}/commit/{sha}"})

    def _change(self, repo: Repo, key: str, value: dict[str, Any]) -> Change:
        if key == "file":
            return value["path"], Blob.regular(base64.b64decode(value["content"]))
        if key == "lfsFile":
            return value["path"], self.hub.object(repo, value["oid"])
        return value["path"].rstrip("/") + "/" * (key == "deletedFolder"), None

    def refs(self, repo: Repo) -> Answer:
        def told(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]

        return reply({"branches": told("heads", repo.branches), "tags": told("tags", repo.tags), "converts": []})

    def tag(self, repo: Repo, revision: str) -> Answer:
        return repo.add_ref(repo.tags, self.json()["tag"], repo.at(revision).sha)

    def branch(self, repo: Repo, name: str) -> Answer:
        return repo.add_ref(repo.branches, name, repo.at(self.json().get("startingPoint", "main")).sha)

    def resolve(self, repo: Repo, revision: str, path: str) -> Answer:
        commit = repo.at(revision)
        headers, blob = {"X-Repo-Commit": commit.sha}, commit.files.get(path)
        if blob is None:
            raise Refused(404, "Entry not found", "EntryNotFound", headers)
        headers["ETag"] = f'"{blob.etag}"'
        if blob.data is not None:
            return ranged(self.range, blob.data, blob.size, headers)
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(blob.size)}
        return Answer(302, {**headers, "Location": self.hub.signed(f"/cdn/{repo.id}/{blob.etag}")}).saying(b"Found")

    def download(self, repo: Repo, oid: str) -> Answer:
        size = self.hub.object(repo, oid).size
        return ranged(self.range, self.hub.objects / oid, size, {"ETag": f'"{oid[:32]}-1"'})  # as of S3: no sha256

    def upload(self, repo: Repo, oid: str) -> Answer:
        return Answer(200, {"ETag": f'"{self.hub.keep(repo.id, self.incoming, announced=oid)[:32]}"'})


class Port(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, hub: Hub, routes: "Routes") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub, self.routes, self.connections = hub, routes, set[socket.socket]()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        self.shutdown()
        for connection in list(self.connections):
            with suppress(OSError):  # closed meanwhile
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


Routes = tuple[tuple[str, str, str, Callable[..., Answer]], ...]  # methods, path, access, route
# a repository of kernels is named `kernels/ORG/NAME`, as the client's addresses do
ID, REVISION, OBJECT = r"((?:kernels/)?[\w.-]+/[\w.-]+)", "([^/]+)", "([0-9a-f]{64})"
API = rf"/api/(?:models/|(?=kernels/)){ID}"
HUB: Routes = (
    ("GET", "/api/whoami-v2", "", Handler.whoami),
    ("POST", "/api/validate-yaml", "", Handler.validate_yaml),
    ("POST", "/api/repos/create", "", Handler.create_repo),
    ("POST", r"/api/jobs/[\w.-]+", "", Handler.begin_job),
    ("GET", r"/api/jobs/[\w.-]+/\w+", "", Handler.job),
    ("GET", r"/api/jobs/[\w.-]+/\w+/logs", "", Handler.job_log),
    ("POST", r"/api/jobs/[\w.-]+/\w+/cancel", "", Handler.cancel_job),
    ("GET", API, "list", Handler.info),
    ("GET", f"{API}/revision/{REVISION}", "list", Handler.info),
    ("GET", f"{API}/tree/{REVISION}(?:/(.+))?", "list", Handler.tree),
    ("POST", f"{API}/paths-info/{REVISION}", "list", Handler.paths_info),
    ("POST", f"{API}/preupload/{REVISION}", "write", Handler.preupload),
    ("POST", f"{API}/commit/{REVISION}", "write", Handler.commit),
    ("GET", f"{API}/refs", "list", Handler.refs),
    ("POST", f"{API}/tag/{REVISION}", "write", Handler.tag),
    ("POST", f"{API}/branch/{REVISION}", "write", Handler.branch),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", "write", Handler.batch),
    ("POST", rf"/{ID}\.git/info/lfs/verify", "write", Handler.verify),
    ("GET HEAD", f"/{ID}/resolve/{REVISION}/(.+)", "read", Handler.resolve),
)
CDN: Routes = (
    ("GET HEAD", f"/cdn/{ID}/{OBJECT}", "signed", Handler.download),
    ("PUT", f"/upload/{ID}/{OBJECT}", "signed", Handler.upload),
)
SENDS: dict[Does | None, Callable[[Handler, Answer, int, Fault], None]] = {
    Does.RESET: lambda handler, answer, at, fault: handler.reset(),
    Does.DONE_RESET: lambda handler, answer, at, fault: handler.reset(),
    Does.CLOSE: lambda handler, answer, at, fault: handler.close(),
    Does.GARBAGE: lambda handler, answer, at, fault: handler.close(b"SSH-2.0-\x16\x03\x01\r\n\r\n"),
    Does.STALL: lambda handler, answer, at, fault: handler.stall(),
    Does.STALL_BODY: lambda handler, answer, at, fault: handler.stall(answer, at),
    Does.CUT: lambda handler, answer, at, fault: handler.send(answer, stop=at),
    Does.CUT_RESET: lambda handler, answer, at, fault: handler.reset(answer, at),
    Does.DRIP: lambda handler, answer, at, fault: handler.send(answer, rate=fault.rate),
    Does.LENGTH_LONGER: lambda handler, answer, at, fault: handler.send(answer, more=7),
    Does.LENGTH_SHORTER: lambda handler, answer, at, fault: handler.send(answer, more=-7),
    Does.ENDLESS: lambda handler, answer, at, fault: handler.send_endless(answer, chunked=False),
    Does.ENDLESS_CHUNKED: lambda handler, answer, at, fault: handler.send_endless(answer, chunked=True),
}
