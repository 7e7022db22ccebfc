//! Content codings of upstreams' answers.

use std::io::{BufReader, Read};
use std::sync::Arc;

use bytes::Bytes;
use bytes::buf::Reader;
use flate2::bufread::MultiGzDecoder;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};

use super::answer_memory::AnswerShare;
use crate::model::{Error, Kind};

/// Bodies of up to this many bytes are decoded on the thread that received them, up to as many bytes at
/// once as follow.
const INLINE: usize = 32 << 10;
const STEP_INLINE: usize = 128 << 10;

/// The bytes that are decoded at once on another thread.
const STEP: usize = 4 << 20;

/// Returns `body` without the coding that `headers` name, if that is gzip: its name may be in any
/// case, `x-gzip` is an alias, and `identity` is none (RFC 9110, 8.4.1). Other codings belong to the answer.
/// The result holds `share`, which grows with it.
pub(super) async fn decoded(
    headers: &mut HeaderMap,
    body: Vec<u8>,
    share: Arc<AnswerShare>,
) -> Result<Bytes, Error> {
    if !is_gzip(headers) || body.is_empty() {
        return share.whole(body).await;
    }
    headers.remove(CONTENT_ENCODING);
    headers.remove(CONTENT_LENGTH);
    share.decodes();
    let encoded = body.len();
    let mut decoding = Decoding::new(body, share.max());
    let mut step = match encoded <= INLINE {
        true => STEP_INLINE,
        false => STEP,
    };
    while !decoding.ended {
        share.in_time(decoding.decoded.len())?;
        // One byte more than it may have shows that it is too large.
        let more = step.min(share.max().saturating_add(1) - decoding.decoded.len());
        share.reserve(&mut decoding.decoded, more, encoded).await?;
        decoding = match step {
            STEP_INLINE => decoding.step(step)?,
            _ => {
                let decoded = crate::work::elsewhere(move || decoding.step(step)).await;
                decoded
                    .map_err(|e| Error::new(Kind::Internal, format!("decoding failed: {e}")))??
            }
        };
        step = STEP;
    }
    share.whole(decoding.decoded).await
}

/// Returns whether the one coding that `headers` name is gzip.
fn is_gzip(headers: &HeaderMap) -> bool {
    let named = headers.get(CONTENT_ENCODING).and_then(|c| c.to_str().ok());
    let codings = named.unwrap_or_default().split(',').map(str::trim);
    let is = |coding: &str, names: &[&str]| names.iter().any(|n| coding.eq_ignore_ascii_case(n));
    let mut codings = codings.filter(|coding| !is(coding, &["", "identity"]));
    let first = codings
        .next()
        .is_some_and(|coding| is(coding, &["gzip", "x-gzip"]));
    first && codings.next().is_none()
}

/// A body on the way to its plain form.
struct Decoding {
    decoder: MultiGzDecoder<BufReader<Reader<Bytes>>>,
    decoded: Vec<u8>,
    max: usize,
    ended: bool,
}

impl Decoding {
    fn new(body: Vec<u8>, max: usize) -> Self {
        let reader = bytes::Buf::reader(Bytes::from(body));
        Self {
            decoder: MultiGzDecoder::new(BufReader::new(reader)),
            decoded: Vec::new(),
            max,
            ended: false,
        }
    }

    /// Decodes the next `step` bytes.
    fn step(mut self, step: usize) -> Result<Self, Error> {
        let step = step.min(self.max.saturating_add(1) - self.decoded.len());
        let bound = u64::try_from(step).unwrap_or(u64::MAX);
        let mut some = (&mut self.decoder).take(bound);
        let read = some.read_to_end(&mut self.decoded).map_err(|e| {
            let message = format!("the upstream broke off: its answer is not valid gzip: {e}");
            Error::new(Kind::UpstreamUnreachable, message)
        })?;
        if self.decoded.len() > self.max {
            return Err(too_large(self.max));
        }
        self.ended = read < step;
        Ok(self)
    }
}

/// Returns the error for an answer of more than `most` bytes.
pub(super) fn too_large(most: usize) -> Error {
    let message = format!("the upstream's answer is larger than {most} bytes (max_response)");
    Error::new(Kind::AnswerTooLarge, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use http::HeaderValue;
    use tokio::time::Instant;

    use crate::upstream::answer_memory::AnswerMemory;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    async fn read(coding: &'static str, body: Vec<u8>) -> Result<Bytes, Kind> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        let share = AnswerMemory::new(1 << 20).share(100_000, Instant::now());
        let decoded = decoded(&mut headers, body, share).await;
        let stays = ["snappy", "identity", "gzip, gzip", ""].contains(&coding);
        assert_eq!(headers.is_empty(), !stays);
        decoded.map_err(|e| e.kind)
    }

    #[tokio::test]
    async fn gzip_is_read_by_all_its_names_and_in_all_its_members() {
        for coding in [
            "gzip",
            "GZIP",
            "x-gzip",
            " X-GZip",
            "identity, gzip",
            ",gzip,",
        ] {
            let body = [gzip(b"one "), gzip(b"two")].concat();
            assert_eq!(read(coding, body).await.unwrap(), "one two", "{coding}");
        }
        for coding in ["snappy", "identity", "gzip, gzip", ""] {
            let body = b"as it is".to_vec();
            assert_eq!(read(coding, body).await.unwrap(), "as it is", "{coding}");
        }
        let large = read("gzip", gzip(&vec![0; 100_001])).await;
        assert_eq!(large, Err(Kind::AnswerTooLarge));
        assert_eq!(
            read("gzip", gzip(&vec![0; 100_000])).await.unwrap().len(),
            100_000
        );
        assert_eq!(
            read("gzip", b"{}".to_vec()).await,
            Err(Kind::UpstreamUnreachable)
        );
        let mut cut = gzip(b"a text that is cut");
        cut.truncate(20);
        assert_eq!(read("gzip", cut).await, Err(Kind::UpstreamUnreachable));
    }
}
