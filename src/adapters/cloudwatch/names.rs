//! From conditions to metrics.

use std::collections::BTreeMap;

use super::catalogue::{CatalogueScope, ListedMetric};
use super::expression::EXPRESSION;
use crate::model::{Condition, Error, Kind, Scalar, Selector, Statistic, Test, is_region};

/// Keys of conditions that are not dimensions. A dimension with one of these names is written with
/// a colon before it.
pub(super) const WORDS: [&str; 7] = [
    "Namespace",
    "MetricName",
    "Statistic",
    "Region",
    "Account",
    "Unit",
    "Resource",
];

/// The dimension that `Resource` stands for, by namespace, as in StackState's own CloudWatch
/// streams.
const RESOURCES: [(&str, &str); 22] = [
    ("AWS/ApiGateway", "ApiName"),
    ("AWS/ApplicationELB", "LoadBalancer"),
    ("AWS/AutoScaling", "AutoScalingGroupName"),
    ("AWS/DynamoDB", "TableName"),
    ("AWS/EBS", "VolumeId"),
    ("AWS/EC2", "InstanceId"),
    ("AWS/ECS", "ClusterName"),
    ("AWS/ELB", "LoadBalancerName"),
    ("AWS/ElastiCache", "CacheClusterId"),
    ("AWS/Firehose", "DeliveryStreamName"),
    ("AWS/Kinesis", "StreamName"),
    ("AWS/Lambda", "FunctionName"),
    ("AWS/NetworkELB", "LoadBalancer"),
    ("AWS/RDS", "DBInstanceIdentifier"),
    ("AWS/Redshift", "ClusterIdentifier"),
    ("AWS/Route53", "HealthCheckId"),
    ("AWS/S3", "BucketName"),
    ("AWS/SNS", "TopicName"),
    ("AWS/SQS", "QueueName"),
    ("AWS/States", "StateMachineArn"),
    ("AWS/VPN", "VpnId"),
    ("AWS/Usage", "Resource"),
];

/// Most metrics that one selector may select.
const MOST_METRICS: usize = 20;

/// Most dimensions of a metric, and the longest names and values, in characters.
const MOST_DIMENSIONS: usize = 30;
const LONGEST_NAME: usize = 255;
const LONGEST_VALUE: usize = 1024;

/// One metric of CloudWatch: a name, and exactly these dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Metric {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) dimensions: Vec<(String, String)>,
    pub(super) unit: Option<String>,
    pub(super) account: Option<String>,
}

impl Metric {
    /// Returns the bytes of its names and values.
    pub(super) fn bytes(&self) -> usize {
        let pairs = self.dimensions.iter().map(|(n, v)| n.len() + v.len() + 25);
        let others = [&self.unit, &self.account].into_iter().flatten();
        let others = others.map(String::len).sum::<usize>();
        self.namespace.len() + self.name.len() + others + pairs.sum::<usize>()
    }
}

/// The meaning of a selector.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Named {
    namespace: String,
    name: String,
    unit: Option<String>,
    account: Option<String>,
    /// The statistic that the series is; without it, the series is the samples themselves.
    pub(super) statistic: Option<String>,
    /// Each dimension with the values that it may have.
    dimensions: BTreeMap<String, Vec<String>>,
}

/// Returns the error of a query that names no metric there can be.
pub(super) fn unknown(message: impl Into<String>) -> Error {
    Error::new(Kind::MetricNotFound, message)
}

impl Named {
    /// Reads `selector` and `metric_field` as an upstream in `region` understands them.
    pub(super) fn read(
        selector: &Selector,
        metric_field: Option<&str>,
        region: &str,
    ) -> Result<Self, Error> {
        let mut keys: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for Condition { key, test } in selector.conditions() {
            let values: Vec<String> = test.values().iter().map(Scalar::to_string).collect();
            // Two conditions of one key hold where both do.
            keys.entry(key)
                .and_modify(|both| both.retain(|v| values.contains(v)))
                .or_insert(values);
        }
        let one = |key: &str| match keys.get(key).map(Vec::as_slice) {
            None => Ok(None),
            Some([value]) => Ok(Some(value.clone())),
            Some(_) => Err(unknown(format!(
                "{key} takes one value; only dimensions may have several"
            ))),
        };
        let namespace = one("Namespace")?.filter(|n| !n.is_empty());
        let namespace = namespace.ok_or_else(|| {
            unknown("the condition Namespace is needed, such as \"AWS/Lambda\"; the metric's name is the metric field")
        })?;
        let name = match (metric_field, one("MetricName")?) {
            (Some(field), Some(name)) if field != name => {
                return Err(name_error(format!(
                    "names the metric {field:?}, the condition MetricName {name:?}"
                )));
            }
            (Some(field), _) if !field.is_empty() => field.to_owned(),
            (_, Some(name)) if !name.is_empty() => name,
            _ => {
                return Err(name_error(
                    "is needed: the name of the metric, such as \"Duration\"".into(),
                ));
            }
        };
        let mut named = Self {
            unit: one("Unit")?,
            account: one("Account")?,
            statistic: one("Statistic")?,
            dimensions: BTreeMap::new(),
            namespace,
            name,
        };
        for (key, values) in keys {
            let dimension = match key {
                "Region" if values.iter().any(|v| is_region(v)) => {
                    if values.iter().any(|v| v == region) {
                        continue;
                    }
                    return Err(unknown(format!(
                        "this upstream has the metrics of {region}; configure another upstream for another region"
                    )));
                }
                "Resource" => resource(&named.namespace),
                "Region" => key,
                _ if WORDS.contains(&key) => continue,
                _ => key.strip_prefix(':').unwrap_or(key),
            };
            let known = named.dimensions.entry(dimension.to_owned());
            known
                .and_modify(|both| both.retain(|v| values.contains(v)))
                .or_insert(values);
        }
        named.check()?;
        Ok(named)
    }

    fn check(&self) -> Result<(), Error> {
        let text = |what: &str, text: &str, longest: usize| {
            let good = (1..=longest).contains(&text.len())
                && text.bytes().all(|b| (b' '..=b'~').contains(&b));
            let message = || {
                unknown(format!(
                    "CloudWatch has no {what} of this form: 1 to {longest} ASCII characters are allowed"
                ))
            };
            if good { Ok(()) } else { Err(message()) }
        };
        text("namespace", &self.namespace, LONGEST_NAME)?;
        text("metric", &self.name, LONGEST_NAME)?;
        for (name, values) in &self.dimensions {
            text("dimension", name, LONGEST_NAME)?;
            for value in values {
                text("value of a dimension", value, LONGEST_VALUE)?;
            }
        }
        if self.dimensions.len() > MOST_DIMENSIONS {
            return Err(unknown(format!(
                "a metric has at most {MOST_DIMENSIONS} dimensions"
            )));
        }
        let metrics = self.dimensions.values().map(Vec::len);
        if metrics.fold(1usize, usize::saturating_mul) > MOST_METRICS {
            return Err(unknown(format!(
                "the sets of values select more than {MOST_METRICS} metrics"
            )));
        }
        if let Some(account) = &self.account
            && !(account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit()))
        {
            return Err(unknown("Account takes the 12 digits of an account's id"));
        }
        if let Some(statistic) = &self.statistic
            && basic(statistic).is_none()
            && !is_extended(statistic)
        {
            return Err(unknown(
                "Statistic takes Average, Sum, Minimum, Maximum, SampleCount, or an extended statistic such as p99, tm95, IQM or TM(2%:98%)",
            ));
        }
        if let Some(unit) = &self.unit {
            text("unit", unit, LONGEST_NAME)?;
        }
        Ok(())
    }

    /// Returns the conditions and the metric field in the spelling that all equivalent queries
    /// share.
    pub(super) fn canonical(self) -> (Selector, String) {
        let is = |key: &str, value: String| Condition {
            key: key.to_owned(),
            test: Test::Is(Scalar::String(value)),
        };
        let mut conditions = vec![is("Namespace", self.namespace)];
        for (key, value) in [
            ("Unit", self.unit),
            ("Account", self.account),
            ("Statistic", self.statistic),
        ] {
            conditions.extend(value.map(|value| is(key, value)));
        }
        for (name, values) in self.dimensions {
            let word = WORDS.contains(&name.as_str());
            conditions.push(Condition {
                key: if word { format!(":{name}") } else { name },
                test: Test::In(values.into_iter().map(Scalar::String).collect()),
            });
        }
        (Selector::new(conditions), self.name)
    }

    /// Returns the metrics whose samples it selects; none where a set is empty.
    pub(super) fn metrics(&self) -> Vec<Metric> {
        let mut metrics = vec![Metric {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            dimensions: Vec::new(),
            unit: self.unit.clone(),
            account: self.account.clone(),
        }];
        for (name, values) in &self.dimensions {
            let with = |metric: &Metric, value: &String| {
                let mut metric = metric.clone();
                metric.dimensions.push((name.clone(), value.clone()));
                metric
            };
            metrics = metrics
                .iter()
                .flat_map(|metric| values.iter().map(move |value| with(metric, value)))
                .collect();
        }
        metrics
    }
}

/// The metrics of a list.
#[derive(Clone, Debug, Default)]
pub(super) struct Listed {
    /// Namespaces, names, and values of dimensions that the metrics may have, where they are limited.
    namespaces: Option<Vec<String>>,
    names: Option<Vec<String>>,
    dimensions: Vec<(String, Vec<String>)>,
}

/// Most dimensions that a list can be requested for.
const MOST_LISTED: usize = 10;

impl Listed {
    /// Reads the conditions of `selector`, of which none is needed.
    pub(super) fn read(selector: &Selector, region: &str) -> Result<Self, Error> {
        let mut listed = Self::default();
        let texts = |test: &Test| {
            let values = test.values().iter().map(Scalar::to_string);
            values.collect::<Vec<_>>()
        };
        let limit = |known: &mut Option<Vec<String>>, values: Vec<String>| match known {
            Some(known) => known.retain(|v| values.contains(v)),
            None => *known = Some(values),
        };
        // The namespace decides what Resource is.
        for Condition { key, test } in selector.conditions() {
            match &**key {
                "Namespace" => limit(&mut listed.namespaces, texts(test)),
                "MetricName" => limit(&mut listed.names, texts(test)),
                _ => {}
            }
        }
        for Condition { key, test } in selector.conditions() {
            let values = texts(test);
            let dimension = match &**key {
                EXPRESSION => continue,
                "Region" if values.iter().any(|v| is_region(v)) => {
                    if values.iter().any(|v| v == region) {
                        continue;
                    }
                    return Err(unknown(format!(
                        "this upstream has the metrics of {region}; configure another upstream for another region"
                    )));
                }
                "Region" => "Region",
                "Resource" => resource(listed.namespace().unwrap_or_default()),
                word if WORDS.contains(&word) => continue,
                other => other.strip_prefix(':').unwrap_or(other),
            };
            let mut known = listed.dimensions.iter_mut();
            match known.find(|(name, _)| name == dimension) {
                Some((_, both)) => both.retain(|v| values.contains(v)),
                None => listed.dimensions.push((dimension.to_owned(), values)),
            }
        }
        Ok(listed)
    }

    /// Returns its namespace, if only one is possible.
    fn namespace(&self) -> Option<&str> {
        only(self.namespaces.as_deref()?)
    }

    /// Returns the scope of the calls that find its metrics, and perhaps more: CloudWatch finds exact
    /// names and values only. `recent`, if only those with data in the last 3 hours are wanted.
    pub(super) fn scope(&self, recent: bool) -> CatalogueScope {
        let dimensions = self.dimensions.iter().take(MOST_LISTED);
        let dimensions =
            dimensions.map(|(name, values)| (name.clone(), only(values).map(str::to_owned)));
        CatalogueScope {
            namespace: self.namespace().map(str::to_owned),
            name: self.names.as_deref().and_then(only).map(str::to_owned),
            dimensions: dimensions.collect(),
            recent,
        }
    }

    /// Returns whether `metric` is one of them.
    pub(super) fn takes(&self, metric: &ListedMetric<'_>) -> bool {
        let among = |known: &Option<Vec<String>>, text: &str| {
            known
                .as_ref()
                .is_none_or(|known| known.iter().any(|k| k == text))
        };
        among(&self.namespaces, metric.namespace)
            && among(&self.names, metric.name)
            && self.dimensions.iter().all(|(name, values)| {
                let mut own = metric.dimensions.iter().filter(|(n, _)| n == name);
                own.any(|(_, value)| values.iter().any(|v| v == value))
            })
    }
}

/// Returns the value of `values`, if there is one only. CloudWatch refuses an empty one.
fn only(values: &[String]) -> Option<&str> {
    match values {
        [value] if !value.is_empty() => Some(value),
        _ => None,
    }
}

fn name_error(message: String) -> Error {
    let mut error = Error::new(Kind::InvalidRequest, message);
    error.field = Some("query.metricField".to_owned());
    error
}

/// Returns a metric for tests of the connection: CloudWatch's own calls.
pub(super) fn usage() -> Metric {
    Metric {
        namespace: "AWS/Usage".to_owned(),
        name: "CallCount".to_owned(),
        dimensions: Vec::new(),
        unit: None,
        account: None,
    }
}

/// Returns the dimension that `Resource` stands for in `namespace`.
pub(super) fn resource(namespace: &str) -> &'static str {
    let found = RESOURCES.iter().find(|(name, _)| *name == namespace);
    found.map_or("Resource", |(_, dimension)| dimension)
}

/// Returns the basic statistic called `name`, as the one that the summaries of a series are reduced
/// to.
pub(super) fn basic(name: &str) -> Option<Statistic> {
    Some(match name {
        "Average" => Statistic::Mean,
        "Sum" => Statistic::Sum,
        "Minimum" => Statistic::Min,
        "Maximum" => Statistic::Max,
        "SampleCount" => Statistic::Count,
        _ => return None,
    })
}

/// Returns whether `name` has the form of an extended statistic: `p99.9`, `tm95`, `IQM`,
/// `PR(0:100)`.
fn is_extended(name: &str) -> bool {
    let number = |text: &str| {
        let digits =
            |t: &str| !t.is_empty() && t.len() <= 10 && t.bytes().all(|b| b.is_ascii_digit());
        match text.split_once('.') {
            Some((whole, part)) => digits(whole) && digits(part),
            None => digits(text),
        }
    };
    let short = ["p", "tm", "tc", "ts", "wm"].into_iter();
    let mut short = short.filter_map(|start| name.strip_prefix(start));
    let bounds = |text: &str| {
        let bytes = text.bytes();
        text.contains(':')
            && bytes
                .clone()
                .all(|b| b.is_ascii_digit() || b".:%".contains(&b))
    };
    let long = ["PR(", "TM(", "TC(", "TS(", "WM("].into_iter();
    let mut long = long.filter_map(|start| name.strip_prefix(start)?.strip_suffix(')'));
    name.len() <= 40 && (name == "IQM" || short.any(number) || long.any(bounds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &[&str])]) -> Selector {
        let condition = |(key, values): &(&str, &[&str])| Condition {
            key: (*key).to_owned(),
            test: Test::In(values.iter().map(|v| Scalar::String((*v).into())).collect()),
        };
        Selector::new(pairs.iter().map(condition).collect())
    }

    fn canonical(pairs: &[(&str, &[&str])], field: Option<&str>) -> Result<String, Error> {
        let named = Named::read(&set(pairs), field, "eu-west-1")?;
        let (selector, name) = named.canonical();
        let text = selector.conditions().iter().map(|c| {
            let values: Vec<String> = c.test.values().iter().map(Scalar::to_string).collect();
            format!("{}={}", c.key, values.join("|"))
        });
        let text: Vec<String> = text.collect();
        Ok(format!("{name} {}", text.join(" ")))
    }

    #[test]
    fn equivalent_queries_have_one_canonical_form() {
        let expected = Ok("Duration FunctionName=f Namespace=AWS/Lambda".to_owned());
        let lambda: (&str, &[&str]) = ("Namespace", &["AWS/Lambda"]);
        for (pairs, field) in [
            (
                vec![("Resource", &["f"][..]), ("Region", &["eu-west-1"])],
                Some("Duration"),
            ),
            (
                vec![("FunctionName", &["f"][..]), ("MetricName", &["Duration"])],
                None,
            ),
            (vec![(":FunctionName", &["f"][..])], Some("Duration")),
            (
                vec![("Resource", &["f", "g"][..]), ("FunctionName", &["f"])],
                Some("Duration"),
            ),
        ] {
            let pairs: Vec<_> = pairs.into_iter().chain([lambda]).collect();
            assert_eq!(canonical(&pairs, field), expected, "{pairs:?}");
        }
        // A dimension of the name of a word keeps its colon; the form of a region decides.
        let front: (&str, &[&str]) = ("Namespace", &["AWS/CloudFront"]);
        assert_eq!(
            canonical(
                &[front, ("Region", &["Global"]), ("DistributionId", &["E1"])],
                Some("Requests")
            ),
            Ok("Requests :Region=Global DistributionId=E1 Namespace=AWS/CloudFront".to_owned())
        );
        assert_eq!(
            canonical(
                &[front, (":Region", &["Global"]), ("DistributionId", &["E1"])],
                Some("Requests")
            ),
            Ok("Requests :Region=Global DistributionId=E1 Namespace=AWS/CloudFront".to_owned())
        );
        assert_eq!(
            canonical(
                &[("Namespace", &["AWS/Usage"]), ("Resource", &["CallCount"])],
                Some("CallCount")
            ),
            Ok("CallCount :Resource=CallCount Namespace=AWS/Usage".to_owned())
        );
    }

    #[test]
    fn what_cannot_be_said_to_cloudwatch_is_refused_with_the_reason() {
        let lambda: (&str, &[&str]) = ("Namespace", &["AWS/Lambda"]);
        let many: Vec<String> = (0..21).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let long = "x".repeat(1025);
        for (pairs, field, expected) in [
            (vec![], Some("Duration"), "Namespace is needed"),
            (vec![lambda], None, "is needed: the name of the metric"),
            (
                vec![lambda, ("MetricName", &["A"])],
                Some("B"),
                "names the metric \"B\"",
            ),
            (
                vec![lambda, ("Region", &["us-east-1"])],
                Some("A"),
                "has the metrics of eu-west-1",
            ),
            (
                vec![("Namespace", &["A", "B"][..])],
                Some("A"),
                "Namespace takes one value",
            ),
            (
                vec![lambda, ("F", &many)],
                Some("A"),
                "more than 20 metrics",
            ),
            (vec![lambda, ("F", &["é"])], Some("A"), "ASCII"),
            (vec![lambda, ("F", &[&long])], Some("A"), "1 to 1024"),
            (vec![lambda, ("Account", &["12"])], Some("A"), "12 digits"),
            (
                vec![lambda, ("Statistic", &["p"])],
                Some("A"),
                "extended statistic",
            ),
        ] {
            let error = canonical(&pairs, field).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        for good in [
            "p99",
            "p99.9",
            "tm95",
            "IQM",
            "TM(2%:98%)",
            "PR(:300)",
            "wm90",
            "Average",
        ] {
            assert!(
                canonical(&[lambda, ("Statistic", &[good])], Some("A")).is_ok(),
                "{good}"
            );
        }
    }

    #[test]
    fn a_list_names_each_dimension_once_and_no_empty_value() {
        let scope = |pairs: &[(&str, &[&str])]| {
            let listed = Listed::read(&set(pairs), "eu-west-1").unwrap();
            listed.scope(false)
        };
        let pair = |n: &str, v: Option<&str>| (n.to_owned(), v.map(str::to_owned));
        let both = scope(&[("A", &["1", "2"]), (":A", &["2", "3"]), ("B", &[""])]);
        assert_eq!(both.dimensions, [pair("A", Some("2")), pair("B", None)]);
        let empty = scope(&[("Namespace", &[""]), ("MetricName", &[""])]);
        assert_eq!(empty, CatalogueScope::default());
    }

    #[test]
    fn sets_mean_each_of_their_metrics() {
        let selector = set(&[
            ("Namespace", &["N"]),
            ("A", &["1", "2"]),
            ("B", &["3", "4", "5"]),
        ]);
        let named = Named::read(&selector, Some("m"), "eu-west-1").unwrap();
        let metrics = named.metrics();
        assert_eq!(metrics.len(), 6);
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(metrics[4].dimensions, [pair("A", "2"), pair("B", "4")]);
        let nothing = set(&[("Namespace", &["N"]), ("A", &[])]);
        let named = Named::read(&nothing, Some("m"), "eu-west-1").unwrap();
        assert!(named.metrics().is_empty());
    }
}
