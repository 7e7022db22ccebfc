//! The name of an upstream's data in a second level.

use std::sync::Arc;

use crate::config::{self, Aws, AwsKeys, AwsRole, UpstreamKind};
use crate::model::{Freshness, RangeLimits, Reading};
use crate::store::key::Canonical;

/// The form of everything in `settings` that decides what the data is, which outlives the process;
/// `None` if it is kept in no second level. A new setting does not compile until somebody has
/// decided whether it belongs here.
pub(super) fn stored_as(settings: &config::Upstream) -> Option<Arc<[u8]>> {
    let config::Upstream {
        // Two names of one store have the same data.
        name: _,
        kind,
        identity,
        second_level,
        headers,
        tls: _,
        proxy: _,
        aws,
        freshness,
        reading,
        limits: _,
    } = settings;
    let mut form = Canonical::default();
    form.part(kind.name());
    match kind {
        UpstreamKind::Demo { .. } => return None,
        UpstreamKind::Mirror {
            urls: _,
            api_key: _,
            connection_details,
        } => {
            let details = connection_details.as_ref();
            let details = details.map(|d| serde_json::Value::Object(d.clone()).to_string());
            form.maybe(details);
        }
        UpstreamKind::Prometheus { urls: _ } => {}
        UpstreamKind::CloudWatch {
            urls: _,
            units: _,
            batch: _,
            rules,
        } => {
            form.list(rules.iter().map(|rule| format!("{rule:?}")));
        }
    }
    if !second_level {
        return None;
    }
    form.maybe(identity.as_ref());
    if identity.is_none() {
        form.list(kind.urls().iter().map(|url| url.as_str()));
        let mut headers: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.reveal()))
            .collect();
        headers.sort_unstable();
        form.list(headers.iter());
        signed_as(&mut form, aws.as_ref());
    }
    let Freshness {
        settle,
        // Ages are stored, and each reader judges them.
        refresh: _,
        recheck: _,
        max_stale: _,
        stale_while_revalidate: _,
        history_ttl: _,
        metadata_ttl: _,
    } = freshness;
    let Reading {
        interval,
        aggregate,
        raw_points_max,
        multi_series,
        incomplete_buckets,
        max_response: _,
        range_limits: RangeLimits { series: _, span },
        step_alignment,
        // Those that a client sends are part of each query.
        parameters: _,
        // The evaluation time is part of each query.
        instant_alignment: _,
        refresh_ahead: _,
        replicas,
        replica_labels,
        method: _,
    } = reading;
    form.number(*settle)
        .number(interval.millis())
        .part(format!("{aggregate:?}"))
        .number(i64::from(*raw_points_max))
        .part(format!("{multi_series:?}"))
        .part(format!("{incomplete_buckets:?}"))
        .number(*span)
        .part(format!("{step_alignment:?}"))
        .part(format!("{replicas:?}"))
        .list(replica_labels.iter());
    Some(form.bytes().into())
}

/// The account whose credentials are used.
fn signed_as(form: &mut Canonical, aws: Option<&Aws>) {
    let Some(aws) = aws else {
        form.part("unsigned");
        return;
    };
    let Aws {
        region,
        service,
        keys,
        profile,
        role,
        sts_url: _,
        environment: _,
    } = aws;
    form.part("aws").part(region).part(service);
    form.maybe(keys.as_ref().map(|keys| {
        let AwsKeys {
            access_key,
            secret_key: _,
            session_token: _,
        } = keys;
        access_key.reveal().to_owned()
    }));
    form.maybe(profile.as_ref());
    form.maybe(role.as_ref().map(|role| {
        let AwsRole {
            arn,
            external_id: _,
            session: _,
        } = role;
        arn.clone()
    }));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn upstream(lines: &str) -> config::Upstream {
        let toml = format!("[[upstream]]\nkind = \"prometheus\"\n{lines}");
        let mut config = config::parse(&toml, "c.toml", &BTreeMap::new()).unwrap();
        config.upstreams.remove(0)
    }

    /// Each line changes what the data is, or it does not.
    #[test]
    fn a_setting_changes_the_form_exactly_if_it_changes_the_data() {
        let url = "urls = [\"http://a\"]\n";
        let usual = stored_as(&upstream(url));
        assert!(usual.is_some());
        for same in [
            "name = \"other\"",
            "timeout = \"3s\"",
            "refresh = \"1m\"",
            "history_ttl = \"1d\"",
            "max_stale = \"5m\"",
            "metadata_ttl = \"5m\"",
            "max_response = \"1MiB\"",
            "max_series = 7",
            "retries = 0",
        ] {
            assert_eq!(
                stored_as(&upstream(&format!("{url}{same}"))),
                usual,
                "{same}"
            );
        }
        for other in [
            "settle = \"1m\"",
            "interval = \"30s\"",
            "aggregate = \"local\"",
            "raw_points_max = 5",
            "multi_series = \"error\"",
            "incomplete_buckets = \"omit\"",
            "max_span = \"1h\"",
            "step_alignment = \"align\"",
            "headers = { x-scope-orgid = \"7\" }",
            "identity = \"eu\"",
        ] {
            assert_ne!(
                stored_as(&upstream(&format!("{url}{other}"))),
                usual,
                "{other}"
            );
        }
        let moved = stored_as(&upstream("urls = [\"http://b\"]"));
        assert_ne!(moved, usual);
        let tenant = |n| stored_as(&upstream(&format!("{url}headers = {{ a = \"{n}\" }}")));
        assert_ne!(tenant(1), tenant(2));
    }

    #[test]
    fn an_identity_stands_for_urls_and_headers() {
        let one = stored_as(&upstream("urls = [\"http://a\"]\nidentity = \"eu\""));
        let two = "urls = [\"http://b\"]\nidentity = \"eu\"\nheaders = { authorization = \"x\" }";
        assert_eq!(stored_as(&upstream(two)), one);
        let other = stored_as(&upstream("urls = [\"http://a\"]\nidentity = \"us\""));
        assert_ne!(other, one);
    }

    #[test]
    fn a_demonstration_and_what_is_not_wanted_are_kept_nowhere() {
        let demo = config::parse("", "c.toml", &BTreeMap::new()).unwrap();
        assert_eq!(stored_as(&demo.upstreams[0]), None);
        let none = "urls = [\"http://a\"]\nsecond_level = false";
        assert_eq!(stored_as(&upstream(none)), None);
    }
}
