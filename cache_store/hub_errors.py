"""What the Hugging Face Hub answers instead of what it was asked for, as store errors."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the base of all that the HTTP client raises, whichever client this release has
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import set_client_factory
from huggingface_hub.utils._http import default_client_factory

from aot.cache_store.errors import Busy, Denied, Malformed, Missing, Offline, StoreError, StoreFull, Unreachable

TIMEOUT = 15.0  # s to connect, and between any two bytes: a server that says nothing for longer is not there
_LOGIN = "`hf auth login`, or set HF_TOKEN to a token that may read it (and write, to push)."


class NoSuchFile(Missing):
    """The repository is there, and the file is not."""


@contextmanager
def hub_errors(location: str) -> Iterator[None]:
    """What huggingface_hub and its HTTP client raise, as store errors that name the store and the remedy."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise Offline(f"{location}: HF_HUB_OFFLINE is set.", remedy="unset it to go online; what was pulled before is used.") from error
    except LocalTokenNotFoundError as error:
        raise Denied(f"{location}: there is no token.", remedy=_LOGIN) from error
    except HFValidationError as error:
        raise Malformed(f"store location {location!r}: {error}", remedy="hf://ORG/REPO or hf://ORG/REPO@REVISION.") from error
    except HfHubHTTPError as error:
        raise refusal(location, error.response.status_code, error.response.headers, error.server_message or "") from error
    except RuntimeError as error:  # what an upload makes of its own error
        if error.__cause__ is None:
            raise Unreachable(f"{location}: {error}", remedy="try again.") from error
        with hub_errors(location):
            raise error.__cause__  # noqa: B904 - it is translated, not another error
    except (HTTPError, OSError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:  # the last four: no Hub's answer
        raise Unreachable(f"{location}: {type(error).__name__}: {error}", remedy="see that the Hub can be reached; try again.") from error


def refusal(location: str, status: int, headers: Any, said: str = "") -> StoreError:
    """What an answer of status 400 or more means. The Hub tells by header; a bare 404 says nothing, and counts as out of reach."""
    said = (said or headers.get("X-Error-Message") or f"HTTP status {status}").split("\n")[0][:200]
    match headers.get("X-Error-Code"):
        case "GatedRepo":
            return Denied(f"{location} is gated, and you were not let in.", remedy=f"ask for access on its page, then {_LOGIN}")
        case "RepoNotFound":
            return Missing(f"{location}: no such repository, or it is private and not yours to read.", remedy=_LOGIN)
        case "RevisionNotFound":
            return Missing(f"{location}: no such revision.", remedy="name a branch, tag or commit, or leave @revision out.")
        case "EntryNotFound":
            return NoSuchFile(f"{location}: no such file.", remedy="`aot fsck` tells what a store lacks.")
    return _by_status(location, status, said)


def _by_status(location: str, status: int, said: str) -> StoreError:
    if status in (402, 413, 507) or (status == 403 and re.search("quota|storage", said, re.IGNORECASE)):
        return StoreFull(f"{location}: {said}. Nothing was committed.", remedy="free space in its organisation, or use another.")
    if status in (401, 403):
        return Denied(f"{location}: {said}", remedy=_LOGIN)
    if status in (409, 412):
        return Busy(f"{location}: somebody else is writing: {said}", remedy="try again.")
    if status == 400:
        return StoreError(f"{location}: {said}")
    return Unreachable(f"{location}: {said}", remedy="try again.")


def limit_waiting() -> None:
    """Give every request of this process's huggingface_hub a time limit: its own calls wait for ever on a server that stalls.

    For programs, not for libraries: it is a setting of the whole process.
    """

    def made() -> Any:
        client = default_client_factory()
        client.timeout = TIMEOUT * 4  # to connect, and between any two bytes of an upload or an answer
        return client

    set_client_factory(made)
