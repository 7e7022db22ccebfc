//! Lists of strings from untrusted senders, of which only a bounded number is kept.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};

use crate::model::{Checkpoints, stop};

/// The first strings of a list, at most `MOST`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirstStrings<const MOST: usize> {
    /// The strings, in order.
    pub strings: Vec<String>,
    /// Whether the list is longer.
    pub more: bool,
}

impl<'de, const MOST: usize> Deserialize<'de> for FirstStrings<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FirstOfList)
    }
}

/// Reads a list.
struct FirstOfList<const MOST: usize>;

impl<'de, const MOST: usize> Visitor<'de> for FirstOfList<MOST> {
    type Value = FirstStrings<MOST>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let (mut first, mut checkpoints) = (FirstStrings::default(), Checkpoints::default());
        while first.strings.len() < MOST {
            let Some(string) = list.next_element()? else {
                return Ok(first);
            };
            if checkpoints.stop() {
                return Err(A::Error::custom(stop::STOPPED));
            }
            first.strings.push(string);
        }
        while list.next_element::<IgnoredAny>()?.is_some() {
            if checkpoints.stop() {
                return Err(A::Error::custom(stop::STOPPED));
            }
            first.more = true;
        }
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_bound_is_kept() {
        let read = |text: &str| serde_json::from_str::<FirstStrings<2>>(text);
        let kept = |text: &str| {
            let first = read(text).unwrap();
            (first.strings.join(" "), first.more)
        };
        assert_eq!(kept("[]"), (String::new(), false));
        assert_eq!(kept(r#"["a","b"]"#), ("a b".to_owned(), false));
        assert_eq!(kept(r#"["a","b","c",1]"#), ("a b".to_owned(), true));
        assert!(read(r#"["a",1]"#).is_err() && read("1").is_err());
    }
}
