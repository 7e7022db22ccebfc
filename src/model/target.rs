//! Targets: the addresses of upstreams, and those that clients may name.

use std::fmt;
use std::net::IpAddr;

use url::{Host, ParseError, Url};

/// The address of a target: scheme, host, port and path; no user, query or fragment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TargetUrl(Url);

/// The longest host name there can be (RFC 1035), and the longest URL of a target, in bytes.
const LONGEST_HOST: usize = 253;
const LONGEST_URL: usize = 2048;

impl TargetUrl {
    /// Checks `text`. The error says what is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST_URL {
            return Err(format!("is longer than {LONGEST_URL} bytes"));
        }
        let mut url = Url::parse(text).map_err(|e| match e {
            ParseError::IdnaError => {
                "the host name must be ASCII; write international names as xn--…".to_owned()
            }
            e => format!("not a URL ({e})"),
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("must start with http:// or https://".into());
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err("names no host".into());
        }
        if url.host_str().is_some_and(|host| host.len() > LONGEST_HOST) {
            return Err(format!("the host is longer than {LONGEST_HOST} bytes"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not contain a user or a password; use `headers`".into());
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("must not have a query or a fragment".into());
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Self(url))
    }

    /// Returns the URL of `path_and_query` below this one; `path_and_query` starts with `/`.
    pub fn join(&self, path_and_query: &str) -> String {
        format!("{}{path_and_query}", self.as_str())
    }

    /// Host name or address, lower case; an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }

    /// Returns its host where that is an address and not a name.
    pub fn address(&self) -> Option<IpAddr> {
        match self.0.host()? {
            Host::Ipv4(ip) => Some(ip.into()),
            Host::Ipv6(ip) => Some(ip.into()),
            Host::Domain(_) => None,
        }
    }

    /// Returns its port, or the one its scheme implies.
    pub fn port(&self) -> u16 {
        self.0.port_or_known_default().unwrap_or(80)
    }

    /// Returns the URL as text, without a slash at its end.
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }
}

/// A pattern of targets: `host:port`, either of which may contain `*` for any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    host: String,
    port: String,
}

impl Pattern {
    /// Parses `host:port`, or returns `None` if `text` is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':').filter(|(host, port)| {
            let signs = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit() || b == b'*');
            // A port that cannot exist is a mistake.
            let port_ok = signs && (port.contains('*') || port.parse::<u16>().is_ok_and(|p| p > 0));
            let bracketed = host.starts_with('[') && host.ends_with(']');
            let host_ok = !host.is_empty()
                && !host.contains(['/', '@', '?', '#', ' '])
                && (bracketed || !host.contains(':'));
            port_ok && host_ok
        })?;
        Some(Self {
            host: host.to_ascii_lowercase(),
            port: port.to_owned(),
        })
    }

    /// Returns whether `url` matches the pattern.
    pub fn allows(&self, url: &TargetUrl) -> bool {
        let host = url.host().to_ascii_lowercase();
        glob(self.host.as_bytes(), host.as_bytes())
            && glob(self.port.as_bytes(), url.port().to_string().as_bytes())
    }

    /// Returns whether the pattern matches `url` and names its host literally.
    pub fn names(&self, url: &TargetUrl) -> bool {
        !self.host.contains('*') && self.allows(url)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Returns whether `text` matches `pattern`, in which `*` stands for any bytes. Each `*` takes as little as it
/// can: the time grows with the product of their lengths at most, and a host's length is bounded.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and what it has taken up to.
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(expected) if expected == byte => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, taken)) = star else {
                    return false;
                };
                star = Some((at, taken + 1));
                p = at + 1;
                t = taken + 1;
            }
        }
    }
    pattern.iter().skip(p).all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_ascii() {
        let parse = |host: &str| TargetUrl::parse(&format!("http://{host}:9090/prom/"));
        for host in [
            "b\u{fc}cher.example",
            "prom\u{3002}example",
            "\u{ff11}\u{ff12}7.0.0.1",
            "%e2%91%a0.example",
        ] {
            let error = parse(host).unwrap_err();
            assert!(error.contains("xn--"), "{host}: {error}");
        }
        let url = parse("XN--BCHER-KVA.example").unwrap();
        assert_eq!(url.as_str(), "http://xn--bcher-kva.example:9090/prom");
    }

    #[test]
    fn patterns_match_hosts_and_ports() {
        let allows = |pattern: &str, url: &str| {
            let pattern = Pattern::parse(pattern).unwrap();
            pattern.allows(&TargetUrl::parse(url).unwrap())
        };
        assert!(allows("prom:9090", "http://PROM:9090/x"));
        assert!(allows("*.mon:909*", "http://a.mon:9091"));
        assert!(allows("prom:443", "https://prom"));
        assert!(!allows("prom:9090", "http://prom:9091"));
        assert!(!allows("prom:9090", "http://prom.evil:9090"));
        assert!(!allows("*.mon:9090", "http://mon:9090"));
        let url = TargetUrl::parse("http://10.0.0.1:9090").unwrap();
        assert!(Pattern::parse("10.0.0.1:*").unwrap().names(&url));
        assert!(!Pattern::parse("10.0.0.*:9090").unwrap().names(&url));
        assert!(allows("[::1]:9090", "http://[::1]:9090"));
        assert!(allows("*.*.svc:9090", "http://a.b.svc:9090"));
        assert!(allows("a*b*c:*", "http://axbxbc:1"));
        assert!(!allows("a*b*c:*", "http://axbxb:1"));
        for bad in [
            "prom",
            "prom:",
            ":1",
            "http://prom:1",
            "a@b:1",
            "prom:0",
            "prom:65536",
            "::1:9090",
        ] {
            assert!(Pattern::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn long_hosts_are_refused_and_matching_is_quick() {
        let host = format!("{}svd", "a.".repeat(120));
        let url = TargetUrl::parse(&format!("http://{host}:9090")).unwrap();
        let pattern = Pattern::parse(&format!("{}svc:9090", "*.".repeat(60))).unwrap();
        assert!(!pattern.allows(&url));
        for long in ["a".repeat(254), "a".repeat(300_000)] {
            let error = TargetUrl::parse(&format!("http://{long}:1")).unwrap_err();
            assert!(error.contains("longer than"), "{error}");
        }
    }
}
