//! Content codings of upstreams' answers.

use std::io::Read;

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH};

use crate::model::{Error, Kind};

/// Bodies of up to this many bytes are decoded on the thread that received them.
const INLINE: usize = 32 << 10;

/// Returns `body`, of at most `most` bytes, without the coding that `headers` name, if that is
/// gzip: its name may be in any case, and `x-gzip` is an alias (RFC 9110, 8.4.1). Other codings
/// belong to the answer.
pub(super) async fn decoded(
    headers: &mut HeaderMap,
    body: Bytes,
    most: usize,
) -> Result<Bytes, Error> {
    let coding = headers.get(CONTENT_ENCODING).and_then(|c| c.to_str().ok());
    let coding = coding.unwrap_or_default().trim();
    if !["gzip", "x-gzip"]
        .iter()
        .any(|gzip| coding.eq_ignore_ascii_case(gzip))
        || body.is_empty()
    {
        return Ok(body);
    }
    headers.remove(CONTENT_ENCODING);
    headers.remove(CONTENT_LENGTH);
    if body.len() <= INLINE {
        return unzipped(&body, most);
    }
    let unzipped = tokio::task::spawn_blocking(move || unzipped(&body, most)).await;
    unzipped.unwrap_or_else(|e| Err(Error::new(Kind::Internal, format!("decoding failed: {e}"))))
}

fn unzipped(body: &[u8], most: usize) -> Result<Bytes, Error> {
    let mut decoded = Vec::new();
    let bound = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    let read = MultiGzDecoder::new(body)
        .take(bound)
        .read_to_end(&mut decoded);
    read.map_err(|e| {
        let message = format!("the upstream broke off: its answer is not valid gzip: {e}");
        Error::new(Kind::UpstreamUnreachable, message)
    })?;
    if decoded.len() > most {
        return Err(too_large(most));
    }
    Ok(Bytes::from(decoded))
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

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    async fn read(coding: &'static str, body: Vec<u8>) -> Result<Bytes, Kind> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        let decoded = decoded(&mut headers, body.into(), 100_000).await;
        assert_eq!(headers.is_empty(), coding != "snappy");
        decoded.map_err(|e| e.kind)
    }

    #[tokio::test]
    async fn gzip_is_read_by_all_its_names_and_in_all_its_members() {
        for coding in ["gzip", "GZIP", "x-gzip", " X-GZip"] {
            let body = [gzip(b"one "), gzip(b"two")].concat();
            assert_eq!(read(coding, body).await.unwrap(), "one two", "{coding}");
        }
        assert_eq!(
            read("snappy", b"as it is".to_vec()).await.unwrap(),
            "as it is"
        );
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
