//! Checks `deploy/stackstate/` and `deploy/compose/` as data: neither StackState nor a container
//! engine is needed to see that their parts fit each other and Heliostat.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use heliostat::config;
use heliostat::wire::mirror::request::method;
use serde_json::{Value, json};

const STACKPACK: &str = "deploy/stackstate/stackpack";
const DATA_SOURCE: &str = "urn:stackpack:heliostat:data-source:prom";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Returns a StackState template as JSON: `{{ get "X" … }}` and `{{ resolveOrCreate "X" … }}`
/// become `"X"`, and `{{ include "X" }}`, which occurs inside a string, becomes `X`.
fn template(text: &str) -> Value {
    let mut json = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{ ") {
        let (helper, after) = after.split_once("}}").expect("a helper ends");
        json.push_str(before);
        let words: Vec<_> = helper.trim().splitn(3, ' ').collect();
        match words[..] {
            ["get" | "resolveOrCreate", name, ..] => json.push_str(name),
            ["include", name] => json.push_str(name.trim_matches('"')),
            _ => json.push_str(&format!("{{{{ {helper}}}}}")),
        }
        rest = after;
    }
    json.push_str(rest);
    serde_json::from_str(&json).unwrap_or_else(|e| panic!("{e}\n{json}"))
}

/// Returns the text after `key = "` in a HOCON file.
fn quoted(conf: &str, key: &str) -> String {
    let line = conf.lines().find_map(|line| {
        let rest = line.trim().strip_prefix(key)?.trim_start();
        rest.strip_prefix('=')?.trim().strip_prefix('"')
    });
    let line = line.unwrap_or_else(|| panic!("there is no {key}"));
    line.trim_end_matches('"').to_owned()
}

#[test]
fn streams_are_queries_that_heliostat_answers() {
    let text = read(&format!(
        "{STACKPACK}/provisioning/templates/host.json.handlebars"
    ));
    assert!(
        !text.replace("\\{{", "").contains("{{"),
        "braces are escaped for `include`"
    );
    let component = template(&text.replace("\\{{", "{{").replace("\\}}", "}}"));
    assert_eq!(component["_type"], "Component");
    let streams = component["streams"].as_array().unwrap();
    assert!(streams.len() >= 4);
    let mut ids = BTreeSet::new();
    for stream in streams {
        assert_eq!(stream["_type"], "MetricStream", "{stream}");
        assert_eq!(stream["dataType"], "METRICS", "{stream}");
        assert_eq!(stream["dataSource"], DATA_SOURCE, "{stream}");
        let priority = stream["priority"].as_str().unwrap();
        assert!(
            ["HIGH", "MEDIUM", "LOW", "NONE"].contains(&priority),
            "{priority}"
        );
        let query = &stream["query"];
        assert_eq!(query["_type"], "MetricTelemetryQuery", "{stream}");
        assert_eq!(query["metricField"], "value", "{stream}");
        let aggregation = query["aggregation"].as_str().unwrap();
        assert!(method(aggregation).is_some(), "{aggregation}");
        let conditions = query["conditions"].as_array().unwrap();
        let keys: Vec<_> = conditions
            .iter()
            .map(|c| c["key"].as_str().unwrap())
            .collect();
        assert!(
            conditions.iter().all(|c| c["value"].is_string()),
            "{stream}"
        );
        let selectors = ["__gauge__", "__counter__", "~"];
        let selecting = keys.iter().filter(|key| selectors.contains(key)).count();
        assert_eq!(selecting, 1, "{stream}");
        assert!(keys.len() == 1 || !keys.contains(&"~"), "{stream}");
        for id in [&stream["id"], &query["id"]] {
            assert!(
                ids.insert(id.as_i64().filter(|id| *id < 0).unwrap()),
                "{stream}"
            );
        }
    }
}

#[test]
fn monitors_have_the_arguments_of_their_function() {
    let text = read(&format!("{STACKPACK}/provisioning/templates/monitors.stj"));
    let settings = template(&text);
    assert!(settings["_version"].is_string() && settings["timestamp"].is_string());
    let function = "urn:system:default:monitor-function:metric-above-threshold";
    for monitor in settings["nodes"].as_array().unwrap() {
        assert_eq!(monitor["_type"], "Monitor");
        let identifier = monitor["identifier"].as_str().unwrap();
        assert!(
            identifier.starts_with("urn:stackpack:heliostat:monitor:"),
            "{identifier}"
        );
        assert_eq!(monitor["function"], function);
        assert_eq!(monitor["status"], "DISABLED", "an administrator enables it");
        assert!(monitor["intervalSeconds"].as_i64().unwrap() >= 60);
        for key in ["name", "description", "remediationHint"] {
            assert!(!monitor[key].as_str().unwrap().is_empty(), "{key}");
        }
        let arguments = monitor["arguments"].as_array().unwrap();
        let types: Vec<_> = arguments.iter().map(|a| a["_type"].clone()).collect();
        let expected = [
            "ArgumentDoubleVal",
            "ArgumentStringVal",
            "ArgumentScriptMetricQueryVal",
        ];
        assert_eq!(types, expected);
        let script = arguments[2]["script"].as_str().unwrap();
        assert!(
            script.starts_with("Telemetry.query('Heliostat', '"),
            "{script}"
        );
    }
    // Everything that the function needs is bound, and nothing else.
    for parameter in ["threshold", "topologyIdentifierPattern", "metrics"] {
        let binding = format!("{{{{ get \"{function}\" \"Type=Parameter;Name={parameter}\" }}}}");
        assert_eq!(text.matches(&binding).count(), 1, "{binding}");
    }
}

#[test]
fn the_stackpack_names_files_that_it_has() {
    let conf = read(&format!("{STACKPACK}/stackpack.conf"));
    let exists = |file: &str| root().join(STACKPACK).join(file).is_file();
    assert_eq!(quoted(&conf, "name"), "heliostat");
    for key in [
        "overviewUrl",
        "logoUrl",
        "NOT_INSTALLED",
        "PROVISIONING",
        "WAITING_FOR_DATA",
        "INSTALLED",
        "DEPROVISIONING",
        "ERROR",
    ] {
        let file = quoted(&conf, key);
        assert!(exists(&format!("resources/{file}")), "{key}: {file}");
    }
    let logo = std::fs::read(root().join(STACKPACK).join("resources/logo.png")).unwrap();
    assert!(logo.starts_with(b"\x89PNG\r\n\x1a\n"));
    let class = quoted(&conf, "provision");
    let script = read(&format!("{STACKPACK}/provisioning/{class}.groovy"));
    assert!(script.contains(&format!("class {class} extends ProvisioningScript {{")));
    let imports: Vec<_> = script.split("importSnapshot(\"").skip(1).collect();
    assert_eq!(imports.len(), 2);
    for import in imports {
        let file = import.split('"').next().unwrap();
        assert!(exists(&format!("provisioning/{file}")), "{file}");
    }
    let streams = template(&read(&format!(
        "{STACKPACK}/provisioning/templates/streams.stj"
    )));
    let function = &streams["nodes"][0];
    assert_eq!(function["_type"], "ComponentTemplateFunction");
    let included = function["handlebarsTemplate"].as_str().unwrap();
    assert!(exists(&format!("provisioning/{included}")), "{included}");
    // The pages and the document give users the identifier that the templates look for.
    for page in [
        "resources/overview.md",
        "resources/notinstalled.md",
        "resources/error.md",
    ] {
        assert!(
            read(&format!("{STACKPACK}/{page}")).contains(DATA_SOURCE),
            "{page}"
        );
    }
    assert!(read("docs/stackstate.md").contains("urn:stackpack:heliostat:data-source:NAME"));
}

#[test]
fn templates_are_read_as_json() {
    let text =
        r#"{"a": {{ get "urn:x" "Type=P;Name=n" }}, "b": "{{ include "./f" }}", "c": "x{{ y }}"}"#;
    let expected = json!({"a": "urn:x", "b": "./f", "c": "x{{ y }}"});
    assert_eq!(template(text), expected);
}

#[test]
fn compose_mounts_files_that_exist_and_speaks_of_its_own_services() {
    let compose = read("deploy/compose/compose.yaml");
    let folder = root().join("deploy/compose");
    let mut services = BTreeSet::new();
    let mut mounts = BTreeMap::new();
    for line in compose.lines() {
        let name = line.strip_prefix("  ").filter(|l| !l.starts_with(' '));
        if let Some(name) = name.and_then(|l| l.strip_suffix(':')) {
            services.insert(name.to_owned());
        }
        let item = line.trim().strip_prefix("- ");
        if let Some(mount) = item.filter(|item| item.starts_with('.')) {
            let parts: Vec<_> = mount.split(':').collect();
            assert!(folder.join(parts[0]).exists(), "{mount}");
            assert_eq!(parts.get(2), Some(&"ro"), "{mount}");
            mounts.insert(parts[1].to_owned(), parts[0].to_owned());
        }
        if let Some(image) = line.trim().strip_prefix("image: ") {
            let (_, tag) = image.split_once(':').expect("an image has a tag");
            assert!(tag.contains('.'), "{image} is a moving target");
        }
        if let Some(port) = item.and_then(|item| item.strip_prefix('"')) {
            assert!(
                port.starts_with("127.0.0.1:"),
                "{port} is open to the network"
            );
        }
    }
    for service in ["prometheus", "heliostat", "grafana"] {
        assert!(services.contains(service), "{services:?}");
    }
    assert!(
        root().join("deploy/Dockerfile").exists()
            && compose.contains("dockerfile: deploy/Dockerfile")
    );

    // Heliostat's configuration is valid, and its store is a service.
    let env = BTreeMap::from([("MIRROR_API_KEY".to_owned(), "key".to_owned())]);
    assert!(compose.contains("MIRROR_API_KEY: "));
    let text = read("deploy/compose/heliostat.toml");
    let parsed = config::parse(&text, "heliostat.toml", &env).unwrap();
    assert!(parsed.upstreams.iter().any(|u| u.name == "prom"));
    assert!(text.contains("urls = [\"http://prometheus:9090\"]"));
    assert_eq!(mounts["/etc/heliostat/config.toml"], "./heliostat.toml");

    // Grafana queries Heliostat for that upstream, and finds the dashboard where it is mounted.
    let sources = read("deploy/compose/grafana/provisioning/datasources/heliostat.yaml");
    assert!(
        sources.contains("    url: http://heliostat:7007/prometheus/prom\n    isDefault: true\n")
    );
    let provider = read("deploy/compose/grafana/provisioning/dashboards/heliostat.yaml");
    let (_, path) = provider.split_once("path: ").unwrap();
    let path = path.split(' ').next().unwrap();
    let dashboard = format!("{path}/heliostat.json");
    assert_eq!(mounts[&dashboard], "../grafana/heliostat.json");
    assert!(compose.contains(&format!("DASHBOARD_PATH: {dashboard}\n")));
    for address in read("deploy/compose/prometheus.yml")
        .split("targets: [\"")
        .skip(1)
    {
        let host = address.split(':').next().unwrap();
        assert!(host == "localhost" || services.contains(host), "{host}");
    }
}
