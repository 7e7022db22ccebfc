use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

use super::*;
use crate::model::TokenHash;

/// Of the token `token`.
const TOKEN: &str = "sha256:3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0";

fn rules(networks: &[&str], token: bool) -> Rules {
    let credentials = token.then(|| {
        let known = Credentials::new(vec![TokenHash::parse(TOKEN).unwrap()], []);
        Reloadable::fixed(known.unwrap())
    });
    Rules {
        networks: networks.iter().map(|n| n.parse().unwrap()).collect(),
        credentials,
        demonstration: false,
    }
}

/// Returns the answer to a client at `client` at `api` under `rules`, with or without the token.
async fn asked(api: Api, rules: Rules, client: &str, token: bool) -> Result<(), Error> {
    let mut rules = Some(rules);
    let access = AccessControl::new(Vec::new(), |of| {
        let rules = rules.take_if(|_| of == api);
        Ok::<_, String>(rules.unwrap_or_default())
    });
    let value = HeaderValue::from_static("Bearer token");
    let headers = token.then_some((AUTHORIZATION, value));
    let headers = HeaderMap::from_iter(headers);
    let client = client.parse().unwrap();
    access.unwrap().check(api, client, &headers, false).await
}

#[tokio::test]
async fn networks_and_credentials_must_both_hold() {
    let net = ["10.0.0.0/8", "fd00::/8"];
    for api in [Api::Mirror, Api::Prometheus, Api::Metrics] {
        let name = api.name();
        for (networks, needs, client, token, expected) in [
            (&[][..], false, "192.0.2.1", false, None),
            (&net, false, "10.1.2.3", false, None),
            (&net, false, "fd00::7", false, None),
            (&net, false, "192.0.2.1", false, Some("networks")),
            (&net, false, "192.0.2.1", true, Some("networks")),
            (&[], true, "192.0.2.1", true, None),
            (&[], true, "192.0.2.1", false, Some("Bearer")),
            (&net, true, "10.1.2.3", true, None),
            (&net, true, "10.1.2.3", false, Some("Bearer")),
            (&net, true, "192.0.2.1", true, Some("networks")),
            (&net, true, "192.0.2.1", false, Some("networks")),
        ] {
            let rules = rules(networks, needs);
            let case = format!("{name} {networks:?} {needs} {client} {token}");
            match (asked(api, rules, client, token).await, expected) {
                (Ok(()), None) => {}
                (Err(e), Some("networks")) => {
                    assert_eq!(e.kind, Kind::ClientNotAllowed, "{case}");
                    assert!(
                        e.message.contains(&format!("access.{name}.networks")),
                        "{e}"
                    );
                }
                (Err(e), Some(scheme)) => {
                    assert_eq!(e.kind, Kind::Unauthenticated, "{case}");
                    assert_eq!(e.subject.as_deref(), Some(scheme), "{case}");
                    assert!(
                        e.message.contains(&format!("(access.{name}; Bearer)")),
                        "{e}"
                    );
                }
                (result, _) => panic!("{case}: {result:?}"),
            }
        }
    }
}

#[tokio::test]
async fn the_admin_api_is_closed_without_credentials() {
    let net = ["10.0.0.0/8"];
    for networks in [&[][..], &net] {
        let closed = asked(Api::Admin, rules(networks, false), "10.1.2.3", true).await;
        let closed = closed.unwrap_err();
        assert_eq!(closed.kind, Kind::ClientNotAllowed);
        assert!(
            closed
                .message
                .contains("set tokens or users in [access.admin]"),
            "{closed}"
        );
        let open = asked(Api::Admin, rules(networks, true), "10.1.2.3", true).await;
        assert_eq!(open, Ok(()));
        let wrong = asked(Api::Admin, rules(networks, true), "10.1.2.3", false).await;
        assert_eq!(wrong.unwrap_err().kind, Kind::Unauthenticated);
    }
    let far = asked(Api::Admin, rules(&net, true), "192.0.2.1", true).await;
    assert_eq!(far.unwrap_err().kind, Kind::ClientNotAllowed);
}

#[tokio::test]
async fn a_preflight_needs_the_network_and_no_credentials() {
    let access = AccessControl::new(Vec::new(), |_| {
        Ok::<_, String>(rules(&["10.0.0.0/8"], true))
    });
    let access = access.unwrap();
    let check = async |client: &str, preflight| {
        let (client, headers) = (client.parse().unwrap(), HeaderMap::new());
        let api = Api::Prometheus;
        let checked = access.check(api, client, &headers, preflight).await;
        checked.map_err(|e| e.kind)
    };
    assert_eq!(check("10.0.0.1", true).await, Ok(()));
    assert_eq!(check("10.0.0.1", false).await, Err(Kind::Unauthenticated));
    assert_eq!(check("192.0.2.1", true).await, Err(Kind::ClientNotAllowed));
}
