//! Protection against requests that other pages make a browser send.
//!
//! A browser adds passwords that it knows to requests that any page makes. Other pages can neither
//! set headers of their own nor lie about where they are from (Fetch, section 3.1), so both are
//! looked at. Clients that are no browsers send none of this and need nothing.

use http::header::{HOST, HeaderName, ORIGIN, USER_AGENT};
use http::{HeaderMap, HeaderValue, Uri};

use crate::model::{Error, Kind};

/// The header that the page sends with every change.
const ACTION: HeaderName = HeaderName::from_static("x-heliostat-action");
/// The header in which a browser says where a request comes from (W3C Fetch Metadata).
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses a request of a browser that does not come from this server's own page. A request that
/// `changes` something also needs the header `X-Heliostat-Action`, with any value.
pub(super) fn check(uri: &Uri, headers: &HeaderMap, changes: bool) -> Result<(), Error> {
    let text = |name| headers.get(name).map(HeaderValue::to_str);
    let site = text(FETCH_SITE).map(Result::unwrap_or_default);
    let origin = text(ORIGIN).map(Result::unwrap_or_default);
    let refused = |message: &str| Err(Error::new(Kind::ClientNotAllowed, message));
    let own = match (site, origin) {
        // Typed, or from a bookmark.
        (Some("same-origin" | "none"), _) => true,
        (Some(_), _) => false,
        (None, Some(origin)) => {
            let host = uri.authority().map(|a| Ok(a.as_str())).or(text(HOST));
            let host = host.map(Result::unwrap_or_default).unwrap_or_default();
            let from = origin.split_once("://").map(|(_, authority)| authority);
            from.is_some_and(|from| !from.is_empty() && from.eq_ignore_ascii_case(host))
        }
        (None, None) => true,
    };
    if !own {
        return refused(
            "another page's requests are refused here; behind a proxy that changes Host, pass it on (nginx: proxy_set_header Host $http_host)",
        );
    }
    let agent = text(USER_AGENT).map(Result::unwrap_or_default);
    let browser = site.is_some()
        || origin.is_some()
        || agent.is_some_and(|agent| agent.starts_with("Mozilla/"));
    if changes && browser && !headers.contains_key(ACTION) {
        return refused("a browser's change needs the header X-Heliostat-Action");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(changes: bool, headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        check(&Uri::from_static("/x"), &headers.collect(), changes).is_ok()
    }

    #[test]
    fn a_browser_acts_for_this_servers_page_only() {
        let host = ("host", "h:7007");
        let action = ("x-heliostat-action", "reload");
        let own = ("origin", "http://h:7007");
        assert!(checked(true, &[host]), "curl");
        assert!(checked(true, &[host, ("user-agent", "curl/8.5")]));
        assert!(checked(true, &[host, own, action]));
        assert!(checked(false, &[host, own]));
        assert!(checked(false, &[host, ("origin", "https://H:7007")]));
        assert!(!checked(true, &[host, own]), "without the header");
        assert!(!checked(true, &[host, ("user-agent", "Mozilla/5.0 (X11)")]));
        for evil in ["http://evil", "http://h", "null", "", "http://", "h:7007"] {
            assert!(!checked(false, &[host, ("origin", evil)]), "{evil}");
            assert!(!checked(true, &[host, ("origin", evil), action]), "{evil}");
        }
        assert!(!checked(false, &[("origin", "http://")]), "no host at all");
        // Behind a proxy that changes Host the browser's own word counts.
        let site = |site| ("sec-fetch-site", site);
        assert!(checked(
            true,
            &[
                host,
                ("origin", "https://public"),
                site("same-origin"),
                action
            ]
        ));
        assert!(checked(false, &[host, site("none")]));
        for other in ["cross-site", "same-site"] {
            assert!(!checked(false, &[host, site(other)]), "{other}");
            assert!(!checked(true, &[host, own, site(other), action]), "{other}");
        }
    }

    #[test]
    fn http2_has_its_host_in_the_target() {
        let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static("https://h"))]);
        let uri = Uri::from_static("https://h/admin/v1/cache");
        assert!(check(&uri, &headers, false).is_ok());
        assert!(check(&Uri::from_static("https://i/"), &headers, false).is_err());
    }
}
