//! The files of the page at `/`. They are embedded, refer to nothing outside, and are the same for
//! everybody: secret data comes from the APIs, by their rules.

use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderName, IF_NONE_MATCH,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use ring::digest::{SHA256, digest};
use smallvec::smallvec;

use super::body::Body;
use super::path::allow;
use super::respond::add_encoding;
use crate::model::Error;
use crate::wire::encoding::{BodyParts, Encoding, Text};

/// A file of the page.
struct AssetFile {
    path: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files, by normalized path; the page itself comes first.
const FILES: [AssetFile; 13] = [
    AssetFile {
        path: "",
        kind: HTML,
        bytes: include_bytes!("page/index.html"),
    },
    AssetFile {
        path: "/page/style.css",
        kind: "text/css; charset=utf-8",
        bytes: include_bytes!("page/style.css"),
    },
    AssetFile {
        path: "/page/icon.svg",
        kind: "image/svg+xml",
        bytes: include_bytes!("page/icon.svg"),
    },
    script("/page/app.js", include_bytes!("page/app.js")),
    script("/page/api.js", include_bytes!("page/api.js")),
    script("/page/util.js", include_bytes!("page/util.js")),
    script("/page/chart.js", include_bytes!("page/chart.js")),
    script("/page/complete.js", include_bytes!("page/complete.js")),
    script("/page/coverage.js", include_bytes!("page/coverage.js")),
    script("/page/overview.js", include_bytes!("page/overview.js")),
    script("/page/explore.js", include_bytes!("page/explore.js")),
    script("/page/cache.js", include_bytes!("page/cache.js")),
    script(
        "/page/configuration.js",
        include_bytes!("page/configuration.js"),
    ),
];

const fn script(path: &'static str, bytes: &'static [u8]) -> AssetFile {
    AssetFile {
        path,
        kind: SCRIPT,
        bytes,
    }
}

/// Only files and answers of this server may be loaded, and no page may show it in a frame.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Headers of every file. A browser checks each time whether its copy is current.
const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
];

/// A file of the page, by its place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asset(usize);

/// The parts of a file that are computed once: its validator and its compressed bytes.
struct Prepared {
    tag: HeaderValue,
    gzip: Option<BodyParts>,
    zstd: Option<BodyParts>,
}

/// Made with the first request for the page; takes some milliseconds.
static PREPARED: LazyLock<Vec<Prepared>> =
    LazyLock::new(|| FILES.iter().map(Prepared::new).collect());

impl Prepared {
    fn new(file: &AssetFile) -> Self {
        let packed = |encoding: Encoding| {
            let packed = encoding.pack(file.bytes)?;
            Some(encoding.join([Text::Packed(packed)]))
        };
        Self {
            tag: tag(file.bytes),
            gzip: packed(Encoding::Gzip),
            zstd: packed(Encoding::Zstd),
        }
    }
}

impl Asset {
    /// The page itself.
    pub(super) const PAGE: Self = Self(0);

    /// Returns all of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..FILES.len()).map(Self)
    }

    /// Returns the file at `path`, normalized, if there is one.
    pub(super) fn of(path: &str) -> Option<Self> {
        FILES.iter().position(|file| file.path == path).map(Self)
    }

    /// Returns its name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PAGE => "home",
            _ => "page",
        }
    }

    /// Returns the page itself, with the names of upstreams for clients without access to the admin
    /// API.
    pub(super) fn page<'a>(
        method: &Method,
        headers: &HeaderMap,
        upstreams: impl Iterator<Item = &'a str>,
    ) -> Result<Response<Body>, Error> {
        let mut response = Self::PAGE.answer(method, &HeaderMap::new(), Encoding::Identity)?;
        // Names are letters, digits and a few signs: nothing to escape.
        let names = upstreams.collect::<Vec<_>>().join(" ");
        let page = FILES
            .first()
            .map(|file| String::from_utf8_lossy(file.bytes));
        let page = page.unwrap_or_default();
        let named = format!("name=\"upstreams\" content=\"{names}\"");
        let page = page.replacen("name=\"upstreams\" content=\"\"", &named, 1);
        let tag = tag(page.as_bytes());
        if known(headers, &tag) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            *response.body_mut() = Body::default();
        } else {
            *response.body_mut() = Body::from(page);
        }
        response.headers_mut().insert(ETAG, tag);
        Ok(response)
    }

    /// Answers a request for it by a client that takes `encoding`.
    pub(super) fn answer(
        self,
        method: &Method,
        headers: &HeaderMap,
        encoding: Encoding,
    ) -> Result<Response<Body>, Error> {
        allow(method, &[Method::GET, Method::HEAD])?;
        let found = FILES.get(self.0).zip(PREPARED.get(self.0));
        let Some((file, prepared)) = found else {
            return Ok(Response::default());
        };
        let mut response = Response::new(Body::default());
        if known(headers, &prepared.tag) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            let packed = match encoding {
                Encoding::Identity => None,
                Encoding::Gzip => prepared.gzip.clone(),
                Encoding::Zstd => prepared.zstd.clone(),
            };
            let (parts, encoding) = match packed {
                Some(parts) => (parts, encoding),
                None => (
                    smallvec![Bytes::from_static(file.bytes)],
                    Encoding::Identity,
                ),
            };
            response = Response::new(Body::shared(parts));
            add_encoding(response.headers_mut(), encoding);
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.kind));
        headers.insert(ETAG, prepared.tag.clone());
        headers.extend(HEADERS);
        Ok(response)
    }
}

/// Returns the validator of `bytes`. Weak: it is the same whatever the encoding.
fn tag(bytes: &[u8]) -> HeaderValue {
    let hash = digest(&SHA256, bytes);
    let short = hash.as_ref().iter().take(8);
    let tag: String = short.map(|byte| format!("{byte:02x}")).collect();
    let tag = HeaderValue::from_str(&format!("W/\"{tag}\""));
    tag.unwrap_or(HeaderValue::from_static("W/\"\""))
}

/// Returns whether a client that sent `headers` has the version that `tag` stands for (RFC 9110,
/// section 13.1.2).
pub(super) fn known(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let opaque = |text: &str| text.trim().trim_start_matches("W/").to_owned();
    let tag = tag.to_str().map(opaque).unwrap_or_default();
    let known = headers.get_all(IF_NONE_MATCH).iter();
    let known = known.filter_map(|v| v.to_str().ok());
    known
        .flat_map(|v| v.split(','))
        .any(|v| v.trim() == "*" || opaque(v) == tag)
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_ENCODING;

    use super::*;

    #[test]
    fn the_page_is_small_and_refers_to_nothing_outside() {
        let bytes: usize = FILES.iter().map(|file| file.bytes.len()).sum();
        assert!(bytes <= 100_000, "{bytes} bytes");
        for file in &FILES {
            let text = std::str::from_utf8(file.bytes).unwrap();
            // The name of a namespace is no address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for foreign in [
                "http://",
                "https://",
                "//cdn",
                "innerHTML",
                "eval(",
                "insertAdjacent",
            ] {
                assert!(!text.contains(foreign), "{} has {foreign}", file.path);
            }
        }
        let page = std::str::from_utf8(FILES[0].bytes).unwrap();
        assert!(!page.contains("style=") && !page.contains("onclick"));
        // Links are relative, so that it works below any path.
        for path in page.split("href=\"").chain(page.split("src=\"")).skip(1) {
            assert!(!path.starts_with('/'), "{path:.40}");
        }
    }

    #[test]
    fn every_import_is_a_file() {
        for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
            let text = std::str::from_utf8(file.bytes).unwrap();
            for part in text.split(" from \"./").skip(1) {
                let name = part.split('"').next().unwrap();
                assert!(Asset::of(&format!("/page/{name}")).is_some(), "{name}");
            }
        }
        let page = std::str::from_utf8(FILES[0].bytes).unwrap();
        for part in page.split("\"page/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(Asset::of(&format!("/page/{name}")).is_some(), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_known_is_not_sent_again_and_others_are_packed() {
        let app = Asset::of("/page/app.js").unwrap();
        let get = |headers: &HeaderMap, encoding| app.answer(&Method::GET, headers, encoding);
        let first = get(&HeaderMap::new(), Encoding::Gzip).unwrap();
        assert_eq!(first.headers()[CONTENT_ENCODING], "gzip");
        assert_eq!(first.headers()[CONTENT_SECURITY_POLICY], POLICY);
        let tag = first.headers()[ETAG].clone();
        let packed = first.into_body().into_bytes();
        let plain = get(&HeaderMap::new(), Encoding::Identity).unwrap();
        assert!(plain.into_body().into_bytes().len() > packed.len());
        for (said, status) in [
            (tag.to_str().unwrap().to_owned(), 304),
            (
                format!("\"x\", {}", tag.to_str().unwrap().trim_start_matches("W/")),
                304,
            ),
            ("\"x\"".to_owned(), 200),
        ] {
            let headers = HeaderMap::from_iter([(IF_NONE_MATCH, said.parse().unwrap())]);
            let again = get(&headers, Encoding::Identity).unwrap();
            assert_eq!(again.status(), status, "{said}");
            assert_eq!(again.headers()[ETAG], tag);
        }
        assert!(
            app.answer(&Method::POST, &HeaderMap::new(), Encoding::Identity)
                .is_err()
        );
    }
}
