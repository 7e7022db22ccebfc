//! The catalogue: the metrics that `ListMetrics` has for a scope, from which names and values of fields
//! are cut.

use std::collections::{BTreeMap, BTreeSet};

use super::expression::EXPRESSION;
use super::names::{Listed, WORDS, resource};
use crate::model::{
    Field, FieldNames, FieldType, FieldValue, FieldValues, FieldValuesQuery, heap_block,
};

/// The scope of one `ListMetrics`, which finds exact names and values only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CatalogueScope {
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    /// Dimensions with their values, if only one is possible; at most 10.
    pub(super) dimensions: Vec<(String, Option<String>)>,
    /// Set for the metrics that had data in the last 3 hours.
    pub(super) recent: bool,
}

impl CatalogueScope {
    /// Returns the scopes that hold all of this one, from the widest to itself.
    pub(super) fn widened(self) -> Vec<Self> {
        let all = Self {
            recent: self.recent,
            ..Self::default()
        };
        let namespace = Self {
            namespace: self.namespace.clone(),
            ..all.clone()
        };
        let mut scopes = vec![all, namespace, self];
        scopes.dedup();
        scopes
    }

    /// Returns the bytes that it holds on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, |t| heap_block(t.capacity()));
        let dimensions = self.dimensions.iter();
        let texts = dimensions.map(|(name, value)| heap_block(name.capacity()) + text(value));
        let table = heap_block(self.dimensions.capacity() * size_of::<(String, Option<String>)>());
        text(&self.namespace) + text(&self.name) + table + texts.sum::<usize>()
    }
}

/// The metrics of a scope. Each text is there once.
#[derive(Debug, Default)]
pub struct Catalogue {
    texts: Vec<Box<str>>,
    /// Of each metric its namespace, its name, the number of its dimensions, and of each of these the
    /// name and the value; texts by their positions.
    metrics: Vec<u32>,
    /// Whether there are more metrics than it has.
    partial: bool,
}

/// A metric of a catalogue.
pub(super) struct ListedMetric<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) dimensions: Vec<(&'a str, &'a str)>,
}

impl Catalogue {
    /// Returns the catalogue of `metrics`; `partial`, if these are not all.
    pub(super) fn of<'a>(metrics: impl Iterator<Item = ListedMetric<'a>>, partial: bool) -> Self {
        let mut known: BTreeMap<&'a str, u32> = BTreeMap::new();
        let mut catalogue = Self {
            partial,
            ..Self::default()
        };
        for metric in metrics {
            let texts = &mut catalogue.texts;
            let mut place = |text: &'a str| {
                *known.entry(text).or_insert_with(|| {
                    texts.push(text.into());
                    u32::try_from(texts.len() - 1).unwrap_or(u32::MAX)
                })
            };
            let head = [place(metric.namespace), place(metric.name)];
            let pairs = metric
                .dimensions
                .iter()
                .flat_map(|(name, value)| [*name, *value]);
            let pairs: Vec<u32> = pairs.map(&mut place).collect();
            catalogue.metrics.extend(head);
            let dimensions = u32::try_from(metric.dimensions.len()).unwrap_or(u32::MAX);
            catalogue.metrics.push(dimensions);
            catalogue.metrics.extend(pairs);
        }
        catalogue.texts.shrink_to_fit();
        catalogue.metrics.shrink_to_fit();
        catalogue
    }

    fn text(&self, at: u32) -> &str {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        self.texts.get(at).map_or("", |text| text)
    }

    fn metrics(&self) -> impl Iterator<Item = ListedMetric<'_>> {
        let mut rest = &self.metrics[..];
        std::iter::from_fn(move || {
            let (&[namespace, name, dimensions], after) = rest.split_first_chunk::<3>()?;
            let dimensions = usize::try_from(dimensions).unwrap_or(usize::MAX);
            let (pairs, after) = after.split_at_checked(dimensions.checked_mul(2)?)?;
            rest = after;
            let (pairs, _) = pairs.as_chunks::<2>();
            let pairs = pairs.iter();
            Some(ListedMetric {
                namespace: self.text(namespace),
                name: self.text(name),
                dimensions: pairs
                    .map(|[name, value]| (self.text(*name), self.text(*value)))
                    .collect(),
            })
        })
    }

    /// Returns whether there are more metrics than it has.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// Returns the work that a list of it takes, as the number of texts that are looked at.
    pub fn len(&self) -> usize {
        self.metrics.len()
    }

    /// Returns whether it has no metrics.
    pub fn is_empty(&self) -> bool {
        self.metrics.is_empty()
    }

    /// Returns the bytes that it holds on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        let texts: usize = self.texts.iter().map(|text| heap_block(text.len())).sum();
        let table = heap_block(self.texts.capacity() * size_of::<Box<str>>());
        texts + table + heap_block(self.metrics.capacity() * size_of::<u32>())
    }

    /// Returns the names of fields that the metrics of `listed` have.
    pub(super) fn names(&self, listed: &Listed) -> FieldNames {
        let mut texts: BTreeSet<String> = BTreeSet::new();
        let mut numbers: BTreeSet<&str> = BTreeSet::new();
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        for metric in self.metrics().filter(|m| listed.takes(m)) {
            numbers.insert(metric.name);
            for (name, _) in metric.dimensions {
                if seen.insert(name) {
                    texts.insert(match WORDS.contains(&name) {
                        true => format!(":{name}"),
                        false => name.to_owned(),
                    });
                }
            }
        }
        let words = WORDS.iter().chain([&EXPRESSION]);
        let mut fields: Vec<Field> = words.map(|w| Field::text(*w)).collect();
        fields.extend(texts.into_iter().map(Field::text));
        // StackState offers these as the metric field.
        fields.extend(numbers.into_iter().map(|name| Field {
            name: name.to_owned(),
            kind: FieldType::Number,
            classified: false,
        }));
        FieldNames {
            fields,
            partial: self.partial,
        }
    }

    /// Returns the values of the field of `query` that the metrics of `listed` have.
    pub(super) fn values(&self, listed: &Listed, query: &FieldValuesQuery) -> FieldValues {
        let field = &*query.field.name;
        let dimension = field.strip_prefix(':').unwrap_or(field);
        let mut values: BTreeSet<&str> = BTreeSet::new();
        for metric in self.metrics().filter(|m| listed.takes(m)) {
            let dimension = match field {
                "Namespace" => {
                    values.insert(metric.namespace);
                    continue;
                }
                "MetricName" => {
                    values.insert(metric.name);
                    continue;
                }
                "Resource" => resource(metric.namespace),
                _ => dimension,
            };
            let own = metric.dimensions.into_iter();
            values.extend(
                own.filter(|(name, _)| *name == dimension)
                    .map(|(_, value)| value),
            );
        }
        let values = values
            .into_iter()
            .map(|v| FieldValue::Complete(v.to_owned()));
        FieldValues {
            values: values.collect(),
            partial: self.partial,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_come_out_as_they_went_in() {
        let metric = |namespace, name, dimensions: &[(&'static str, &'static str)]| ListedMetric {
            namespace,
            name,
            dimensions: dimensions.to_vec(),
        };
        let metrics = || {
            [
                metric("A", "x", &[]),
                metric("A", "y", &[("d", "1"), ("e", "x")]),
                metric("B", "x", &[("d", "2")]),
            ]
        };
        let catalogue = Catalogue::of(metrics().into_iter(), true);
        assert!(catalogue.is_partial());
        assert_eq!(catalogue.texts.len(), 8, "each text once");
        let flat = |m: ListedMetric<'_>| format!("{} {} {:?}", m.namespace, m.name, m.dimensions);
        let read: Vec<String> = catalogue.metrics().map(flat).collect();
        let expected: Vec<String> = metrics().into_iter().map(flat).collect();
        assert_eq!(read, expected);
        assert!(catalogue.heap_bytes() > 100);
    }

    #[test]
    fn scopes_are_widened_without_repeats() {
        let of = |namespace: Option<&str>, name: Option<&str>| CatalogueScope {
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            recent: true,
            ..CatalogueScope::default()
        };
        assert_eq!(of(None, None).widened(), [of(None, None)]);
        let both = of(Some("N"), Some("m"));
        let wide = [of(None, None), of(Some("N"), None), both.clone()];
        assert_eq!(both.widened(), wide);
        assert_eq!(of(Some("N"), None).widened(), wide[..2]);
        assert_eq!(
            of(None, Some("m")).widened(),
            [of(None, None), of(None, Some("m"))]
        );
    }
}
