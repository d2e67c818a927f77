"""What a client is answered, given what it asked and what the upstream's head says.

Owns the choice between a stream, a plain body, a rejection and a refusal, and the head the client gets. Must not
know sockets, aiohttp or time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec

from sidecar.dialects import DIALECTS, OPAQUE, make_dialect
from sidecar.dialects.recognition import Spoken, detect, dialect_of
from sidecar.dialects.usage_on_request import REPORTS_ON_REQUEST, ExtraChunk
from sidecar.errors import Failure
from sidecar.formats import TypedFormat, make_format
from sidecar.framing import make_framing
from sidecar.framing.inflate import INFLATABLE, Inflater
from sidecar.headers import HOP_BY_HOP, STREAM_HEADERS, response_headers, stream_headers
from sidecar.kept_content import Overheard
from sidecar.opening import Opening, ToldRejection
from sidecar.relay import BodyRelay, Collector, CompressedRelay, PlainRelay, Relay
from sidecar.routing import sent_path
from sidecar.withheld import WithheldRelay

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.errors import Outcome
    from sidecar.log import Log
    from sidecar.ports import Dialect, Format, ResponseHead
    from sidecar.record import Trace
    from sidecar.session import Session
    from sidecar.settings import Route, Upstream

Headers = list[tuple[bytes, bytes]]

_MAX_REJECTION_BYTES: Final = 64 * 1024
_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})
_BODYLESS: Final = frozenset({204, 304})
_CORS: Final = b"access-control-"
_UNKNOWN: Final = OPAQUE["sse"].name


class Asked(msgspec.Struct, frozen=True, gc=False):
    """What a client asked for, as far as the answer depends on it. ``model`` is "" where the request names none.

    ``path`` is the client's own; what the answer speaks goes by `sent_path`."""

    stream_id: str
    method: str
    path: str
    http_version: tuple[int, int]
    keep_alive: bool
    format: str
    wants_stream: bool
    model: str
    created: int
    extra_headers: tuple[tuple[bytes, bytes], ...] = ()
    adds_usage: bool = False
    """The upstream is asked for usage that the client did not ask for."""
    scheme: str = "http"
    trace: Trace | None = None


class BodyMode(Enum):
    """How a body's end is told to a client."""

    CHUNKED = "chunked"
    LENGTH = "length"
    CLOSE = "close"
    NONE = "none"


@dataclass(slots=True)
class Answer:
    """How one upstream answer is passed on: through which relay, under which head.

    ``head`` is None for an answer that is not passed on as it is (a rejection told in our own words), or whose body has
    to say first what it is. ``dialect`` is None where no events are read; ``heartbeat`` is b"" where none is safe.
    """

    relay: BodyRelay
    is_stream: bool
    format: str
    dialect: Dialect | None = None
    head: bytes | None = None
    mode: BodyMode = BodyMode.NONE
    heartbeat: bytes = b""


def choose(
    asked: Asked,
    head: ResponseHead,
    route: Route,
    upstream: Upstream,
    session: Session,
    log: Log,
    begin: Callable[[Answer], None],
) -> Answer:
    """The answer for one upstream head. Raises Failure for a 200 that is no stream where one was asked for,
    or one in a coding that `typed` cannot undo.

    ``begin`` is called with the answer that follows one without a head."""
    content_type, coding, has_length = _essentials(head)
    is_success = 200 <= head.status < 300
    if not is_success and asked.format == "typed" and asked.wants_stream and head.status >= 400:
        said = _header(head, b"retry-after"), _header(head, b"x-amzn-errortype")
        collector = Collector(head.status, _MAX_REJECTION_BYTES, *said)
        return Answer(collector, is_stream=False, format="typed")
    if is_success and asked.wants_stream and content_type in _HTML:
        raise Failure("upstream_not_a_stream", f"the upstream answered a stream request with {content_type}")
    path = sent_path(route, upstream, asked.path)
    spoken = _spoken(asked, path, content_type, has_length, upstream) if is_success and asked.method != "HEAD" else None
    if spoken is not None and head.status not in _BODYLESS:
        return _stream(asked, head, route, upstream, session, log, spoken, coding)
    plain = _plain(asked, head, log)
    dialect = dialect_of(path, upstream.dialect) or _UNKNOWN
    is_typed_stream = is_success and asked.format == "typed" and asked.wants_stream and plain.mode is not BodyMode.NONE
    if not is_typed_stream or not _may_say_error(content_type, coding):
        return plain
    spoken = Spoken(dialect, DIALECTS[dialect].framings[0])
    stream = _stream(asked, head, route, upstream, session, log, spoken, coding)
    withheld = WithheldRelay(plain, stream, begin, session, Inflater(coding) if coding else None)
    return Answer(withheld, is_stream=False, format="typed")


def choose_within(
    asked: Asked,
    head: ResponseHead,
    route: Route,
    upstream: Upstream,
    session: Session,
    log: Log,
    opened: Answer | None,
) -> Answer:
    """The answer for one upstream head where the client's own has begun, as a stream, in ``opened``. Raises Failure
    for one that cannot go on there."""
    assert opened is not None  # noqa: S101 - it has begun
    content_type, coding, has_length = _essentials(head)
    if not 200 <= head.status < 300 or head.status in _BODYLESS:
        said = _header(head, b"retry-after"), _header(head, b"x-amzn-errortype")
        told = ToldRejection(head.status, _MAX_REJECTION_BYTES, *said, opened.relay)
        return Answer(told, is_stream=True, format=asked.format, mode=opened.mode)
    spoken = _spoken(asked, sent_path(route, upstream, asked.path), content_type, has_length, upstream)
    is_native = asked.format == "native"
    if spoken is None or (is_native and (coding or spoken.framing != "sse")):
        raise Failure(
            "upstream_not_a_stream", f"the upstream answered a stream request with {content_type or 'nothing'}"
        )
    answer = _stream(asked, head, route, upstream, session, log, spoken, coding)
    answer.head, answer.mode = None, opened.mode
    return answer


def opening(asked: Asked, route: Route, upstream: Upstream, session: Session) -> Answer | None:
    """A stream that begins before any upstream has answered; None where it is not known beforehand in what form.

    ``upstream`` is the one that is asked first."""
    if not asked.wants_stream or asked.method == "HEAD":
        return None
    given = asked.stream_id, route.name, upstream.name, asked.model, asked.created
    if asked.format == "typed":
        typed = TypedFormat(*given)
        relay, heartbeat, content_type = Opening(session, typed.close), typed.heartbeat, TypedFormat.content_type or ""
    else:
        name = dialect_of(sent_path(route, upstream, asked.path), upstream.dialect)
        if name is None or DIALECTS[name].framings != ("sse",):
            return None
        error_frame = make_dialect(name, "sse", is_certain=True).error_frame
        relay = Opening(session, lambda ended: error_frame(ended.failure, "sse") if ended.failure else b"")
        heartbeat, content_type = b": keep-alive\n\n" if route.native_heartbeat else b"", "text/event-stream"
    mode = BodyMode.CHUNKED if asked.http_version >= (1, 1) else BodyMode.CLOSE
    headers = [(b"Content-Type", content_type.encode()), *stream_headers(asked.stream_id, asked.format)]
    return Answer(
        relay,
        is_stream=True,
        format=asked.format,
        head=_render(asked, 200, "OK", headers, mode),
        mode=mode,
        heartbeat=heartbeat if route.heartbeat_s else b"",
    )


def _may_say_error(content_type: str, coding: str) -> bool:
    is_json = content_type == "application/json" or content_type.endswith("+json")
    return is_json and (not coding or coding in INFLATABLE)


def _header(head: ResponseHead, wanted: bytes) -> str:
    """The last value of one header, "" for none."""
    values = [value.decode("latin-1") for name, value in head.headers if name.lower() == wanted]
    return values[-1] if values else ""


def _essentials(head: ResponseHead) -> tuple[str, str, bool]:
    """Content type without parameters, content coding ("" for none), and whether the length is known."""
    content_type = coding = ""
    has_length = False
    for name, value in head.headers:
        match name.lower():
            case b"content-type":
                content_type = value.split(b";", 1)[0].strip().lower().decode("latin-1")
            case b"content-encoding":
                coding = value.strip().lower().decode("latin-1")
            case b"content-length":
                has_length = True
    return content_type, "" if coding == "identity" else coding, has_length


def _spoken(asked: Asked, path: str, content_type: str, has_length: bool, upstream: Upstream) -> Spoken | None:
    """What a successful answer speaks, None where it is no stream."""
    spoken = detect(path, content_type, upstream.dialect)
    is_text = content_type == "text/plain" and upstream.dialect != "raw"
    if is_text and (has_length or not asked.wants_stream):
        return None  # any text file is text/plain: without a sign of streaming it is just a body
    return spoken


def _plain(asked: Asked, head: ResponseHead, log: Log) -> Answer:
    headers = response_headers(head.headers)
    has_length = any(name.lower() == b"content-length" for name, _ in headers)
    if asked.method == "HEAD" or head.status in _BODYLESS:
        mode = BodyMode.NONE
    elif has_length:
        mode = BodyMode.LENGTH
    else:
        mode = BodyMode.CHUNKED if asked.http_version >= (1, 1) else BodyMode.CLOSE
    own = [(b"X-Stream-Id", asked.stream_id.encode()), (b"X-Stream-Format", b"native")]
    return Answer(
        PlainRelay(log, head.status),
        is_stream=False,
        format="native",
        head=_render(asked, head.status, head.reason, [*headers, *own], mode),
        mode=mode,
    )


def _stream(
    asked: Asked,
    head: ResponseHead,
    route: Route,
    upstream: Upstream,
    session: Session,
    log: Log,
    spoken: Spoken,
    coding: str,
) -> Answer:
    typed = asked.format == "typed"
    if coding and coding not in INFLATABLE:
        if typed:
            raise Failure("malformed_upstream", f"the upstream's stream is in the content coding {coding[:20]!r}")
        return _plain(asked, head, log)
    dialect = make_dialect(spoken.dialect, spoken.framing, is_certain=spoken.is_certain)
    if session.content is not None:
        dialect = Overheard(dialect, session.content)
    framing = make_framing(spoken.framing, route.limits.max_frame_bytes, strict=typed)
    format_ = make_format(
        asked.format,
        error_frame=lambda failure: dialect.error_frame(failure, spoken.framing),
        joint=framing.joint,
        native_heartbeat=route.native_heartbeat and spoken.framing == "sse",
        hides=ExtraChunk() if asked.adds_usage and spoken.dialect in REPORTS_ON_REQUEST else None,
        stream_id=asked.stream_id,
        route=route.name,
        upstream=upstream.name,
        model=asked.model,
        created=asked.created,
    )
    proves_end = not head.is_eof_delimited or upstream.eof == "complete"
    relay = (
        CompressedRelay(framing, dialect, format_, session, log, Inflater(coding), proves_end=proves_end)
        if coding
        else Relay(framing, dialect, format_, session, log, proves_end=proves_end)
    )
    mode = BodyMode.CHUNKED if asked.http_version >= (1, 1) else BodyMode.CLOSE
    return Answer(
        relay,
        is_stream=True,
        format=asked.format,
        dialect=dialect,
        head=_render(asked, head.status, head.reason, _stream_head(asked, head, format_), mode),
        mode=mode,
        heartbeat=b"" if (coding and not typed) or not route.heartbeat_s else format_.heartbeat,
    )


_SAID_BY_STREAMS: Final = HOP_BY_HOP | STREAM_HEADERS | {b"content-length"}
_SAID_BY_TYPED: Final = _SAID_BY_STREAMS | {b"content-type", b"content-encoding", b"etag", b"content-md5", b"digest"}


def _stream_head(asked: Asked, head: ResponseHead, format_: Format) -> Headers:
    if format_.content_type is None:
        headers = response_headers(head.headers, _SAID_BY_STREAMS)
    else:
        headers = response_headers(head.headers, _SAID_BY_TYPED)
        headers.append((b"Content-Type", format_.content_type.encode()))
    headers += stream_headers(asked.stream_id, asked.format)
    return headers


def _render(asked: Asked, status: int, reason: str, headers: Headers, mode: BodyMode) -> bytes:
    """The whole head. A body that only EOF ends, or a client that wants no more, closes the connection."""
    if mode is BodyMode.CHUNKED:
        headers = [*headers, (b"Transfer-Encoding", b"chunked")]
    if mode is BodyMode.CLOSE or not asked.keep_alive:
        headers = [*headers, (b"Connection", b"close")]
    elif asked.http_version < (1, 1):
        headers = [*headers, (b"Connection", b"keep-alive")]
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, reason.encode("latin-1", "replace"))]
    if asked.extra_headers:
        # Browsers refuse an answer that says twice who may read it, as one from an upstream with its own CORS would.
        headers = [*(field for field in headers if not field[0].lower().startswith(_CORS)), *asked.extra_headers]
    lines += [b"%b: %b\r\n" % item for item in headers]
    lines.append(b"\r\n")
    return b"".join(lines)


def judge(answer: Answer | None, failure: Failure | None, now: float) -> tuple[Outcome, Failure | None]:
    """How an upstream's answer ended, None for one that never came: its relay's verdict. Whatever goes wrong in forming
    it, the stream still has its one ending."""
    if answer is None:
        failure = failure or Failure("upstream_truncated", "the upstream gave no answer")
        return failure.outcome, failure
    try:
        return answer.relay.finish(failure, now)
    except Failure as said:
        return said.outcome, said
    except Exception as error:  # noqa: BLE001 - a bug of ours ends this stream and no other
        internal = Failure("internal", "the sidecar failed on this stream")
        internal.__cause__ = error
        return internal.outcome, internal


def own_answer(
    asked_version: tuple[int, int], status: int, headers: Headers, body: bytes, *, keep_alive: bool
) -> bytes:
    """A whole answer of our own, head and body; for a HEAD request pass no body and its length in ``headers``."""
    lines = [b"HTTP/1.1 %d %b\r\n" % (status, _phrase(status))]
    lines += [b"%b: %b\r\n" % item for item in headers]
    if status != HTTPStatus.NO_CONTENT and not any(name.lower() == b"content-length" for name, _ in headers):
        lines.append(b"Content-Length: %d\r\n" % len(body))
    if not keep_alive:
        lines.append(b"Connection: close\r\n")
    elif asked_version < (1, 1):
        lines.append(b"Connection: keep-alive\r\n")
    return b"".join((*lines, b"\r\n", body))


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Error"
