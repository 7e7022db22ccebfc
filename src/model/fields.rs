//! Fields, their values, and the folding of long lists of values into prefixes.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldType {
    /// Text.
    String,
    /// A number.
    Number,
    /// True or false.
    Boolean,
}

/// A field that conditions can name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: FieldType,
    /// Whether its values are confidential.
    pub classified: bool,
}

impl Field {
    /// Returns a text field that is not classified.
    pub fn text(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: FieldType::String,
            classified: false,
        }
    }
}

/// One entry of a list of field values.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FieldValue {
    /// A value.
    Complete(String),
    /// Stands for every value that starts with this text; written with `*` at its end.
    Prefix(String),
}

impl FieldValue {
    /// Returns the value, or the start that it stands for.
    pub fn text(&self) -> &str {
        match self {
            Self::Complete(text) | Self::Prefix(text) => text,
        }
    }
}

/// A list of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldNames {
    /// The fields.
    pub fields: Vec<Field>,
    /// Whether fields were left out.
    pub partial: bool,
}

/// A list of field values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldValues {
    /// The entries.
    pub values: Vec<FieldValue>,
    /// Whether values were left out.
    pub partial: bool,
}

impl FieldValues {
    /// Returns the answer to a query for at most `limit` values that start with `prefix`, after the
    /// first `offset` of them, out of `all` values in the order they are to be shown.
    ///
    /// Where more match than fit, values with a common start are folded into prefixes, as many
    /// entries as the limit allows; each prefix is longer than the one asked for, so that
    /// drilling into it gets nearer to its values. Where no folding fits the limit, and for any
    /// offset above 0, the answer is a plain page.
    ///
    /// A `prefix` that matches nothing and ends in `*` is taken for a folded entry of ours, and
    /// its `*` is left out.
    pub fn page<T: AsRef<str>>(all: &[T], prefix: &str, offset: usize, limit: usize) -> Self {
        let matching = |prefix: &str| -> Vec<&str> {
            let starts = |v: &&str| v.starts_with(prefix);
            all.iter().map(T::as_ref).filter(starts).collect()
        };
        let mut found = matching(prefix);
        if found.is_empty()
            && let Some(folded) = prefix.strip_suffix('*')
        {
            found = matching(folded);
        }
        if found.len() > limit
            && let Some(values) = folded(&found, limit)
        {
            // All of them are on the first page; what follows would name values a second time.
            return Self {
                values: values.into_iter().skip(offset).collect(),
                partial: false,
            };
        }
        let page = found.iter().skip(offset).take(limit);
        Self {
            values: page.map(|v| FieldValue::Complete((*v).into())).collect(),
            partial: found.len() > offset.saturating_add(limit),
        }
    }
}

/// Values that share a start, in sorted order. Groups compare by size, then by first value
/// backwards, so that a heap gives the largest and, of two equal ones, the first.
struct Group<'a> {
    values: &'a [&'a str],
    /// Length in bytes of the start that all of them share.
    shared: usize,
}

impl<'a> Group<'a> {
    fn new(values: &'a [&'a str]) -> Self {
        let shared = match (values.first(), values.last()) {
            // In sorted order, what the first and the last share, all share.
            (Some(first), Some(last)) => first
                .char_indices()
                .zip(last.chars())
                .find(|((_, a), b)| a != b)
                .map_or(first.len().min(last.len()), |((at, _), _)| at),
            _ => 0,
        };
        Self { values, shared }
    }

    /// Returns the groups that differ in the character after the shared start. A value that ends
    /// there is a group of its own.
    fn split(&self) -> Vec<Self> {
        let next = |v: &&str| v.get(self.shared..).and_then(|rest| rest.chars().next());
        self.values
            .chunk_by(|a, b| next(a) == next(b))
            .map(Group::new)
            .collect()
    }
}

impl Ord for Group<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let first = Reverse(self.values.first());
        (self.values.len(), first).cmp(&(other.values.len(), Reverse(other.values.first())))
    }
}

impl PartialOrd for Group<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Group<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Group<'_> {}

/// Returns the folding of `values` into at most `limit` entries that splits the largest groups
/// first, or `None` where even the first split has more.
fn folded(values: &[&str], limit: usize) -> Option<Vec<FieldValue>> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut open: BinaryHeap<Group<'_>> = Group::new(&sorted).split().into();
    if open.len() > limit {
        return None;
    }
    let mut done: Vec<Group<'_>> = Vec::new();
    while let Some(group) = open.pop() {
        let parts = if group.values.len() > 1 {
            group.split()
        } else {
            Vec::new()
        };
        if parts.is_empty() || done.len() + open.len() + parts.len() > limit {
            done.push(group);
        } else {
            open.extend(parts);
        }
    }
    done.sort_unstable_by_key(|g| g.values.first().copied());
    let entry = |g: &Group<'_>| {
        let first = g.values.first().copied().unwrap_or_default();
        if g.values.len() == 1 {
            FieldValue::Complete(first.into())
        } else {
            FieldValue::Prefix(first.get(..g.shared).unwrap_or_default().into())
        }
    };
    Some(done.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn strings(values: &[&str]) -> Vec<String> {
        values.iter().map(|v| (*v).to_owned()).collect()
    }

    fn shown(answer: &FieldValues) -> Vec<String> {
        let text = |v: &FieldValue| match v {
            FieldValue::Complete(v) => v.clone(),
            FieldValue::Prefix(v) => format!("{v}*"),
        };
        answer.values.iter().map(text).collect()
    }

    #[test]
    fn what_fits_is_listed_and_what_does_not_is_folded() {
        let all = strings(&["cpu.idle", "cpu.user", "disk.free", "mem", "mem.free"]);
        let page = |prefix, limit| FieldValues::page(&all, prefix, 0, limit);
        assert_eq!(shown(&page("", 5)), all);
        assert_eq!(shown(&page("", 3)), ["cpu.*", "disk.free", "mem*"]);
        assert_eq!(
            shown(&page("", 4)),
            ["cpu.idle", "cpu.user", "disk.free", "mem*"]
        );
        assert_eq!(shown(&page("mem", 5)), ["mem", "mem.free"]);
        assert_eq!(shown(&page("cpu.*", 5)), ["cpu.idle", "cpu.user"]);
        assert!(!page("", 3).partial);
    }

    #[test]
    fn where_no_prefix_helps_pages_are_plain_and_say_so() {
        let all = strings(&["a", "b", "c"]);
        let page = |offset| FieldValues::page(&all, "", offset, 2);
        assert_eq!(
            (shown(&page(0)), page(0).partial),
            (strings(&["a", "b"]), true)
        );
        assert_eq!((shown(&page(2)), page(2).partial), (strings(&["c"]), false));
        assert_eq!(shown(&page(9)), strings(&[]));
    }

    /// Drills into every prefix and turns every page, as a patient user would.
    fn reach(all: &[String], prefix: &str, limit: usize, found: &mut BTreeSet<String>) {
        let mut offset = 0;
        loop {
            let answer = FieldValues::page(all, prefix, offset, limit);
            assert!(answer.values.len() <= limit);
            for value in &answer.values {
                match value {
                    FieldValue::Complete(v) => {
                        found.insert(v.clone());
                    }
                    FieldValue::Prefix(p) => {
                        assert!(p.len() > prefix.len() && p.starts_with(prefix));
                        reach(all, p, limit, found);
                    }
                }
            }
            if !answer.partial {
                return;
            }
            offset += limit;
        }
    }

    proptest! {
        #[test]
        fn every_value_can_be_reached_by_drilling(
            values in prop::collection::btree_set("[abé.]{0,5}", 0..60),
            limit in 1usize..12,
        ) {
            let all: Vec<String> = values.iter().cloned().collect();
            let mut found = BTreeSet::new();
            reach(&all, "", limit, &mut found);
            prop_assert_eq!(found, values);
        }
    }
}
