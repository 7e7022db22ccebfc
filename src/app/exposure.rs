//! Warnings about a service that is reachable by others without access rules.

use std::net::SocketAddr;

use crate::config::{self, Config, UpstreamKind};

/// Returns warnings about listening on `address` with `config`, each with what to set.
pub fn warnings(config: &Config, address: SocketAddr) -> Vec<String> {
    let (access, tls) = (&config.access, config.server.tls.as_ref());
    let certified = tls.is_some_and(|tls| tls.client_ca.is_some());
    let wide = !address.ip().to_canonical().is_loopback();
    let mut warnings: Vec<String> = made_up(config, wide).into_iter().collect();
    if !wide {
        return warnings;
    }
    // The admin API is closed unless credentials are set.
    let faces = [
        ("mirror", &access.mirror),
        ("prometheus", &access.prometheus),
        ("metrics", &access.metrics),
    ];
    let open: Vec<&str> = faces
        .iter()
        .filter(|(_, api)| api.is_open())
        .map(|(name, _)| *name)
        .collect();
    if !open.is_empty() && !certified {
        let sections: Vec<String> = open.iter().map(|n| format!("[access.{n}]")).collect();
        warnings.push(format!(
            "every client that can reach {address} has access to these APIs: {}; set networks, tokens or users in {}, or server.tls.client_ca (docs/security.md)",
            open.join(", "),
            sections.join(", "),
        ));
    }
    let mut all = faces.iter().map(|(_, api)| *api).chain([&access.admin]);
    if all.any(config::ApiAccess::has_credentials)
        && tls.is_none()
        && access.trusted_proxies.is_empty()
    {
        warnings.push(format!(
            "tokens and passwords are sent to {address} in clear text: set server.tls, or access.trusted_proxies if a proxy in front terminates TLS (docs/security.md)"
        ));
    }
    warnings
}

/// Returns a warning if requests that name no upstream are answered with the numbers of the
/// demonstration though there is a real upstream, or though others can reach it (`wide`).
fn made_up(config: &Config, wide: bool) -> Option<String> {
    let demo = |u: &&config::Upstream| matches!(u.kind, UpstreamKind::Demo { .. });
    let default = config
        .upstreams
        .iter()
        .find(|u| u.name == config.default_upstream);
    let default = default.filter(demo)?;
    let real = config.upstreams.iter().find(|u| !demo(u));
    let name = &default.name;
    let what = format!(
        "requests that name no upstream are answered by the demonstration {name:?}, whose numbers are invented"
    );
    match real {
        Some(real) => Some(format!(
            "{what}: set default = true in the section of {:?}, or remove that of {name:?}",
            real.name
        )),
        None if wide => Some(format!("{what}: configure an [[upstream]] of another kind")),
        None => None,
    }
}

/// Returns whether `config` only demonstrates: no store, no client and no rule of its own. The
/// admin API is then open to this machine, so that the page at `/` has something to show.
pub(super) fn demonstrates(config: &Config) -> bool {
    let demo = |u: &config::Upstream| matches!(u.kind, UpstreamKind::Demo { .. });
    config.upstreams.iter().all(demo)
        && config.targets.is_empty()
        && config.access == config::AccessSettings::default()
        && config.server.listen.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn listening_wider_than_this_machine_without_protection_says_what_to_set() {
        let hash = "0".repeat(64);
        let said = |toml: &str, address: &str| {
            let config = config::parse(toml, "c.toml", &BTreeMap::new()).unwrap();
            warnings(&config, address.parse().unwrap()).join("\n")
        };
        for near in ["127.0.0.1:7", "[::1]:7", "[::ffff:127.0.0.1]:7"] {
            assert_eq!(said("", near), "");
        }
        let real = "[[upstream]]\nkind = \"prometheus\"\nurls = [\"http://p:1\"]\n";
        assert_eq!(said(real, "127.0.0.1:7"), "");
        let beside = format!("[[upstream]]\nkind = \"demo\"\n{real}");
        let invented = "requests that name no upstream are answered by the demonstration \"demo\", whose numbers are invented";
        assert_eq!(
            said(&beside, "127.0.0.1:7"),
            format!(
                "{invented}: set default = true in the section of \"prometheus\", or remove that of \"demo\""
            )
        );
        assert_eq!(
            said(&format!("{beside}default = true\n"), "127.0.0.1:7"),
            ""
        );
        let wide = said("", "0.0.0.0:7007");
        let (demo, wide) = wide.split_once('\n').unwrap();
        assert_eq!(
            demo,
            format!("{invented}: configure an [[upstream]] of another kind")
        );
        assert_eq!(
            wide,
            "every client that can reach 0.0.0.0:7007 has access to these APIs: mirror, prometheus, metrics; set \
             networks, tokens or users in [access.mirror], [access.prometheus], [access.metrics], \
             or server.tls.client_ca (docs/security.md)"
        );
        let networks = "networks = [\"10.0.0.0/8\"]";
        let some = format!("[access.mirror]\n{networks}\n[access.metrics]\n{networks}");
        let said_of_some = said(&some, "[::]:7007");
        assert!(
            said_of_some.contains("to these APIs: prometheus; "),
            "{said_of_some}"
        );
        let all = format!("{real}{some}\n[access.prometheus]\n{networks}");
        assert_eq!(said(&all, "0.0.0.0:7007"), "");
        let token = format!("{all}\n[access.admin]\ntokens = [\"sha256:{hash}\"]");
        let clear = said(&token, "0.0.0.0:7007");
        assert!(clear.starts_with("tokens and passwords are sent to 0.0.0.0:7007 in clear text"));
        assert_eq!(said(&token, "127.0.0.1:7007"), "");
        let proxied = format!("[access]\ntrusted_proxies = [\"10.0.0.1\"]\n{token}");
        assert_eq!(said(&proxied, "0.0.0.0:7007"), "");
    }
}
