//! Keys that only some kinds of upstream have: where it is, and what it is sent.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderName, HeaderValue, header};

use super::{Checker, ConfigError, Place};
use crate::config::raw::{self, RawKind};
use crate::config::values::{Secret, SecretSource, Text};
use crate::model::TargetUrl;

/// Headers that say how a message is framed, which is for HTTP alone to say (RFC 9110, 7.6.1;
/// RFC 9112, 6).
const FRAMING: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

impl Checker<'_> {
    /// An error about a key that means nothing to the kind of the upstream; one that has its
    /// default, as in a section that was copied, does no harm.
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
        for (key, is_set, kinds) in [
            ("urls", !raw.urls.is_empty(), remote),
            ("headers", !raw.headers.is_empty(), remote),
            ("tls", secure, remote),
            ("proxy", raw.proxy.is_some(), remote),
            ("aws", raw.aws.is_set(), &[RawKind::Prometheus]),
            // A store that is no mirror is not asked for it, but sections are copied with it.
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
        ] {
            if is_set && !kinds.contains(&kind) {
                let kinds: Vec<_> = kinds.iter().map(|k| format!("{:?}", k.name())).collect();
                let message = format!(
                    "means nothing to an upstream of kind {:?}, only to {}",
                    kind.name(),
                    kinds.join(" and "),
                );
                return Err(self.error(place, key, message));
            }
        }
        let plain = |url: &Text<TargetUrl>| !url.0.as_str().starts_with("https:");
        if secure && raw.urls.iter().all(plain) {
            let message = "means nothing without a URL that starts with https://";
            return Err(self.error(place, "tls", message));
        }
        Ok(())
    }

    /// Where an upstream of `kind` is: nowhere, or at URLs that differ.
    pub(super) fn urls(
        &self,
        place: Place,
        kind: RawKind,
        raw: &[Text<TargetUrl>],
    ) -> Result<Vec<TargetUrl>, ConfigError> {
        let urls: Vec<TargetUrl> = raw.iter().map(|u| u.0.clone()).collect();
        if urls.is_empty() && !matches!(kind, RawKind::Demo) {
            let message = "must hold at least one URL, such as \"http://127.0.0.1:9090\"";
            return Err(self.error(place, "urls", message));
        }
        for (index, url) in urls.iter().enumerate() {
            if urls.iter().take(index).any(|earlier| earlier == url) {
                let message = format!("{:?} is there already", url.as_str());
                return Err(self.error(place, &format!("urls[{index}]"), message));
            }
        }
        Ok(urls)
    }

    /// What is sent with each request.
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
                // Who writes the whole header here writes its value too.
                let shown = name.split([':', ' ', '=']).next().unwrap_or_default();
                let message = format!(
                    "{shown:?}… is not the name of a header; write it as {{ X-Scope-OrgID = \"tenant\" }}"
                );
                return Err(self.error(place, "headers", message));
            };
            if FRAMING.contains(&header) {
                let message = "is a header that HTTP itself sets";
                return Err(self.error(place, &key, message));
            }
            if !names.insert(header.as_str().to_owned()) {
                let message = "is there twice; capital letters make no difference in headers";
                return Err(self.error(place, &key, message));
            }
            let secret = self.secret(place, &key, source)?;
            if HeaderValue::from_str(secret.reveal()).is_err() {
                let message = "holds characters that a header cannot carry, such as line breaks";
                return Err(self.error(place, &key, message));
            }
            headers.push((header, secret));
        }
        Ok(headers)
    }
}
