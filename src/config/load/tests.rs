use super::*;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    pairs.iter().map(owned).collect()
}

fn error(text: &str) -> String {
    let error = parse(text, "c.toml", &BTreeMap::new()).unwrap_err();
    error.to_string()
}

#[test]
fn the_built_in_configuration_is_what_an_empty_file_means() {
    let built_in = load(None, &BTreeMap::new()).unwrap();
    let empty = parse("", "c.toml", &BTreeMap::new()).unwrap();
    assert_eq!(format!("{built_in:?}"), format!("{empty:?}"));
    assert_eq!(built_in.default_upstream, "demo");
}

#[test]
fn errors_say_where_what_and_what_is_allowed() {
    let cases = [
        (
            "[server]\nlisten = \"nonsense\"",
            "c.toml:2:10: server.listen: \"nonsense\" is not an address",
        ),
        (
            "[server]\nlitsen = \"x\"",
            "c.toml:2:1: server.litsen: unknown key",
        ),
        ("[server]\nlitsen = \"x\"", "did you mean `listen`?"),
        (
            "[cache]\nmemory = 5",
            "c.toml:2:10: cache.memory: expected a size",
        ),
        ("[cache]\nmemory = \"5 apples\"", "write it as \"64KiB\""),
        (
            "[server]\nmax_points = 0",
            "c.toml:2:1: server.max_points: must be at least 1",
        ),
        ("[server\n", "c.toml:1:"),
        (
            "[[upstream]]\nkind = \"promethius\"",
            "did you mean \"prometheus\"?",
        ),
        (
            "[[upstream]]\nkind = \"prometheus\"",
            "upstream[0].urls: must contain at least one URL",
        ),
        (
            "[[upstream]]\nname = \"a\"\n[[upstream]]\nname = \"a\"",
            "c.toml:4:1: upstream[1].name: \"a\" is already the name of another upstream",
        ),
        (
            "[[upstream]]\nname = \"a\"\ndefault = true\n[[upstream]]\nname = \"b\"\ndefault = true",
            "c.toml:6:1: upstream[1].default: only one",
        ),
        (
            "[[upstream]]\nname = \"a b\"",
            "upstream[0].name: \"a b\" is not a name",
        ),
        (
            "[[upstream]]\nkind = \"mirror\"\nurls = [\"ftp://x\"]",
            "must start with http://",
        ),
        (
            "[[upstream]]\nkind = \"mirror\"\nurls = [\"http://u:p@x\"]",
            "must not contain a user",
        ),
        (
            "[[upstream]]\ntimeout = \"soon\"",
            "c.toml:2:11: upstream[0].timeout: \"soon\" is not a duration",
        ),
        (
            "[[upstream]]\nrate_limit = { per_second = 0 }",
            "upstream[0].rate_limit.per_second: ",
        ),
        (
            "[[upstream]]\nkind = \"mirror\"\nurls = [\"http://x\"]\napi_key = { env = \"NOPE\" }",
            "upstream[0].api_key: the environment variable NOPE is not set",
        ),
        (
            "[targets]\nallow = [\"prom\"]",
            "targets.allow[0]: \"prom\" is not a target",
        ),
        (
            "[state]\ndir = \"/nonexistent/folder\"",
            "c.toml:2:1: state.dir: \"/nonexistent/folder\" is not a writable folder",
        ),
        ("[log]\nlevel = \"loud\"", "found \"loud\""),
        (
            "[access.promethius]\nnetworks = []",
            "access.promethius: unknown key",
        ),
        (
            "[access.promethius]\nnetworks = []",
            "did you mean `prometheus`?",
        ),
        (
            "[access.mirror]\nnetworks = [\"10.0.0.0/33\"]",
            "c.toml:2:13: access.mirror.networks[0]: \"10.0.0.0/33\" is not a network",
        ),
        (
            "[access]\ntrusted_proxies = [\"nginx\"]",
            "c.toml:2:20: access.trusted_proxies[0]: \"nginx\" is not a network",
        ),
        (
            "[access.metrics]\ntoken = []",
            "access.metrics.token: unknown key",
        ),
        (
            "[access.metrics]\ntokens = [\"x\"]",
            "c.toml:2:11: access.metrics.tokens[0]: is not the hash of a token; expected",
        ),
        (
            "[access.metrics]\ntokens = [{ env = \"NOPE\" }]",
            "c.toml:2:11: access.metrics.tokens[0]: the environment variable NOPE is not set",
        ),
        (
            "[access.admin]\nnetworks = []\nusers = { ann = \"x\" }",
            "c.toml:3:11: access.admin.users.ann: is not a bcrypt hash; expected",
        ),
        (
            "[access.admin]\n[access.admin.users]\nann = \"x\"",
            "c.toml:3:1: access.admin.users.ann: is not a bcrypt hash",
        ),
        (
            "[access.mirror]\nusers = { ann = \"$2b$20$abcdefghijklmnopqrstuugFgv7Nt9UUUQFT67LyuDtVIULBi6N56\" }",
            "c.toml:2:11: access.mirror.users.ann: has the cost 20; 4 to 14 are accepted",
        ),
        (
            "[access.mirror]\nusers = { \"a:b\" = \"x\" }",
            "c.toml:2:1: access.mirror.users: a user's name must not be empty",
        ),
        (
            "[access.mirror]\nusers = { \"\" = \"x\" }",
            "c.toml:2:1: access.mirror.users: a user's name must not be empty",
        ),
        (
            "[access.mirror]\nusers = { \"a\\u0007\" = \"x\" }",
            "or control characters",
        ),
    ];
    for (text, expected) in cases {
        let said = error(text);
        assert!(
            said.contains(expected),
            "{text}\n  said {said}\n  expected {expected}"
        );
    }
}

#[test]
fn every_key_can_be_overridden_from_the_environment() {
    let text = "[[upstream]]\nname = \"main-prom\"\nkind = \"prometheus\"\nurls = [\"http://a:1\"]\n[[upstream]]\nname = \"demo\"";
    let overrides = env(&[
        ("HELIOSTAT_SERVER__LISTEN", "127.0.0.1:0"),
        ("HELIOSTAT_SERVER__MAX_POINTS", "7"),
        ("HELIOSTAT_SERVER__API_KEY", "12345"),
        ("HELIOSTAT_CACHE__MEMORY", "1MiB"),
        ("HELIOSTAT_UPSTREAM__MAIN_PROM__URLS", "[\"http://b:2\"]"),
        ("HELIOSTAT_UPSTREAM__MAIN_PROM__RATE_LIMIT__PER_SECOND", "3"),
        ("HELIOSTAT_UPSTREAM__1__DEFAULT", "true"),
        ("HELIOSTAT_REQUIRE_REAL", "1"),
    ]);
    let config = parse(text, "c.toml", &overrides).unwrap();
    assert_eq!(config.server.listen.port(), 0);
    assert_eq!(config.server.max_points, 7);
    assert_eq!(config.server.api_key.reveal(), "12345");
    assert_eq!(config.cache_memory, 1 << 20);
    assert_eq!(config.upstreams[0].kind.urls()[0].as_str(), "http://b:2");
    assert_eq!(config.upstreams[0].limits.per_second, 3.0);
    assert_eq!(config.default_upstream, "demo");

    for (name, value, expected) in [
        ("HELIOSTAT_SERVER__LITSEN", "x", "did you mean `listen`?"),
        (
            "HELIOSTAT_SERVER__MAX_POINTS",
            "many",
            "HELIOSTAT_SERVER__MAX_POINTS",
        ),
        (
            "HELIOSTAT_UPSTREAM__NOPE__URLS",
            "[]",
            "the file has no upstream \"nope\"",
        ),
    ] {
        let said = parse(text, "c.toml", &env(&[(name, value)]))
            .unwrap_err()
            .to_string();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn secrets_come_from_the_file_the_environment_or_a_file_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "from-file\n").unwrap();
    let text = format!(
        "[[upstream]]\nkind = \"mirror\"\nurls = [\"http://x\"]\napi_key = {{ file = {path:?} }}\nheaders = {{ Authorization = {{ env = \"TOKEN\" }} }}"
    );
    let config = parse(&text, "c.toml", &env(&[("TOKEN", "Bearer t0ken")])).unwrap();
    let upstream = &config.upstreams[0];
    let UpstreamKind::Mirror { api_key, .. } = &upstream.kind else {
        panic!("{upstream:?}");
    };
    assert_eq!(api_key.as_ref().map(Secret::reveal), Some("from-file"));
    assert_eq!(upstream.headers[0].1.reveal(), "Bearer t0ken");
    let shown = format!("{config:?}");
    assert!(
        !shown.contains("from-file") && !shown.contains("t0ken"),
        "{shown}"
    );
}

#[test]
fn wrong_certificates_are_named_with_their_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let made = |name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        std::fs::write(path(&format!("{name}.crt")), made.cert.pem()).unwrap();
        std::fs::write(
            path(&format!("{name}.key")),
            made.signing_key.serialize_pem(),
        )
        .unwrap();
    };
    made("a");
    made("b");
    std::fs::write(path("empty"), "").unwrap();
    let at = |name: &str| format!("{:?}", path(name));
    let server = |cert: &str, key: &str, more: &str| {
        let tls = format!("cert = {}\nkey = {}\n{more}", at(cert), at(key));
        parse(&format!("[server.tls]\n{tls}"), "c.toml", &BTreeMap::new())
            .map(drop)
            .map_err(|e| e.to_string())
    };
    assert_eq!(server("a.crt", "a.key", ""), Ok(()));
    let empty_ca = format!("client_ca = {}", at("empty"));
    for (result, says) in [
        (
            server("no", "a.key", ""),
            "c.toml:2:1: server.tls.cert: the file",
        ),
        (server("no", "a.key", ""), "cannot be read"),
        (server("a.key", "a.key", ""), "BEGIN CERTIFICATE"),
        (
            server("a.crt", "a.crt", ""),
            "c.toml:3:1: server.tls.key: the file",
        ),
        (server("a.crt", "a.crt", ""), "BEGIN PRIVATE KEY"),
        (
            server("a.crt", "b.key", ""),
            "b.key\" is not the key of the certificate",
        ),
        (
            server("a.crt", "a.key", &empty_ca),
            "c.toml:4:1: server.tls.client_ca: the file",
        ),
    ] {
        let error = result.unwrap_err();
        assert!(error.contains(says), "{error} does not say {says}");
    }
    assert!(error("[server.tls]\nclient_ca = \"x\"").contains("server.tls.cert: is required"));
    assert!(error("[server.tls]\ncert = \"x\"").contains("server.tls.key: is required"));
    let upstream = |tls: &str| {
        error(&format!(
            "[[upstream]]\nkind = \"mirror\"\nurls = [\"https://a\"]\ntls = {tls}"
        ))
    };
    for (tls, says) in [
        (
            format!("{{ ca = {} }}", at("empty")),
            "9: upstream[0].tls.ca: the file",
        ),
        (format!("{{ ca = {} }}", at("no")), "cannot be read"),
        (
            format!("{{ cert = {} }}", at("a.crt")),
            "tls.key: is required with cert",
        ),
        (
            format!("{{ cert = {}, key = {} }}", at("a.crt"), at("b.key")),
            "b.key\" is not the key",
        ),
    ] {
        let error = upstream(&tls);
        assert!(error.starts_with("c.toml:4:"), "{error}");
        assert!(error.contains(says), "{error}");
    }
    assert!(error("[targets]\nnetworks = [\"10.0.0.0/33\"]").contains("is not a network"));
}

#[test]
fn where_traces_go_is_checked() {
    for sample in ["-0.1", "1.1", "nan"] {
        let said = error(&format!("[traces]\nsample = {sample}"));
        assert_eq!(said, "c.toml:2:1: traces.sample: must be from 0 to 1");
    }
    let said = error("[traces]\nendpoint = \"collector:4317\"");
    assert!(
        said.starts_with("c.toml:2:1: traces.endpoint: \"collector:4317\": must start"),
        "{said}"
    );
    let config = |text: &str| parse(text, "c.toml", &BTreeMap::new());
    assert!(
        config("[traces]\nendpoint = \"\"")
            .unwrap()
            .traces
            .is_none()
    );
    let good = "[traces]\nendpoint = \"http://collector:4318/v1/traces\"\nheaders = { X-Token = \"hidden\" }";
    if cfg!(feature = "otlp") {
        let traces = config(good).unwrap().traces.unwrap();
        assert_eq!(traces.endpoint.as_str(), "http://collector:4318/v1/traces");
        assert!((traces.sample - 1.0).abs() < f64::EPSILON);
        assert!(!format!("{traces:?}").contains("hidden"));
    } else {
        let said = error(good);
        assert!(
            said.contains("traces.endpoint: this build has no OTLP"),
            "{said}"
        );
        assert!(said.contains("--features otlp"), "{said}");
    }
}

#[test]
fn a_build_that_cannot_sign_says_so() {
    for section in [
        "kind = \"cloudwatch\"",
        "kind = \"prometheus\"\nurls = [\"https://aps-workspaces.eu-west-1.amazonaws.com/workspaces/ws-1\"]",
    ] {
        let service = if section.contains("cloudwatch") {
            ""
        } else {
            ", service = \"aps\""
        };
        let text = format!(
            "[[upstream]]\nname = \"aws\"\n{section}\naws = {{ region = \"eu-west-1\"{service} }}"
        );
        let read = parse(&text, "c.toml", &BTreeMap::new());
        if cfg!(feature = "aws") {
            assert!(read.is_ok(), "{text}");
        } else {
            let said = read.unwrap_err().to_string();
            assert!(
                said.contains("aws: this build cannot sign requests to AWS"),
                "{said}"
            );
            assert!(said.contains("--features aws"), "{said}");
        }
    }
}

#[test]
fn access_comes_from_the_file_and_the_environment() {
    let (token, hash) = (
        format!("sha256:{}", "0".repeat(64)),
        "$2b$04$abcdefghijklmnopqrstuugFgv7Nt9UUUQFT67LyuDtVIULBi6N56",
    );
    let text = "[access]\ntrusted_proxies = [\"10.0.0.7\", \"::ffff:10.1.0.0/112\"]\n[access.mirror]\nnetworks = [\"fd00::/8\", \"::/0\"]\n[access.metrics]\ntokens = [{ env = \"SCRAPE\" }]";
    let overrides = env(&[
        ("SCRAPE", &token),
        (
            "HELIOSTAT_ACCESS__PROMETHEUS__USERS",
            &format!("{{ Grafana = {hash:?} }}"),
        ),
        ("HELIOSTAT_ACCESS__ADMIN__TOKENS", &format!("[{token:?}]")),
    ]);
    let access = parse(text, "c.toml", &overrides).unwrap().access;
    let shown: Vec<_> = access
        .trusted_proxies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(shown, ["10.0.0.7/32", "10.1.0.0/16"]);
    assert_eq!(access.mirror.networks.len(), 2);
    assert!(!access.mirror.is_open() && !access.mirror.has_credentials());
    assert_eq!(access.metrics.tokens[0].reveal(), token);
    assert_eq!(access.prometheus.users[0].0, "Grafana");
    assert_eq!(access.prometheus.users[0].1.reveal(), hash);
    assert!(access.admin.has_credentials());
    let shown = format!("{access:?}");
    assert!(!shown.contains("$2b") && !shown.contains("0000"), "{shown}");
}

#[cfg(unix)]
#[test]
fn a_link_in_the_state_folder_is_not_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let (state, other) = (folder.path().join("state"), folder.path().join("other"));
    std::fs::create_dir(&state).unwrap();
    std::fs::write(&other, "keep").unwrap();
    std::os::unix::fs::symlink(&other, state.join(".heliostat")).unwrap();
    let text = format!("[state]\ndir = {state:?}\n");
    for _ in 0..2 {
        let config = parse(&text, "c.toml", &env(&[])).unwrap();
        assert_eq!(config.state_dir.as_deref(), Some(state.as_path()));
    }
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "keep");
    assert!(state.read_dir().unwrap().next().is_none(), "nothing stays");
}
