//! The labels of a series.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

/// The most labels of one series.
const MOST: usize = 4096;

/// Returns the most labels that an answer of at most `max_series` series may have in total: 32 for
/// each, and a thousand more. A short label takes a hundred bytes in memory.
pub fn most_labels(max_series: usize) -> usize {
    max_series.saturating_mul(32).saturating_add(1000)
}

/// The labels of a series, sorted by name.
pub(super) struct LabelMap(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for LabelMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(AllLabels)
    }
}

struct AllLabels;

impl<'de> Visitor<'de> for AllLabels {
    type Value = LabelMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MOST} labels")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LabelMap, A::Error> {
        let mut labels = BTreeMap::new();
        while let Some((name, value)) = map.next_entry()? {
            if labels.len() >= MOST {
                return Err(A::Error::invalid_length(MOST + 1, &self));
            }
            labels.insert(name, value);
        }
        Ok(LabelMap(labels))
    }
}
