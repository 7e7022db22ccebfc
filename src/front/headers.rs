//! Headers that a request is read by: `Cache-Control`, `Content-Type`, `Accept-Encoding`.

use std::net::IpAddr;
use std::time::Duration;

use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_TYPE};

use crate::model::{Compression, Error, Kind};
use crate::wire::encoding::Encoding;

/// The oldest data that a client accepts: `no-cache` or `max-age` of `Cache-Control` (RFC 9111).
pub(super) fn max_age(headers: &HeaderMap) -> Option<Duration> {
    headers.get(CACHE_CONTROL)?;
    let directives = headers.get_all(CACHE_CONTROL).iter();
    let directives = directives
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','));
    let ages = directives.filter_map(|directive| {
        let directive = directive.trim().to_ascii_lowercase();
        match directive.strip_prefix("max-age=") {
            Some(seconds) => seconds
                .trim_matches('"')
                .parse()
                .ok()
                .map(Duration::from_secs),
            None => (directive == "no-cache").then_some(Duration::ZERO),
        }
    });
    ages.min()
}

/// Refuses a body that its `Content-Type` declares as something other than JSON.
pub(super) fn require_json(headers: &HeaderMap) -> Result<(), Error> {
    let Some(declared) = headers.get(CONTENT_TYPE) else {
        return Ok(());
    };
    if declared.as_bytes() == b"application/json" {
        return Ok(());
    }
    let declared = declared.to_str().unwrap_or_default();
    let essence = declared.split(';').next().unwrap_or_default().trim();
    let (kind, form) = essence.split_once('/').unwrap_or_default();
    let suffix = form.rsplit_once('+').map_or(form, |(_, suffix)| suffix);
    if kind.eq_ignore_ascii_case("application") && suffix.eq_ignore_ascii_case("json") {
        return Ok(());
    }
    let message = format!("expected Content-Type application/json, found {declared:.100?}");
    Err(Error::new(Kind::UnsupportedMediaType, message))
}

/// Returns the encoding for a client at `peer` that sent `headers` (RFC 9110, section 12.5.3). Of
/// two with the same weight, gzip: every client reads that, and some read only the first frame of
/// zstd.
pub(super) fn accepted_encoding(
    setting: Compression,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
) -> Encoding {
    let near = peer.is_none_or(|peer| peer.to_canonical().is_loopback());
    match setting {
        Compression::Never => return Encoding::Identity,
        // No link within a machine is as slow as unpacking.
        Compression::Auto if near => return Encoding::Identity,
        Compression::Auto | Compression::Always => {}
    }
    let accepted = headers.get_all(ACCEPT_ENCODING).iter();
    let accepted = accepted
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','));
    let (mut gzip, mut zstd, mut any) = (None, None, 0.0);
    for item in accepted {
        let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
        let name = name.trim();
        let weight = weight(parameters);
        if name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip") {
            gzip = Some(weight);
        } else if name.eq_ignore_ascii_case("zstd") {
            zstd = Some(weight);
        } else if name == "*" {
            any = weight;
        }
    }
    let (gzip, zstd) = (gzip.unwrap_or(any), zstd.unwrap_or(any));
    if gzip <= 0.0 && zstd <= 0.0 {
        Encoding::Identity
    } else if zstd > gzip {
        Encoding::Zstd
    } else {
        Encoding::Gzip
    }
}

/// The weight that `parameters` give, such as `q=0.5`; 1 without.
fn weight(parameters: &str) -> f32 {
    let mut parameters = parameters
        .split(';')
        .filter_map(|p| p.trim().split_once('='));
    let q = parameters.find(|(name, _)| name.trim().eq_ignore_ascii_case("q"));
    let known = |q: &str| q.trim().parse().ok().filter(|q: &f32| q.is_finite());
    q.map_or(1.0, |(_, q)| known(q).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));

    fn choice(setting: Compression, accepted: &'static str, peer: IpAddr) -> Encoding {
        let header = (ACCEPT_ENCODING, HeaderValue::from_static(accepted));
        accepted_encoding(setting, &HeaderMap::from_iter([header]), Some(peer))
    }

    #[test]
    fn the_client_says_what_it_reads() {
        let auto = |accepted| choice(Compression::Auto, accepted, FAR);
        assert_eq!(auto("gzip, deflate, br, zstd"), Encoding::Gzip);
        assert_eq!(auto("GZIP;q=0.5, zstd"), Encoding::Zstd);
        assert_eq!(auto("zstd"), Encoding::Zstd);
        assert_eq!(auto("x-gzip"), Encoding::Gzip);
        assert_eq!(auto("*;q=0.1"), Encoding::Gzip);
        assert_eq!(auto("gzip;q=0, *"), Encoding::Zstd);
        assert_eq!(auto("gzip; q=0, zstd;q=0.0"), Encoding::Identity);
        assert_eq!(auto("br, identity"), Encoding::Identity);
        assert_eq!(auto("gzip;q=nonsense"), Encoding::Identity);
        assert_eq!(auto("gzip;q=nan"), Encoding::Identity);
        assert_eq!(
            accepted_encoding(Compression::Auto, &HeaderMap::new(), Some(FAR)),
            Encoding::Identity
        );
    }

    #[test]
    fn clients_on_this_machine_are_answered_plain_unless_always_is_said() {
        let mapped = IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped());
        for near in [
            Ipv4Addr::LOCALHOST.into(),
            Ipv6Addr::LOCALHOST.into(),
            mapped,
        ] {
            assert_eq!(choice(Compression::Auto, "gzip", near), Encoding::Identity);
            assert_eq!(choice(Compression::Always, "gzip", near), Encoding::Gzip);
        }
        assert_eq!(choice(Compression::Never, "gzip", FAR), Encoding::Identity);
    }

    #[test]
    fn clients_may_say_how_old_data_may_be() {
        let said = |values: &[&'static str]| {
            let value = |v: &&'static str| (CACHE_CONTROL, HeaderValue::from_static(v));
            max_age(&values.iter().map(value).collect())
        };
        assert_eq!(said(&[]), None);
        assert_eq!(said(&["no-store, max-age=nonsense"]), None);
        assert_eq!(said(&["Max-Age=5"]), Some(Duration::from_secs(5)));
        assert_eq!(said(&["max-age=5", "No-Cache"]), Some(Duration::ZERO));
    }
}
