//! Long request targets of Prometheus' API, which Prometheus reads up to a mebibyte and the HTTP library up
//! to 64 KiB: such a GET is given to the library as the POST that means the same, its query string as the
//! form.

use std::sync::Arc;

use memchr::{memchr, memchr_iter, memchr2};

use super::admission::Claim;
use super::endpoint::takes_form;
use super::path::normalized;

/// Targets up to so many bytes are the library's.
const USUAL: usize = 60 << 10;

/// The longest request line, and the longest headers behind a long one.
const LONGEST: usize = (1 << 20) + USUAL;
const HEADERS: usize = 32 << 10;

/// Most bytes that long targets of all connections hold together.
const ALL: usize = 16 << 20;

/// The longest path before the query of a long target. The library reads no more than the first 24 bytes of a
/// connection at first, so a path may come in pieces.
const LONGEST_PATH: usize = 1 << 10;

/// A request whose first line did not come in one piece.
#[derive(Debug)]
pub(super) struct LongTarget {
    raw: Vec<u8>,
    /// Whether its path is known to be one that takes a form.
    takes_form: bool,
    /// Where its first line ends, once that is there.
    line: Option<usize>,
}

/// The next step with a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TargetRead {
    /// More of it has to be read.
    More,
    /// These bytes are for the library.
    Pass(Vec<u8>),
}

impl LongTarget {
    /// Begins with `start`, if that is the beginning of a request line that may become a long one.
    pub(super) fn begin(start: &[u8]) -> Option<Self> {
        if memchr(b'\n', start).is_some() {
            return None;
        }
        Some(Self {
            raw: start.to_vec(),
            takes_form: path_takes_form(start)?,
            line: None,
        })
    }

    /// Goes on with `more`; the end of the connection is empty. `claim` is charged for what is beyond the
    /// usual length.
    pub(super) fn read(&mut self, more: &[u8], claim: Option<&Arc<Claim>>) -> TargetRead {
        let from = self.raw.len();
        self.raw.extend_from_slice(more);
        let length = self.raw.len();
        if !self.takes_form {
            match path_takes_form(&self.raw) {
                Some(known) => self.takes_form = known,
                None => return TargetRead::Pass(std::mem::take(&mut self.raw)),
            }
        }
        if self.line.is_none() {
            self.line = memchr(b'\n', more).map(|at| from + at + 1);
        }
        let usual = self.line.is_some_and(|line| line <= USUAL);
        // The request stands here once, and once more when it is passed on.
        let room = length <= USUAL || claim.is_none_or(|claim| claim.hold(2 * length, ALL).is_ok());
        let headers = self.line.map_or(0, |line| length - line);
        if more.is_empty() || usual || !room || length - headers > LONGEST {
            return TargetRead::Pass(std::mem::take(&mut self.raw));
        }
        let Some((line, end)) = self
            .line
            .and_then(|line| Some((line, self.head_end(line)?)))
        else {
            return match headers > HEADERS {
                true => TargetRead::Pass(std::mem::take(&mut self.raw)),
                false => TargetRead::More,
            };
        };
        let raw = std::mem::take(&mut self.raw);
        TargetRead::Pass(as_post(&raw, line, end).unwrap_or(raw))
    }

    /// Returns where the blank line behind the headers ends, which begin at `line`.
    fn head_end(&self, line: usize) -> Option<usize> {
        let headers = self.raw.get(line..)?;
        let mut start = 0;
        for end in memchr_iter(b'\n', headers) {
            let text = headers.get(start..end)?;
            if text.trim_ascii_end().is_empty() {
                return Some(line + end + 1);
            }
            start = end + 1;
        }
        None
    }
}

/// Returns whether the path of the request that begins with `start` is known to be one that takes a form; `None`
/// if it is known not to be.
fn path_takes_form(start: &[u8]) -> Option<bool> {
    let target = start.strip_prefix(b"GET ")?;
    match memchr2(b'?', b'\n', target) {
        None => (target.len() <= LONGEST_PATH).then_some(false),
        Some(end) => {
            let path = target
                .get(..end)
                .filter(|_| target.get(end) == Some(&b'?'))?;
            takes_form(&normalized(std::str::from_utf8(path).ok()?)).then_some(true)
        }
    }
}

/// Returns the GET `raw`, whose headers are between `line` and `end`, as a POST; `None` if it has a body or
/// asks for another protocol.
fn as_post(raw: &[u8], line: usize, end: usize) -> Option<Vec<u8>> {
    let first = raw.get(..line)?.trim_ascii_end();
    let target = first.strip_prefix(b"GET ")?;
    let version = target.iter().rposition(|b| *b == b' ')?;
    let (target, version) = (target.get(..version)?, target.get(version..)?);
    let question = memchr(b'?', target)?;
    let (path, query) = (target.get(..question)?, target.get(question + 1..)?);
    let mut post = Vec::with_capacity(raw.len() + 100);
    for part in [b"POST ", path, version, b"\r\n"] {
        post.extend_from_slice(part);
    }
    for header in raw.get(line..end)?.split_inclusive(|b| *b == b'\n') {
        let name = header
            .get(..memchr(b':', header).unwrap_or(header.len()))?
            .trim_ascii();
        let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
        if is(b"content-length") || is(b"transfer-encoding") || is(b"upgrade") || is(b"expect") {
            return None;
        }
        // A line that is no header is the library's to refuse.
        if !header.trim_ascii().is_empty() && !is(b"content-type") {
            post.extend_from_slice(header);
        }
    }
    let form = format!(
        "content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n",
        query.len()
    );
    post.extend_from_slice(form.as_bytes());
    post.extend_from_slice(query);
    post.extend_from_slice(raw.get(end..)?);
    Some(post)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what the library gets of `raw`, which arrives in pieces of `size`.
    fn passed(raw: &[u8], size: usize) -> Option<String> {
        let mut pieces = raw.chunks(size);
        let mut long = LongTarget::begin(pieces.next()?)?;
        loop {
            if let TargetRead::Pass(mut bytes) = long.read(pieces.next().unwrap_or_default(), None)
            {
                bytes.extend(pieces.flatten());
                return Some(String::from_utf8(bytes).unwrap());
            }
        }
    }

    #[test]
    fn a_long_get_becomes_the_post_that_means_the_same() {
        let query = format!("query={}%22&time=1", "x".repeat(500_000));
        let raw = format!(
            "GET /prometheus/p/api/v1/query?{query} HTTP/1.1\r\nHost: x\r\nContent-Type: a\r\n\r\nGET / HTTP/1.1\r\n\r\n"
        );
        let expected = format!(
            "POST /prometheus/p/api/v1/query HTTP/1.1\r\nHost: x\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{query}GET / HTTP/1.1\r\n\r\n",
            query.len()
        );
        for size in [24, 100, 8192, 100_000] {
            assert!(
                passed(raw.as_bytes(), size).as_ref() == Some(&expected),
                "{size}"
            );
        }
    }

    #[test]
    fn lines_that_are_no_headers_stay() {
        let query = "x".repeat(100_000);
        for line in ["no colon", ": no name", " folded: 1"] {
            let raw = format!("GET /api/v1/query?{query} HTTP/1.1\r\n{line}\r\nHost: x\r\n\r\n");
            let post = passed(raw.as_bytes(), 8192).unwrap();
            let kept = format!("POST /api/v1/query HTTP/1.1\r\n{line}\r\nHost: x\r\n");
            assert!(post.starts_with(&kept), "{post:.200}");
        }
    }

    #[test]
    fn others_pass_as_they_came() {
        let long = "x".repeat(100_000);
        for raw in [
            format!(
                "GET /api/v1/query?query={} HTTP/1.1\r\nHost: x\r\n\r\n",
                &long[..20_000]
            ),
            format!("GET /api/v1/query?query={long} HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"),
            format!("GET /api/v1/query?query={long} HTTP/1.1\r\nUpgrade: x\r\n\r\n"),
            format!("GET /api/v1/query?query={long} HTTP/1.1\r\na: {long}\r\n\r\n"),
            format!("GET /api/v1/query?query={}", long.repeat(20)),
            format!("GET /api/v1/query?query={long} HTTP/1.1\r\n"),
        ] {
            assert!(
                passed(raw.as_bytes(), 1000).as_ref() == Some(&raw),
                "{raw:.100}"
            );
        }
        for raw in [
            format!("GET /api/v1/label/a/values?match[]={long}"),
            format!("GET /healthz?{long}"),
            format!("POST /api/v1/query?{long}"),
            format!("GET /api/v1/query{long}"),
        ] {
            assert_eq!(
                LongTarget::begin(raw.as_bytes()).map(|_| ()),
                None,
                "{raw:.100}"
            );
        }
        // One whose path comes in pieces passes as soon as it is known.
        for raw in [
            "GET /prometheus/prom/api/v1/label/a/values?a=b HTTP/1.1\r\n",
            "GET /prometheus/prom/api/v1/labels HTTP/1.1\r\n",
        ] {
            let mut long = LongTarget::begin(&raw.as_bytes()[..24]).unwrap();
            let rest = &raw.as_bytes()[24..];
            let whole = TargetRead::Pass(raw.as_bytes().to_vec());
            assert_eq!(long.read(rest, None), whole, "{raw}");
        }
    }
}
