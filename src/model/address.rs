//! Addresses that clients must not make Heliostat connect to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Metadata services, which give credentials to any process on the machine: those of most clouds,
/// of ECS and EKS, of Azure, Oracle and Alibaba.
const METADATA: [IpAddr; 9] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
];

/// Returns what `ip` is, if it is nothing that a client may lead us to: not the public internet and
/// in none of `networks`. A metadata service has to be named by a network of its own.
pub fn refused(ip: IpAddr, networks: &[IpNet]) -> Option<&'static str> {
    let ip = canonical(ip);
    let within = |net: &&IpNet| net.contains(&ip);
    if METADATA.contains(&ip) {
        let named = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        let allowed = networks.iter().filter(within).any(named);
        return (!allowed).then_some("a metadata service");
    }
    let what = match ip {
        IpAddr::V4(ip) => special_v4(ip),
        IpAddr::V6(ip) => special_v6(ip),
    };
    what.filter(|_| !networks.iter().any(|net| within(&net)))
}

/// Returns the IPv4 address that an IPv6 address is another spelling of: mapped (RFC 4291),
/// translated (RFC 6052) or tunnelled (6to4, RFC 3056).
fn canonical(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else {
        return ip.to_canonical();
    };
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => ip,
    }
}

/// Follows the registry of special-purpose addresses (RFC 6890).
fn special_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let what = match ip.octets() {
        [0, ..] => "unspecified",
        [127, ..] => "loopback",
        [169, 254, ..] => "link-local",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [100, 64..=127, ..] => "private (carrier-grade NAT)",
        [224..=239, ..] => "multicast",
        [192, 0, 0, _] | [198, 18..=19, ..] | [240..=255, ..] => "reserved",
        _ => return None,
    };
    Some(what)
}

fn special_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let what = match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => "private",
        [0xff00..=0xffff, ..] => "multicast",
        // Global unicast is 2000::/3, but for Teredo, which tunnels to any IPv4 address.
        [0x2001, 0, ..] => "reserved",
        [0x2000..=0x3fff, ..] => return None,
        _ => "reserved",
    };
    Some(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_not_refused() {
        for (ip, what) in [
            ("127.0.0.1", "loopback"),
            ("127.8.8.8", "loopback"),
            ("0.0.0.0", "unspecified"),
            ("10.1.2.3", "private"),
            ("172.31.0.1", "private"),
            ("192.168.0.1", "private"),
            ("100.64.0.1", "private (carrier-grade NAT)"),
            ("169.254.1.1", "link-local"),
            ("169.254.169.254", "a metadata service"),
            ("168.63.129.16", "a metadata service"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::7f00:1", "reserved"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:169.254.169.254", "a metadata service"),
            ("64:ff9b::a00:1", "private"),
            ("2002:7f00:1::1", "loopback"),
            ("2001::1", "reserved"),
            ("fe80::1", "link-local"),
            ("fd00::1", "private"),
            ("fd00:ec2::254", "a metadata service"),
            ("ff02::1", "multicast"),
        ] {
            assert_eq!(refused(ip.parse().unwrap(), &[]), Some(what), "{ip}");
        }
        for ip in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111"] {
            assert_eq!(refused(ip.parse().unwrap(), &[]), None, "{ip}");
        }
    }

    #[test]
    fn networks_allow_all_but_metadata_services() {
        let refused = |ip: &str, net: &str| {
            let net = net.parse().unwrap();
            refused(ip.parse().unwrap(), &[net]).is_some()
        };
        assert!(!refused("10.1.2.3", "10.0.0.0/8"));
        assert!(!refused("::ffff:10.1.2.3", "10.0.0.0/8"));
        assert!(refused("192.168.1.1", "10.0.0.0/8"));
        assert!(refused("169.254.169.254", "0.0.0.0/0"));
        assert!(!refused("169.254.169.254", "169.254.169.254/32"));
    }
}
