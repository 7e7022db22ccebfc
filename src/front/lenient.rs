//! Request targets with raw quotes, angle brackets or UTF-8, which Prometheus reads and the HTTP library
//! refuses: they are percent-encoded on their way to it.
//!
//! The bytes of HTTP/1 connections pass through here. Heads are followed, and bodies of a known length
//! skipped; what is not certain, such as chunked bodies or HTTP/2, passes unchanged to the end of the
//! connection. So the library always sees the framing that the client sent.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use memchr::{memchr, memchr_iter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::admission::Claim;
use super::long_target::{LongTarget, TargetRead};

/// The longest header that is followed, in bytes.
const LONGEST_HEADER: usize = 64 << 10;

/// The beginning of a connection of HTTP/2 (RFC 9113, section 3.4).
const HTTP2: &[u8] = b"PRI ";

/// A stream whose request lines are encoded as they are read.
#[derive(Debug)]
pub(super) struct LenientStream<S> {
    stream: S,
    /// The bytes of it that have been read already.
    first: Vec<u8>,
    requests: Requests,
    /// Bytes for the library that found no room in its buffer, and how many of them it has.
    ready: Vec<u8>,
    given: usize,
    /// A request whose first line may be longer than the library reads.
    long: Option<LongTarget>,
    /// The connection's claim, which is charged for such a request.
    claim: Option<Arc<Claim>>,
}

/// The position of the stream in a request.
#[derive(Debug)]
enum State {
    /// In its first line.
    Start,
    /// In its headers; with the length of its body, if they gave one.
    Headers(Option<u64>),
    /// In its body, of which so many bytes are left.
    Body(u64),
    /// Not followed any more.
    Opaque,
}

#[derive(Debug)]
struct Requests {
    state: State,
    /// The beginning of a line that has not ended; of a request's first line, no more than tells HTTP/2.
    line: Vec<u8>,
}

impl Requests {
    /// Returns whether nothing of a request has been followed yet.
    fn is_between(&self) -> bool {
        matches!(self.state, State::Start) && self.line.is_empty()
    }

    /// Follows `input`, and returns it with request targets encoded if any had to be.
    fn follow(&mut self, input: &[u8]) -> Option<Vec<u8>> {
        let mut encoded: Option<Vec<u8>> = None;
        // How much of `input` stands in `encoded`, and how much has been followed.
        let (mut copied, mut at) = (0, 0);
        while let Some(rest) = input.get(at..).filter(|rest| !rest.is_empty()) {
            if matches!(self.state, State::Headers(_)) && self.line.is_empty() {
                at += plain_lines(rest);
            }
            let rest = input.get(at..).unwrap_or_default();
            let line = match self.state {
                State::Opaque => break,
                State::Body(left) => {
                    let here = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    at += here;
                    self.state = match left - here as u64 {
                        0 => State::Start,
                        left => State::Body(left),
                    };
                    continue;
                }
                State::Start | State::Headers(_) => {
                    let end = memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
                    rest.get(..end).unwrap_or(rest)
                }
            };
            // As a rule none: then all bytes are looked at together.
            if matches!(self.state, State::Start)
                && line.iter().fold(false, |found, b| found | is_refused(*b))
            {
                for (offset, byte) in line.iter().enumerate().filter(|(_, b)| is_refused(**b)) {
                    let out = encoded.get_or_insert_default();
                    out.extend_from_slice(input.get(copied..at + offset).unwrap_or_default());
                    encode(*byte, out);
                    copied = at + offset + 1;
                }
            }
            at += line.len();
            self.pass(line);
        }
        let mut out = encoded?;
        out.extend_from_slice(input.get(copied..).unwrap_or_default());
        Some(out)
    }

    /// Follows `part` of a line of a head, which may end it.
    fn pass(&mut self, part: &[u8]) {
        let ends = part.ends_with(b"\n");
        let first = matches!(self.state, State::Start);
        if ends && self.line.is_empty() {
            self.end_line(part);
            return;
        }
        let kept = if first { HTTP2.len() } else { usize::MAX };
        let room = kept.saturating_sub(self.line.len());
        self.line
            .extend_from_slice(part.get(..room).unwrap_or(part));
        if ends {
            // Nothing is kept for an idle connection.
            let line = std::mem::take(&mut self.line);
            self.end_line(&line);
        } else if self.line.len() > LONGEST_HEADER {
            self.line = Vec::new();
            self.state = State::Opaque;
        }
    }

    /// Follows the end of `line`; of a request's first line its beginning is enough.
    fn end_line(&mut self, line: &[u8]) {
        let text = line.trim_ascii_end();
        self.state = match self.state {
            // Blank lines may stand before a request.
            State::Start if text.is_empty() => State::Start,
            State::Start if line.starts_with(HTTP2) => State::Opaque,
            State::Start => State::Headers(None),
            State::Headers(length) if text.is_empty() => match length {
                None | Some(0) => State::Start,
                Some(length) => State::Body(length),
            },
            State::Headers(length) => header(text, length),
            State::Body(_) | State::Opaque => State::Opaque,
        };
    }
}

/// Returns the length of the plain lines that `text` begins with.
fn plain_lines(text: &[u8]) -> usize {
    let mut length = 0;
    for end in memchr_iter(b'\n', text) {
        if !text.get(length..=end).is_some_and(is_plain) {
            break;
        }
        length = end + 1;
    }
    length
}

/// Returns whether `line` is a whole header whose name begins like none that is followed.
fn is_plain(line: &[u8]) -> bool {
    let letter = |at: usize| line.get(at).map_or(b' ', u8::to_ascii_lowercase);
    let followed = match letter(0) {
        // `Content-Length`, and not `Content-Type`, `Cookie` or `Cache-Control`.
        b'c' => letter(8) == b'l',
        first => matches!(first, b't' | b'u' | b':') || first.is_ascii_whitespace(),
    };
    !followed && line.ends_with(b"\n")
}

/// Returns the state after the header `line`; `length` is that of the body so far.
fn header(line: &[u8], length: Option<u64>) -> State {
    let colon = memchr(b':', line).unwrap_or(line.len());
    let (name, value) = line.split_at(colon);
    let name = name.trim_ascii();
    if name.eq_ignore_ascii_case(b"transfer-encoding") || name.eq_ignore_ascii_case(b"upgrade") {
        return State::Opaque;
    }
    if !name.eq_ignore_ascii_case(b"content-length") {
        return State::Headers(length);
    }
    let digits = value.get(1..).unwrap_or_default().trim_ascii();
    let text = std::str::from_utf8(digits).unwrap_or_default();
    let plain = (1..=18).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(read) if plain && length.is_none() => State::Headers(Some(read)),
        // Two of them, or one that only the library can judge.
        _ => State::Opaque,
    }
}

/// Returns whether the library refuses `byte` in a request line that Prometheus reads.
fn is_refused(byte: u8) -> bool {
    matches!(
        byte,
        b'"' | b'<' | b'>' | b'`' | b'^' | b'#' | b'\\' | 0x80..
    )
}

/// Appends `byte` to `out`, percent-encoded.
fn encode(byte: u8, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |at: u8| HEX.get(usize::from(at)).copied().unwrap_or_default();
    out.extend([b'%', digit(byte >> 4), digit(byte & 15)]);
}

impl<S> LenientStream<S> {
    /// Returns `stream`, of which `first` has been read already, and whose `claim` is charged for long
    /// request targets.
    pub(super) fn new(stream: S, first: Vec<u8>, claim: Option<Arc<Claim>>) -> Self {
        Self {
            stream,
            first,
            requests: Requests {
                state: State::Start,
                line: Vec::new(),
            },
            ready: Vec::new(),
            given: 0,
            long: None,
            claim,
        }
    }

    /// Gives the library `bytes`, with targets encoded.
    fn pass(&mut self, bytes: Vec<u8>) {
        self.ready = self.requests.follow(&bytes).unwrap_or(bytes);
        self.given = 0;
    }
}

impl<S: AsyncRead + Unpin> LenientStream<S> {
    /// Reads what the client sent.
    fn poll_sent(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let some = self.first.len().min(buffer.remaining());
        buffer.put_slice(self.first.get(..some).unwrap_or_default());
        self.first.drain(..some);
        if !self.first.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.first = Vec::new();
        // What has come meanwhile is given along, as if all had been read at once: the library closes a
        // connection whose request is answered while a part of its body is missing.
        match Pin::new(&mut self.stream).poll_read(context, buffer) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LenientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let waiting = this.ready.get(this.given..).unwrap_or_default();
            if !waiting.is_empty() {
                let some = waiting.get(..buffer.remaining()).unwrap_or(waiting);
                buffer.put_slice(some);
                this.given += some.len();
                if this.given == this.ready.len() {
                    // Nothing is kept for an idle connection.
                    this.ready = Vec::new();
                    this.given = 0;
                    if let Some(claim) = &this.claim
                        && claim.holds()
                    {
                        // What is less always fits.
                        let _ = claim.hold(0, usize::MAX);
                    }
                }
                return Poll::Ready(Ok(()));
            }
            if matches!(this.requests.state, State::Opaque) {
                return this.poll_sent(context, buffer);
            }
            // Bytes are read into the library's buffer, so that none has to be cleared or copied.
            let before = buffer.filled().len();
            ready!(this.poll_sent(context, buffer))?;
            let fresh = buffer.filled().get(before..).unwrap_or_default();
            if let Some(mut long) = this.long.take() {
                let ended = fresh.is_empty();
                match long.read(fresh, this.claim.as_ref()) {
                    TargetRead::More => this.long = Some(long),
                    TargetRead::Pass(bytes) if bytes.is_empty() && ended => {
                        return Poll::Ready(Ok(()));
                    }
                    TargetRead::Pass(bytes) => this.pass(bytes),
                }
                buffer.set_filled(before);
                continue;
            }
            if this.requests.is_between() {
                this.long = LongTarget::begin(fresh);
                if this.long.is_some() {
                    buffer.set_filled(before);
                    continue;
                }
            }
            match this.requests.follow(fresh) {
                None => return Poll::Ready(Ok(())),
                Some(encoded) => {
                    this.ready = encoded;
                    buffer.set_filled(before);
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LenientStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Returns the output for `input`, which arrives in pieces of `size`.
    fn passed(input: &[u8], size: usize) -> Vec<u8> {
        let mut stream = LenientStream::new((), Vec::new(), None);
        let mut out = Vec::new();
        for piece in input.chunks(size) {
            let encoded = stream.requests.follow(piece);
            out.extend(encoded.unwrap_or_else(|| piece.to_vec()));
        }
        out
    }

    #[test]
    fn targets_are_encoded_and_nothing_else_is() {
        let raw = "GET /q?query=up{a=\"<ä>#\"} HTTP/1.1\r\nx: \"<\r\n\r\n\
                   POST /\" HTTP/1.1\r\nContent-Length: 9\r\n\r\nGET \"\r\n\r\n\
                   \r\nGET /\" HTTP/1.1\r\n\r\n";
        let expected = "GET /q?query=up{a=%22%3C%C3%A4%3E%23%22} HTTP/1.1\r\nx: \"<\r\n\r\n\
                        POST /%22 HTTP/1.1\r\nContent-Length: 9\r\n\r\nGET \"\r\n\r\n\
                        \r\nGET /%22 HTTP/1.1\r\n\r\n";
        for size in [1, 2, 7, 1000] {
            let out = passed(raw.as_bytes(), size);
            assert_eq!(String::from_utf8_lossy(&out), expected, "{size}");
        }
    }

    #[tokio::test]
    async fn what_came_after_the_first_bytes_is_given_along() {
        let (near, mut far) = duplex(64);
        far.write_all(b"ld").await.unwrap();
        let first = b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nwor".to_vec();
        let mut stream = LenientStream::new(near, first, None);
        let mut read = [0; 100];
        let length = stream.read(&mut read).await.unwrap();
        assert!(read[..length].ends_with(b"\r\n\r\nworld"));
        drop(far);
        assert_eq!(stream.read(&mut read).await.unwrap(), 0);
    }

    #[test]
    fn a_usual_request_is_not_copied() {
        let mut requests = LenientStream::new((), Vec::new(), None).requests;
        let short = "POST /api/metric HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n\"<>";
        let long = "POST /api/metric HTTP/1.1\r\nHost: heliostat.example:7007\r\nAccept: */*\r\n\
                    Content-Type: application/json; charset=utf-8\r\nUser-Agent: a client/1.0\r\n\
                    X-Request-Id: 8c1f3f3e-2d5b-4c53\r\nContent-Length: 3\r\nPragma: no-cache\r\n\r\n\"<>";
        for usual in [short, long, long] {
            assert_eq!(requests.follow(usual.as_bytes()), None);
            assert!(requests.line.capacity() == 0 && matches!(requests.state, State::Start));
        }
    }

    #[test]
    fn what_is_not_certain_passes_unchanged() {
        let rest = "\r\n\r\nGET /\" HTTP/1.1\r\n\r\n";
        for first in [
            "PRI * HTTP/2.0",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2",
            "POST / HTTP/1.1\r\nContent-Length: +1",
            "GET / HTTP/1.1\r\nUpgrade: h2c",
        ] {
            let raw = format!("{first}{rest}");
            for size in [1, 3, 1000] {
                assert_eq!(passed(raw.as_bytes(), size), raw.as_bytes(), "{first}");
            }
        }
        let long = "x".repeat(2 * LONGEST_HEADER);
        let long = format!("GET / HTTP/1.1\r\nx: {long}{rest}");
        assert_eq!(passed(long.as_bytes(), 1000), long.as_bytes());
    }
}
