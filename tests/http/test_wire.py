"""The bytes of a request and of an answer, without a socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from watcher.fields import as_written
from watcher.http.wire import Answer, Head, Limits, NoAnswer, NotHttp, Reader, TooLong

URL_IN = URL("https://hooks.example/in?a=b", encoded=True)
ROOM = Limits(65_536, 65_536)


SOME_TEXT = st.text("aZ0-._~ %&=+/ü?#,", max_size=4)


def read(*pieces: bytes, limits: Limits = ROOM) -> Answer | None:
    reader = Reader()
    reader.begin(limits)
    for piece in pieces:
        try:
            reader.feed(piece)
        except NoAnswer as cut:
            return reader.answer(cut)
    return reader.answer()


def test_a_head_is_written_in_the_order_and_the_case_that_it_was_given_in() -> None:
    head = Head.of("POST", URL_IN, [("X-B", "2"), ("x-a", "1")]).written()
    assert head == b"POST /in?a=b HTTP/1.1\r\nHost: hooks.example\r\nX-B: 2\r\nx-a: 1\r\n"


@given(
    st.sampled_from(["/in", "/in?", "/in?a=b", "/"]),
    st.dictionaries(
        st.text("aZ0-._~ %&=+/ü?#,", max_size=4), st.text("aZ0-._~ %&=+/ü?#,", max_size=4), max_size=3
    ),
)
def test_a_query_is_encoded_as_yarl_encodes_it(path: str, query: dict[str, str]) -> None:
    url = as_written(f"https://api.example{path}")
    target = Head.of("GET", url, []).written(query).split(b" ")[1].decode()
    assert target == (url.extend_query(query) if query else url).raw_path_qs


@pytest.mark.parametrize("value", ["a\r\nX-Forged: 1", "a\nb", "a\rb", "a\0b"])
def test_a_header_cannot_end_a_line(value: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        Head.of("GET", URL_IN, [("X-A", value)]).written()


@pytest.mark.parametrize("name", ["", "X A", "X-A:", "X-A\r\nX-B", "Ä", "X\0"])
def test_the_name_of_a_header_is_a_token(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        Head.of("GET", URL_IN, [(name, "1")]).written()


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX-Forged: 1", "/a\nb", "/ü"])
def test_a_url_cannot_end_the_request_line(path: str) -> None:
    url = URL.build(scheme="http", host="hooks.example", path=path, encoded=True)
    with pytest.raises(ValueError, match="cannot be sent"):
        Head.of("GET", url, []).written()


def test_an_answer_in_single_bytes_reads_like_one_in_one_piece() -> None:
    said = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\nRetry-After: 7 \r\nContent-Length: 4\r\n\r\nbusy"
    whole = read(said)
    assert whole == read(*(said[at : at + 1] for at in range(len(said))))
    assert whole is not None
    assert (whole.status, whole.header("retry-after"), whole.body) == (503, "7", b"busy")


def test_a_trailer_is_no_header() -> None:
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nRetry-After: 7\r\n\r\n"
    answer = read(said)
    assert answer
    assert (answer.body, answer.header("retry-after")) == (b"x", None)


def test_no_more_of_a_body_is_kept_than_was_asked_for() -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
    answer = read(said, b"01234", b"56789", limits=Limits(1000, 7))
    assert answer
    assert (answer.body, answer.cut) == (b"0123456", None)


@pytest.mark.parametrize("total", [1, 20, 60, 69])
def test_a_body_beyond_the_limit_is_cut(total: int) -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n" + 30 * b"x"
    assert len(said) == 70 - 1
    answer = read(said, limits=Limits(total, 100))
    if total < 14:
        assert answer is None
    else:
        assert answer
        assert (answer.status, type(answer.cut)) == (200, type(None) if total == 69 else TooLong)


@pytest.mark.parametrize(
    "before",
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"],
    ids=["head", "trailer"],
)
def test_a_header_of_a_million_lines_is_cut_off_quickly(before: bytes) -> None:
    answer = read(before + b"X: a" + 400_000 * b"\r\n b", limits=Limits(2**21, 2**20))
    assert answer
    assert (answer.status, type(answer.cut)) == (200, TooLong)


def test_a_large_body_in_small_chunks_behind_large_cookies_is_read_whole() -> None:
    said = b"HTTP/1.1 200 OK\r\nSet-Cookie: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % (50_000 * b"x")
    answer = read(said + 20_000 * b"a\r\n0123456789\r\n" + b"0\r\n\r\n", limits=Limits(2**20, 2**20))
    assert answer
    assert (answer.body, answer.cut) == (20_000 * b"0123456789", None)


def test_an_interim_answer_with_close_is_not_the_last_one() -> None:
    said = (
        b"HTTP/1.1 100 Continue\r\nConnection: close\r\n\r\n"
        + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"
    )
    for pieces in ([said], [said[at : at + 1] for at in range(len(said))]):
        answer = read(*pieces)
        assert answer
        assert (answer.status, answer.body) == (200, b"x")


def test_tls_in_place_of_http_is_recognized() -> None:
    reader = Reader()
    reader.begin(ROOM)
    with pytest.raises(NotHttp) as caught:
        reader.feed(b"\x15\x03\x01\x00\x02\x02\x46")
    assert caught.value.is_tls


@pytest.mark.parametrize(
    ("said", "may_go_on"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 101 Up\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 500 No\r\n", False),
        (b"HTTP/1.1 204 None\r\n\r\nx", False),
    ],
)
def test_a_connection_goes_on_only_after_an_answer_that_ends_where_it_says(
    said: bytes, may_go_on: bool
) -> None:
    reader = Reader()
    reader.begin(ROOM)
    assert reader.feed(said)
    assert reader.may_go_on is may_go_on


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2 \r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
@pytest.mark.parametrize("is_cut_up", [False, True])
def test_a_tolerated_fault_is_read_and_ends_the_connection(said: bytes, is_cut_up: bool) -> None:
    reader = Reader()
    reader.begin(ROOM)
    pieces = [said[at : at + 1] for at in range(len(said))] if is_cut_up else [said]
    assert [reader.feed(piece) for piece in pieces][-1]
    answer = reader.answer()
    assert answer
    assert (answer.status, answer.body, reader.may_go_on) == (200, b"ok", False)


def test_a_status_below_a_hundred_ends_the_connection() -> None:
    reader = Reader()
    reader.begin(ROOM)
    assert reader.feed(b"HTTP/1.1 099 Low\r\nContent-Length: 0\r\n\r\n")
    assert not reader.may_go_on
