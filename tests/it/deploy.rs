//! Checks of `deploy/`: it refers only to metrics, files and settings that exist, and the programs
//! that use it accept it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::prometheus::installed;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Returns the names of metrics in `text`.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    let words = text.split(word).filter(|w| w.starts_with("heliostat_"));
    words.map(str::to_owned).collect()
}

/// Returns all metrics. Histograms are recognised by their unit.
fn metrics() -> BTreeSet<String> {
    let files = ["metrics.rs", "upstream_metrics.rs"];
    let source = files
        .map(|file| read(format!("src/telemetry/{file}")))
        .concat();
    let names = source.split('"').filter(|t| t.starts_with("heliostat_"));
    let mut all: BTreeSet<String> = names.map(str::to_owned).collect();
    assert!(all.len() > 15, "{all:?}");
    for histogram in all.clone() {
        if histogram.ends_with("_seconds") {
            all.extend(["bucket", "sum", "count"].map(|part| format!("{histogram}_{part}")));
        }
    }
    all
}

/// The PromQL expressions of the dashboard.
pub(crate) fn dashboard_expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/heliostat.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|p| p["targets"].as_array().into_iter().flatten());
    targets
        .map(|t| t["expr"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn dashboard_and_rules_speak_of_metrics_that_there_are() {
    let known = metrics();
    for file in [
        "deploy/grafana/heliostat.json",
        "deploy/prometheus/alerts.yml",
        "deploy/prometheus/alerts.test.yml",
        "docs/metrics.md",
        "docs/operations.md",
        "docs/troubleshooting.md",
    ] {
        let used = metrics_in(&read(file));
        assert!(!used.is_empty(), "{file} has no metric");
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    // The dashboard shows all of them.
    let shown = metrics_in(&read("deploy/grafana/heliostat.json"));
    for name in metrics_in(&read("docs/metrics.md")) {
        assert!(
            shown.iter().any(|s| s.starts_with(&name)),
            "{name} is not shown"
        );
    }
}

#[test]
fn the_dashboard_asks_in_promql() {
    let expressions = dashboard_expressions();
    assert!(expressions.len() > 20);
    for expression in expressions {
        let asked = expression.replace("$__rate_interval", "5m");
        let analysis = heliostat::promql::classify(&asked);
        let kept = matches!(analysis, heliostat::promql::Analysis::PerInstant { .. });
        assert!(kept, "{asked}: {analysis:?}");
    }
}

#[test]
fn every_alert_is_tested_and_explained() {
    let (rules, tests) = (
        read("deploy/prometheus/alerts.yml"),
        read("deploy/prometheus/alerts.test.yml"),
    );
    let operations = read("docs/operations.md");
    let alerts: Vec<_> = rules
        .lines()
        .filter_map(|l| l.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 10, "{alerts:?}");
    for key in ["for: ", "severity: ", "summary: "] {
        assert_eq!(rules.matches(key).count(), alerts.len(), "{key}");
    }
    for alert in alerts {
        let anchor = format!("docs/operations.md#{}\n", alert.to_lowercase());
        assert!(rules.contains(&anchor), "{anchor}");
        assert!(operations.contains(&format!("\n### {alert}\n")), "{alert}");
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert}");
    }
}

#[test]
fn promtool_tests_the_rules() {
    if !installed("promtool") {
        return;
    }
    for (command, file) in [("check", "alerts.yml"), ("test", "alerts.test.yml")] {
        let mut promtool = Command::new("promtool");
        promtool.args([command, "rules", file]);
        let run = promtool
            .current_dir(root().join("deploy/prometheus"))
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
    }
}

#[test]
fn the_image_is_made_of_what_there_is() {
    let dockerfile = read("deploy/Dockerfile");
    let ignored = read(".dockerignore");
    let copies = dockerfile.lines().filter_map(|l| l.strip_prefix("COPY "));
    let mut sources = 0;
    for copy in copies.filter(|c| !c.starts_with("--from")) {
        let parts: Vec<_> = copy.split(' ').collect();
        for source in &parts[..parts.len() - 1] {
            assert!(root().join(source).exists(), "{source}");
            assert!(
                ignored.contains(&format!("\n!{source}\n")),
                "{source} is ignored"
            );
            sources += 1;
        }
    }
    assert!(sources >= 5);
    // The default configuration is part of the binary.
    assert!(read("src/config/load/mod.rs").contains("include_str!(\"../../../config.toml\")"));
    assert!(dockerfile.contains(" config.toml "));
    assert!(dockerfile.contains("--profile dist --locked"));
    let needed = read("Cargo.toml");
    let needed = needed
        .lines()
        .find_map(|l| l.strip_prefix("rust-version = "));
    let image = format!("FROM rust:{}-", needed.unwrap().trim_matches('"'));
    assert!(dockerfile.contains(&image), "{image}");
}

/// The memory limit of the chart's pods is the bound on what the process takes, by the same figures as the
/// warning of `heliostat check`.
#[test]
fn the_memory_limit_of_the_chart_follows_from_the_cache() {
    let helpers = read("deploy/helm/heliostat/templates/_helpers.tpl");
    let limit = "{{- add (div (mul $cache 13) 10) (max 64 (div $cache 4)) 64 -}}";
    assert!(helpers.contains(limit), "{limit}");
    let values = read("deploy/helm/heliostat/values.yaml");
    assert!(values.contains("\ncache:\n") && values.contains("\n  memory: 256\n"));
    assert!(!values.contains("limits: {"), "it would win");
    let pods = read("deploy/helm/heliostat/templates/deployment.yaml");
    for part in [
        "resources: {{- include \"heliostat.resources\" . | nindent 12 }}",
        "{ name: HELIOSTAT_CACHE__MEMORY, value: \"{{ int .Values.cache.memory }}MiB\" }",
    ] {
        assert!(pods.contains(part), "{part}");
    }
    // 256 MiB: 332 and 64 and 64 MiB, which config.toml, values.yaml and the warning agree on.
    let cache = 256;
    let bound = cache * 13 / 10 + (cache / 4).max(64) + 64;
    assert!(
        values.contains(&format!("; {bound}Mi by default")),
        "{bound}"
    );
    assert!(read("config.toml").contains("\nmemory = \"256MiB\" "));
}

#[test]
fn the_chart_uses_values_that_it_has() {
    let values = read("deploy/helm/heliostat/values.yaml");
    let chart = read("deploy/helm/heliostat/Chart.yaml");
    assert!(chart.contains(&format!("appVersion: \"{}\"\n", env!("CARGO_PKG_VERSION"))));
    let mut used = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("deploy/helm/heliostat/templates")).unwrap() {
        let text = read(entry.unwrap().path());
        for rest in text.split(".Values.").skip(1) {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.'));
            used.insert(rest[..end.unwrap_or(rest.len())].to_owned());
        }
    }
    assert!(
        used.contains("global.apiKey") && used.contains("port"),
        "{used:?}"
    );
    for path in &used {
        let (top, inner) = path.split_once('.').unwrap_or((path, ""));
        let section = format!("\n{values}");
        let section = section.split_once(&format!("\n{top}:"));
        let (_, section) = section.unwrap_or_else(|| panic!("values.yaml has no {top}"));
        // A section ends where the next line is not indented.
        let mut lines = section.lines().skip(1);
        let mut lines = lines
            .by_ref()
            .take_while(|l| l.is_empty() || l.starts_with([' ', '#']));
        let found = inner.is_empty() || lines.any(|l| l.starts_with(&format!("  {inner}:")));
        assert!(found, "values.yaml has no {path}");
    }
    // The reverse: no value is offered that has no effect.
    for line in values
        .lines()
        .filter(|l| l.starts_with(|c: char| c.is_ascii_alphabetic()))
    {
        let top = line.split(':').next().unwrap();
        let known = used.iter().any(|u| u.split('.').next() == Some(top));
        assert!(known, "{top} is not used");
    }
}
