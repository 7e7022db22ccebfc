//! Reads the settings for signing requests to AWS.

use std::time::Duration;

use http::header::AUTHORIZATION;

use super::{Checker, ConfigError, Place};
use crate::config::aws::{Aws, AwsKeys, AwsRole};
use crate::config::raw;
use crate::config::{Upstream, UpstreamKind};
use crate::model::{
    Batching, MetricPace, NamespaceRule, Step, TargetUrl, Units, is_region, partition,
};

impl Checker<'_> {
    /// Returns the addresses of an upstream of kind `cloudwatch`, by default that of its region,
    /// after checking its `aws` and `interval`.
    pub(super) fn cloudwatch(
        &self,
        place: Place,
        raw: &raw::RawUpstream,
    ) -> Result<Vec<TargetUrl>, ConfigError> {
        let Some(aws) = self.aws(place, &raw.aws, Some("monitoring"))? else {
            let message = "is needed, such as { region = \"eu-west-1\" }";
            return Err(self.error(place, "aws", message));
        };
        if let Some(interval) = &raw.interval {
            self.period(place, "interval", interval.0)?;
        }
        if !raw.urls.is_empty() {
            return self.urls(place, raw::RawKind::CloudWatch, &raw.urls);
        }
        let (_, suffix) = partition(&aws.region);
        let url = format!("https://monitoring.{}.{suffix}", aws.region);
        let url = TargetUrl::parse(&url).map_err(|e| self.error(place, "aws.region", e))?;
        Ok(vec![url])
    }

    /// Returns `period` if CloudWatch supports it.
    fn period(&self, place: Place, key: &str, period: Duration) -> Result<Step, ConfigError> {
        let millis = period.as_millis();
        let good = matches!(millis, 1000 | 5000 | 10_000 | 20_000 | 30_000)
            || (millis > 0 && millis.is_multiple_of(60_000));
        let step = i64::try_from(millis).ok().and_then(Step::new);
        step.filter(|_| good).ok_or_else(|| {
            let message =
                "must be one of CloudWatch's periods: 1s, 5s, 10s, 20s, 30s, or whole minutes";
            self.error(place, key, message)
        })
    }

    /// Returns the rules for namespaces, those in the section first.
    pub(super) fn rules(
        &self,
        place: Place,
        raw: &raw::RawUpstream,
    ) -> Result<Vec<NamespaceRule>, ConfigError> {
        let kind = UpstreamKind::CloudWatch {
            urls: Vec::new(),
            units: Units::default(),
            batch: Batching::default(),
            rules: Vec::new(),
        };
        let usual = raw.settings(String::new(), kind);
        let rule = |(index, rule): (usize, &raw::RawNamespace)| {
            let key = |name: &str| format!("namespace[{index}].{name}");
            let namespace = rule.name.clone().filter(|name| !name.is_empty());
            let namespace = namespace.ok_or_else(|| {
                let message = "is needed: a namespace of CloudWatch, such as \"AWS/EC2\"";
                self.error(place, &key("name"), message)
            })?;
            if rule.interval.is_none() && rule.settle.is_none() && rule.refresh.is_none() {
                let message = "changes nothing: set interval, settle or refresh";
                return Err(self.error(place, &key("name"), message));
            }
            Ok(NamespaceRule {
                namespace,
                metrics: rule.metrics.clone(),
                pace: MetricPace {
                    interval: match &rule.interval {
                        Some(interval) => self.period(place, &key("interval"), interval.0)?,
                        None => usual.reading.interval,
                    },
                    settle: match &rule.settle {
                        Some(settle) => raw::millis(settle.0),
                        None => usual.freshness.settle,
                    },
                    refresh: rule
                        .refresh
                        .as_ref()
                        .map_or(usual.freshness.refresh, |t| t.0),
                },
            })
        };
        let own = raw.namespace.iter().enumerate().map(rule);
        let built_in = NamespaceRule::built_in().into_iter().map(Ok);
        own.chain(built_in).collect()
    }

    /// Returns the units that an upstream bills.
    pub(super) fn units(&self, place: Place, raw: &raw::RawUnits) -> Result<Units, ConfigError> {
        for (key, value) in [
            ("units.per_hour", raw.per_hour),
            ("units.per_day", raw.per_day),
            ("units.per_month", raw.per_month),
            ("units.statistics", raw.statistics),
        ] {
            self.at_least_one(place, key, value.unwrap_or(1))?;
        }
        let usual = Units::default();
        let price = raw.price.unwrap_or(usual.price);
        if !(0.0..=1_000_000.0).contains(&price) {
            let message = "must be from 0 to 1000000, the price of one unit";
            return Err(self.error(place, "units.price", message));
        }
        let currency = raw.currency.clone().unwrap_or(usual.currency);
        let letters = currency.bytes().all(|b| b.is_ascii_alphanumeric());
        if !((1..=10).contains(&currency.len()) && letters) {
            let message = "must be 1 to 10 letters and digits, such as \"USD\"";
            return Err(self.error(place, "units.currency", message));
        }
        Ok(Units {
            per_hour: raw.per_hour,
            per_day: raw.per_day,
            per_month: raw.per_month,
            price,
            currency,
            statistics: raw.statistics.unwrap_or(usual.statistics),
        })
    }

    /// Returns how calls of several fetches are combined.
    pub(super) fn batch(&self, place: Place, raw: &raw::RawBatch) -> Result<Batching, ConfigError> {
        let usual = Batching::default();
        let window = raw.window.as_ref().map_or(usual.window, |t| t.0);
        if window > Duration::from_secs(1) {
            let message = "must be at most 1s: each call waits this long for more queries";
            return Err(self.error(place, "batch.window", message));
        }
        let queries = match raw.queries {
            None => usual.queries,
            // CloudWatch's limit is 500, and a summary takes four.
            Some(n @ 4..=500) => n as usize,
            Some(_) => return Err(self.error(place, "batch.queries", "must be from 4 to 500")),
        };
        Ok(Batching { window, queries })
    }

    /// Returns how requests to the upstream of `settings` are signed; `None` if they are not.
    pub(super) fn signed(
        &self,
        place: Place,
        raw: &raw::RawUpstream,
        settings: &Upstream,
    ) -> Result<Option<Aws>, ConfigError> {
        let service = match settings.kind {
            UpstreamKind::CloudWatch { .. } => Some("monitoring"),
            _ => None,
        };
        let aws = self.aws(place, &raw.aws, service)?;
        if aws.is_some() {
            self.signable(place, settings.kind.urls())?;
            let mut names = settings.headers.iter().map(|(name, _)| name);
            if names.any(|name| *name == AUTHORIZATION) {
                let message = "is set by the signature (aws)";
                return Err(self.error(place, "headers.Authorization", message));
            }
        }
        Ok(aws)
    }

    /// Returns how requests for `service` are signed, if `aws` is set; without a `service`, the
    /// section has to name one.
    fn aws(
        &self,
        place: Place,
        raw: &raw::RawAws,
        service: Option<&str>,
    ) -> Result<Option<Aws>, ConfigError> {
        if !raw.is_set() {
            return Ok(None);
        }
        let wrong = |key: &str, message: String| self.error(place, &format!("aws.{key}"), message);
        if !cfg!(feature = "aws") {
            let message = "this build cannot sign requests to AWS; build with: cargo build --release --features aws";
            return Err(self.error(place, "aws", message));
        }
        let region = raw.region.as_deref().unwrap_or_default();
        if !is_region(region) {
            let message = match region {
                "" => "is needed, such as \"eu-west-1\"".to_owned(),
                _ => format!("{region:?} is not a region; write it as \"eu-west-1\""),
            };
            return Err(wrong("region", message));
        }
        let service = match (&raw.service, service) {
            (Some(own), None) => {
                let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
                if own.is_empty() || !own.chars().all(plain) {
                    let message = format!(
                        "{own:?} is not a service; write it as \"aps\" for Amazon Managed Prometheus or \"monitoring\" for CloudWatch"
                    );
                    return Err(wrong("service", message));
                }
                own.clone()
            }
            (None, None) => {
                let message = "is needed: \"aps\" for Amazon Managed Prometheus, \"monitoring\" for CloudWatch";
                return Err(wrong("service", message.into()));
            }
            (Some(_), Some(_)) => {
                let message = "is set by the kind of the upstream; remove it";
                return Err(wrong("service", message.into()));
            }
            (None, Some(service)) => service.to_owned(),
        };
        if let Some(profile) = &raw.profile
            && profile.is_empty()
        {
            return Err(wrong("profile", "must not be empty".into()));
        }
        let environment = self.env.iter();
        let environment =
            environment.filter(|(name, _)| *name == "HOME" || name.starts_with("AWS_"));
        let environment =
            environment.map(|(n, v)| (n.clone(), crate::config::Secret::new(v.as_str())));
        Ok(Some(Aws {
            region: region.to_owned(),
            service,
            keys: self.aws_keys(place, raw)?,
            profile: raw.profile.clone(),
            role: self.aws_role(place, raw, region)?,
            sts_url: raw.sts_url.as_ref().map(|url| url.0.clone()),
            environment: environment.collect(),
        }))
    }

    fn aws_keys(&self, place: Place, raw: &raw::RawAws) -> Result<Option<AwsKeys>, ConfigError> {
        let secret = |key: &str, source: &_| {
            let key = format!("aws.{key}");
            let secret = self.secret(place, &key, source)?;
            let text = secret.reveal();
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
            match plain {
                true => Ok(secret),
                false => Err(self.error(place, &key, "must be text without spaces")),
            }
        };
        let needed = |key: &str, with: &str| {
            Err(self.error(
                place,
                &format!("aws.{key}"),
                format!("is needed with {with}"),
            ))
        };
        match (&raw.access_key, &raw.secret_key) {
            (Some(_), Some(_)) if raw.profile.is_some() => {
                let message =
                    "has no effect with access_key: the keys are used, not those of a profile";
                Err(self.error(place, "aws.profile", message))
            }
            (Some(access), Some(own)) => Ok(Some(AwsKeys {
                access_key: secret("access_key", access)?,
                secret_key: secret("secret_key", own)?,
                session_token: match &raw.session_token {
                    Some(token) => Some(secret("session_token", token)?),
                    None => None,
                },
            })),
            (Some(_), None) => needed("secret_key", "access_key"),
            (None, Some(_)) => needed("access_key", "secret_key"),
            (None, None) if raw.session_token.is_some() => needed("access_key", "session_token"),
            (None, None) => Ok(None),
        }
    }

    fn aws_role(
        &self,
        place: Place,
        raw: &raw::RawAws,
        region: &str,
    ) -> Result<Option<AwsRole>, ConfigError> {
        let wrong =
            |key: &str, message: String| Err(self.error(place, &format!("aws.{key}"), message));
        let Some(arn) = &raw.role else {
            for (key, is_set) in [
                ("external_id", raw.external_id.is_some()),
                ("session", raw.session.is_some()),
            ] {
                if is_set {
                    return wrong(key, "has no effect without role".into());
                }
            }
            return Ok(None);
        };
        let (expected, _) = partition(region);
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let account = |a: &str| a.len() == 12 && a.bytes().all(|b| b.is_ascii_digit());
        match parts[..] {
            ["arn", partition, "iam", "", id, role]
                if account(id) && role.len() > 5 && role.starts_with("role/") =>
            {
                if partition != expected {
                    let message =
                        format!("is one of {partition:?}, the region is one of {expected:?}");
                    return wrong("role", message);
                }
            }
            _ => {
                let message = format!(
                    "{arn:?} is not the ARN of a role; write it as \"arn:{expected}:iam::123456789012:role/NAME\""
                );
                return wrong("role", message);
            }
        }
        let made_of = |text: &str, extra: &str| {
            text.chars()
                .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        };
        if let Some(id) = &raw.external_id
            && !((2..=1224).contains(&id.len()) && made_of(id, "_+=,.@:/-"))
        {
            let message = "must be 2 to 1224 letters, digits and any of _+=,.@:/-";
            return wrong("external_id", message.into());
        }
        let session = raw.session.as_deref().unwrap_or("heliostat");
        if !((2..=64).contains(&session.len()) && made_of(session, "_+=,.@-")) {
            let message = "must be 2 to 64 letters, digits and any of _+=,.@-";
            return wrong("session", message.into());
        }
        Ok(Some(AwsRole {
            arn: arn.clone(),
            external_id: raw.external_id.clone(),
            session: session.to_owned(),
        }))
    }

    /// Returns an error about a URL for which no signature would be valid: AWS signs paths without
    /// empty segments.
    fn signable(&self, place: Place, urls: &[TargetUrl]) -> Result<(), ConfigError> {
        for (index, url) in urls.iter().enumerate() {
            let path = url.as_str().split_once("://").map_or("", |(_, rest)| rest);
            if path.contains("//") {
                let message = "must not have // in its path: AWS would refuse the signature";
                return Err(self.error(place, &format!("urls[{index}]"), message));
            }
        }
        Ok(())
    }
}
