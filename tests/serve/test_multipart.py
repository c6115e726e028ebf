"""Bodies of many parts, held against Python's own parser of mail and a peer's writer."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Iterator

import pytest

from qinjing.errors import FormatError
from qinjing.serve.multipart import BrokenOffError, boundary, joined, joined_length, parts

KIND = 'multipart/related; type="application/dicom"; boundary="{}"'
# Bytes that look like what they stand between.
CONTENTS = [b"", b"\r\n", b"--", b"one\r\n--edg", b"\r\n--edge"[:-1] * 3, bytes(range(256)) * 3]


def test_what_is_put_together_a_parser_of_mail_takes_apart() -> None:
    mark = boundary()
    body = b"".join(joined(([one] for one in CONTENTS), mark, "application/dicom"))
    assert len(body) == joined_length([len(one) for one in CONTENTS], mark, "application/dicom")
    head = f"Content-Type: {KIND.format(mark)}\r\n\r\n".encode()
    read = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    assert [one.get_payload(decode=True) for one in read.iter_parts()] == CONTENTS
    assert {one.get_content_type() for one in read.iter_parts()} == {"application/dicom"}
    assert list(parts([body], KIND.format(mark), 1000)) == CONTENTS


def test_what_a_peer_puts_together_is_taken_apart_wherever_it_is_cut() -> None:
    web = pytest.importorskip("dicomweb_client.web")
    body = web.DICOMwebClient._encode_multipart_message(
        content=CONTENTS, content_type='multipart/related; type="application/dicom"; boundary=edge'
    )
    for cut in range(len(body)):
        assert list(parts([body[:cut], body[cut:]], KIND.format("edge"), 1000)) == CONTENTS
    assert list(parts((bytes([one]) for one in body), KIND.format("edge"), 1000)) == CONTENTS


def test_odd_bodies_that_the_standard_allows_are_read() -> None:
    body = (
        b"for those whose mail cannot read this\r\n--edge \t\r\n\r\nno headers\r\n--edge\r\n"
        b"Content-Type: application/dicom\r\nContent-Length: 3\r\n\r\nabc\r\n--edge--"
    )  # no line behind the last boundary
    assert list(parts([body], "multipart/related; boundary=edge", 1000)) == [b"no headers", b"abc"]
    assert list(parts([b"--edge--"], KIND.format("edge"), 10)) == []


def test_a_body_that_breaks_off_is_never_taken_for_whole() -> None:
    body = b"".join(joined([[b"first"], [b"second"]], "edge", "application/dicom"))
    for length in range(len(body) - len("--\r\n")):
        with pytest.raises(BrokenOffError):
            list(parts([body[:length]], KIND.format("edge"), 1000))


@pytest.mark.parametrize(
    "kind",
    ["application/dicom", "", "multipart/related", 'multipart/related; boundary=""',
     f"multipart/related; boundary={'x' * 71}", "multipart/related; boundary*=utf-8''%E2%82%AC",
     'multipart/related; boundary="ends in blank "'],
)  # fmt: skip
def test_other_kinds_are_refused(kind: str) -> None:
    with pytest.raises(FormatError):
        list(parts([b"--edge--"], kind, 10))


def test_memory_is_bounded_whatever_comes() -> None:
    def endless(start: bytes) -> Iterator[bytes]:
        yield start
        for _ in range(1000):
            yield b"x" * 1024
        raise AssertionError("read on")

    kind = KIND.format("edge")
    for start in (b"", b"--edge\r\nHeader: ", b"--edge\r\n\r\n", b"--edge"):
        with pytest.raises(FormatError, match="at most"):
            list(parts(endless(start), kind, 5000))
    exact = b"".join(joined([[b"x" * 5000]], "edge", "a/b"))
    assert [len(one) for one in parts([exact], kind, 5000)] == [5000]
    with pytest.raises(FormatError, match="at most 4999 bytes"):
        list(parts([exact], kind, 4999))
