//! The client's address, where there are proxies between it and Heliostat.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Returns the address of the client whose request came from `peer` with `headers`. Each proxy appends
/// the address that it received the request from, so the header is read from its end, as long as the
/// entries were written by trusted `proxies`; entries before that are ignored. IPv4 addresses mapped into
/// IPv6 are IPv4.
pub(super) fn client(proxies: &[IpNet], peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let trusted = |address: &IpAddr| proxies.iter().any(|n| n.contains(address));
    let mut client = peer.to_canonical();
    if !trusted(&client) {
        return client;
    }
    let lines = headers.get_all(FORWARDED_FOR).iter().rev();
    let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|b| *b == b','));
    while trusted(&client) {
        match entries.next().and_then(address) {
            Some(before) => client = before,
            None => break,
        }
    }
    client
}

/// Parses the address in `entry`, which may have a port.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let bare = || {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        Some(IpAddr::V6(inner.parse().ok()?))
    };
    let with_port = || Some(text.parse::<SocketAddr>().ok()?.ip());
    let address = text.parse().ok().or_else(with_port).or_else(bare)?;
    Some(IpAddr::to_canonical(&address))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(proxies: &[&str], peer: &str, lines: &[&'static str]) -> String {
        let proxies: Vec<IpNet> = proxies.iter().map(|p| p.parse().unwrap()).collect();
        let line = |l: &&'static str| (FORWARDED_FOR, HeaderValue::from_bytes(l.as_bytes()));
        let headers = lines.iter().map(line).map(|(n, v)| (n, v.unwrap()));
        client(&proxies, peer.parse().unwrap(), &headers.collect()).to_string()
    }

    #[test]
    fn only_what_trusted_proxies_wrote_is_believed() {
        let proxies = ["10.0.0.0/8", "fd00::/8"];
        for (peer, lines, expected) in [
            // Nobody is trusted, or nothing is said.
            ("192.0.2.1", &["203.0.113.9"][..], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            // One proxy, several, all of them trusted.
            ("10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["203.0.113.9, 10.0.0.2"], "203.0.113.9"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // What the client itself wrote.
            ("10.0.0.1", &["127.0.0.1, 203.0.113.9"], "203.0.113.9"),
            (
                "10.0.0.1",
                &["10.9.9.9,203.0.113.9,10.0.0.2"],
                "203.0.113.9",
            ),
            // Lines are one list.
            ("10.0.0.1", &["1.1.1.1", "2.2.2.2, 10.0.0.2"], "2.2.2.2"),
            ("10.0.0.1", &["1.1.1.1, 2.2.2.2", "10.0.0.2"], "2.2.2.2"),
            // Forms.
            ("10.0.0.1", &["203.0.113.9:4711"], "203.0.113.9"),
            ("10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("10.0.0.1", &[" [2001:db8::1]\t"], "2001:db8::1"),
            ("10.0.0.1", &["::ffff:203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &["9.9.9.9, ::ffff:10.0.0.2"], "9.9.9.9"),
            ("::ffff:10.0.0.1", &["203.0.113.9"], "203.0.113.9"),
            ("::ffff:192.0.2.1", &["203.0.113.9"], "192.0.2.1"),
            ("fd00::1", &["203.0.113.9"], "203.0.113.9"),
            // What cannot be read ends the walk.
            ("10.0.0.1", &["203.0.113.9, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9, x, 10.0.0.2"], "10.0.0.2"),
            ("10.0.0.1", &["203.0.113.9,"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9, 10.0.0.2]"], "10.0.0.1"),
            ("10.0.0.1", &["203.0.113.9, \u{e4}"], "10.0.0.1"),
            ("10.0.0.1", &["[203.0.113.9]"], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
        ] {
            assert_eq!(of(&proxies, peer, lines), expected, "{peer} {lines:?}");
        }
        assert_eq!(of(&[], "10.0.0.1", &["203.0.113.9"]), "10.0.0.1");
    }
}
