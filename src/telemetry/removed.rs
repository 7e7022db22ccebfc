//! Metrics without the series of upstreams that a reload removed.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use metrics_exporter_prometheus::PrometheusHandle;

/// Names of upstreams, and patterns of targets, that are gone. The registry keeps their series, so
/// that a counter goes on if the name comes back; until then they are not shown.
static GONE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn gone() -> MutexGuard<'static, BTreeSet<String>> {
    // Names are added and removed whole, so the set is sound even after a panic.
    GONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows the series of the upstream `name` no longer.
pub(super) fn add(name: &str) {
    gone().insert(name.to_owned());
}

/// Shows the series of the upstream `name`, which is there or there again.
pub(super) fn is_back(name: &str) {
    gone().remove(name);
}

/// Returns the text of `/metrics`.
pub fn render(registry: &PrometheusHandle) -> String {
    without(&gone(), registry.render())
}

/// Returns `text` without the series of the upstreams that `gone` names.
fn without(gone: &BTreeSet<String>, text: String) -> String {
    if gone.is_empty() {
        return text;
    }
    let shown = |line: &&str| {
        // The files of an upstream are called `upstream NAME …`.
        let named = line.split_once("upstream=\"");
        let named = named.or_else(|| line.split_once("what=\"upstream "));
        let name = named.and_then(|(_, rest)| rest.split(['"', ' ']).next());
        name.is_none_or(|name| line.starts_with('#') || !gone.contains(name))
    };
    text.split_inclusive('\n').filter(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_upstreams_that_are_gone_are_not_shown() {
        let text = "# HELP a upstream=\"x\"\na{upstream=\"x\"} 1\na{upstream=\"xy\"} 2\nb{le=\"1\",upstream=\"x\"} 3\nc 4\nd{what=\"upstream x tls\"} 1\nd{what=\"upstream xy tls\"} 1\nd{what=\"x\"} 1\n";
        let gone = BTreeSet::from(["x".to_owned()]);
        let shown = "# HELP a upstream=\"x\"\na{upstream=\"xy\"} 2\nc 4\nd{what=\"upstream xy tls\"} 1\nd{what=\"x\"} 1\n";
        assert_eq!(without(&gone, text.to_owned()), shown);
        assert_eq!(without(&BTreeSet::new(), text.to_owned()), text);
    }
}
