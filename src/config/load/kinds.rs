//! Checks of keys that only some kinds of upstream have: addresses, and what is sent with requests.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderName, HeaderValue, header};

use super::{Checker, ConfigError, Place};
use crate::config::raw::{self, RawKind};
use crate::config::values::{Secret, SecretSource, Text};
use crate::model::{Replicas, TargetUrl};

/// Headers about the framing of a message, which HTTP itself sets (RFC 9110, 7.6.1; RFC 9112, 6).
const FRAMING: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

impl Checker<'_> {
    /// Refuses a key that has no meaning for the kind of the upstream. A key with its default value,
    /// as in a copied section, is accepted.
    pub(super) fn keys_of_kind(
        &self,
        place: Place,
        raw: &raw::RawUpstream,
    ) -> Result<(), ConfigError> {
        let kind = raw.kind.unwrap_or_default();
        let none = crate::config::UpstreamKind::Prometheus { urls: Vec::new() };
        let usual = raw::RawUpstream::default().settings(String::new(), none.clone());
        let (set, usual) = (raw.settings(String::new(), none).reading, usual.reading);
        let (limits, usual_limits) = (set.range_limits, usual.range_limits);
        // The built-in section shows all keys.
        let shown = kind == RawKind::Demo;
        let tls = &raw.tls;
        let named = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
        let secure = tls.insecure || named(&tls.ca) || named(&tls.cert) || named(&tls.key);
        let details = matches!(
            raw.connection_details,
            Some(raw::RawConnectionDetails::Fixed(_))
        );
        let demo = !raw.demo.is_usual();
        let remote: &[RawKind] = &[RawKind::Mirror, RawKind::Prometheus];
        let reached: &[RawKind] = &[RawKind::Mirror, RawKind::Prometheus, RawKind::CloudWatch];
        let every: &[RawKind] = &[
            RawKind::Demo,
            RawKind::Mirror,
            RawKind::Prometheus,
            RawKind::CloudWatch,
        ];
        let points: &[RawKind] = &[RawKind::Demo, RawKind::Mirror, RawKind::Prometheus];
        for (key, is_set, kinds) in [
            ("urls", !raw.urls.is_empty(), reached),
            ("headers", !raw.headers.is_empty(), reached),
            ("tls", secure, reached),
            ("proxy", raw.proxy.is_some(), reached),
            (
                "aws",
                raw.aws.is_set(),
                &[RawKind::Prometheus, RawKind::CloudWatch],
            ),
            (
                "batch",
                raw.batch != raw::RawBatch::default(),
                &[RawKind::CloudWatch],
            ),
            (
                "namespace",
                !raw.namespace.is_empty(),
                &[RawKind::CloudWatch],
            ),
            (
                "units",
                raw.units != raw::RawUnits::default(),
                &[RawKind::CloudWatch],
            ),
            ("aggregate", set.aggregate != usual.aggregate, points),
            (
                "multi_series",
                set.multi_series != usual.multi_series,
                every,
            ),
            // Only mirrors use it, but it is often copied along with a section.
            ("api_key", raw.api_key.is_some(), remote),
            ("connection_details", details, &[RawKind::Mirror]),
            ("demo", demo, &[RawKind::Demo]),
            (
                "max_series",
                !shown && limits.series != usual_limits.series,
                &[RawKind::Prometheus],
            ),
            (
                "max_span",
                !shown && limits.span != usual_limits.span,
                &[RawKind::Prometheus],
            ),
            (
                "step_alignment",
                !shown && set.step_alignment != usual.step_alignment,
                &[RawKind::Prometheus],
            ),
            (
                "method",
                !shown && set.method != usual.method,
                &[RawKind::Prometheus],
            ),
            (
                "parameters",
                !set.parameters.is_empty(),
                &[RawKind::Prometheus],
            ),
            (
                "replicas",
                !shown && set.replicas != usual.replicas,
                &[RawKind::Prometheus],
            ),
            (
                "replica_labels",
                !set.replica_labels.is_empty(),
                &[RawKind::Prometheus],
            ),
            (
                "instant_alignment",
                !shown && set.instant_alignment != usual.instant_alignment,
                &[RawKind::Prometheus],
            ),
        ] {
            if is_set && !kinds.contains(&kind) {
                let kinds: Vec<_> = kinds.iter().map(|k| format!("{:?}", k.name())).collect();
                let only = match &kinds[..] {
                    [first @ .., last] if !first.is_empty() => {
                        format!("{} and {last}", first.join(", "))
                    }
                    others => others.concat(),
                };
                let message = format!(
                    "has no meaning for an upstream of kind {:?}, only for {only}",
                    kind.name(),
                );
                return Err(self.error(place, key, message));
            }
        }
        self.replica_keys(place, raw)?;
        let plain = |url: &Text<TargetUrl>| !url.0.as_str().starts_with("https:");
        let usual_url = kind == RawKind::CloudWatch && raw.urls.is_empty();
        if secure && !usual_url && raw.urls.iter().all(plain) {
            let message = "has no effect without a URL that starts with https://";
            return Err(self.error(place, "tls", message));
        }
        Ok(())
    }

    /// Checks the settings for filling gaps from replicas.
    fn replica_keys(&self, place: Place, raw: &raw::RawUpstream) -> Result<(), ConfigError> {
        let labels = &raw.replica_labels;
        if raw.replicas.unwrap_or_default() == Replicas::Same {
            return match labels.is_empty() {
                true => Ok(()),
                false => {
                    let message = "has no effect without replicas = \"fill\"";
                    Err(self.error(place, "replica_labels", message))
                }
            };
        }
        if raw.urls.len() < 2 {
            let message = "\"fill\" needs two urls or more, one of each replica";
            return Err(self.error(place, "replicas", message));
        }
        for (index, label) in labels.iter().enumerate() {
            let message = match label.as_str() {
                "" => "must be the name of a label".to_owned(),
                "__name__" => "cannot be the name of the metric".to_owned(),
                _ if labels.iter().take(index).any(|earlier| earlier == label) => {
                    format!("{label:?} is listed twice")
                }
                _ => continue,
            };
            return Err(self.error(place, &format!("replica_labels[{index}]"), message));
        }
        Ok(())
    }

    /// Returns the distinct URLs of an upstream of `kind`, if that kind has any.
    pub(super) fn urls(
        &self,
        place: Place,
        kind: RawKind,
        raw: &[Text<TargetUrl>],
    ) -> Result<Vec<TargetUrl>, ConfigError> {
        let urls: Vec<TargetUrl> = raw.iter().map(|u| u.0.clone()).collect();
        if urls.is_empty() && !matches!(kind, RawKind::Demo) {
            let message = "must contain at least one URL, such as \"http://127.0.0.1:9090\"";
            return Err(self.error(place, "urls", message));
        }
        for (index, url) in urls.iter().enumerate() {
            if urls.iter().take(index).any(|earlier| earlier == url) {
                let message = format!("{:?} is listed twice", url.as_str());
                return Err(self.error(place, &format!("urls[{index}]"), message));
            }
        }
        Ok(urls)
    }

    /// Returns the headers to send with each request.
    pub(super) fn headers(
        &self,
        place: Place,
        raw: &BTreeMap<String, SecretSource>,
    ) -> Result<Vec<(HeaderName, Secret)>, ConfigError> {
        let mut names = BTreeSet::new();
        let mut headers = Vec::new();
        for (name, source) in raw {
            let key = format!("headers.{name}");
            let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
                // The name may be a whole header with its value, so it is cut.
                let shown = name.split([':', ' ', '=']).next().unwrap_or_default();
                let message = format!(
                    "{shown:?}… is not the name of a header; write it as {{ X-Scope-OrgID = \"tenant\" }}"
                );
                return Err(self.error(place, "headers", message));
            };
            if FRAMING.contains(&header) {
                let message = "is set by HTTP itself";
                return Err(self.error(place, &key, message));
            }
            if !names.insert(header.as_str().to_owned()) {
                let message = "is set twice; header names are case-insensitive";
                return Err(self.error(place, &key, message));
            }
            let secret = self.secret(place, &key, source)?;
            if HeaderValue::from_str(secret.reveal()).is_err() {
                let message = "contains characters that a header cannot have, such as line breaks";
                return Err(self.error(place, &key, message));
            }
            headers.push((header, secret));
        }
        Ok(headers)
    }
}
