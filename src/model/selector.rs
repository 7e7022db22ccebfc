//! The series of a query: typed conditions in one canonical form.

use std::cmp::Ordering;
use std::fmt;

use super::heap::heap_block;

/// A finite number with a total order and one form of zero, so that it can be part of a key.
#[derive(Clone, Copy, Debug)]
pub struct Number(f64);

impl Number {
    /// Returns `value`, or `None` where it is not finite.
    pub fn new(value: f64) -> Option<Self> {
        value
            .is_finite()
            .then_some(Self(if value == 0.0 { 0.0 } else { value }))
    }

    /// Returns the number itself.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Number {}

impl std::hash::Hash for Number {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// One typed value that a field can be compared with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scalar {
    /// `StringValue`.
    String(String),
    /// `DoubleValue`.
    Number(Number),
    /// `BooleanValue`.
    Bool(bool),
}

impl fmt::Display for Scalar {
    /// Returns the value as text, as a label store would hold it: no quotes, whole numbers without
    /// a fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(s) => f.write_str(s),
            Self::Number(n) => write!(f, "{}", n.0),
            Self::Bool(b) => write!(f, "{b}"),
        }
    }
}

/// The test of a condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Test {
    /// The field equals the value.
    Is(Scalar),
    /// The field equals one of the values (`InSetValue`); sorted, no duplicates. An empty set matches
    /// nothing.
    In(Vec<Scalar>),
}

impl Test {
    /// Returns the values of which the field must equal one.
    pub fn values(&self) -> &[Scalar] {
        match self {
            Self::Is(value) => std::slice::from_ref(value),
            Self::In(values) => values,
        }
    }
}

/// One condition: a field and the values that it must equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Condition {
    /// Name of the field.
    pub key: String,
    /// The values that it must equal.
    pub test: Test,
}

/// Conditions that must all hold, in canonical form: two selectors that ask for the same in
/// another order are equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selector(Vec<Condition>);

impl Selector {
    /// Returns the canonical form of `conditions`: sorted, without duplicates, sets of one value as
    /// that value.
    pub fn new(mut conditions: Vec<Condition>) -> Self {
        for condition in &mut conditions {
            if let Test::In(values) = &mut condition.test {
                values.sort();
                values.dedup();
                if values.len() == 1
                    && let Some(value) = values.pop()
                {
                    condition.test = Test::Is(value);
                }
            }
        }
        conditions.sort();
        conditions.dedup();
        Self(conditions)
    }

    /// Returns the conditions in canonical order.
    pub fn conditions(&self) -> &[Condition] {
        &self.0
    }

    /// Returns the bytes that it holds on the heap, about.
    pub fn heap_bytes(&self) -> usize {
        let text = |scalar: &Scalar| match scalar {
            Scalar::String(text) => heap_block(text.capacity()),
            Scalar::Number(_) | Scalar::Bool(_) => 0,
        };
        let test = |test: &Test| match test {
            Test::Is(value) => text(value),
            Test::In(values) => {
                let texts: usize = values.iter().map(text).sum();
                heap_block(values.capacity() * size_of::<Scalar>()) + texts
            }
        };
        let conditions = self.0.iter();
        let conditions: usize = conditions
            .map(|c| heap_block(c.key.capacity()) + test(&c.test))
            .sum();
        heap_block(self.0.capacity() * size_of::<Condition>()) + conditions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(key: &str, value: &str) -> Condition {
        Condition {
            key: key.into(),
            test: Test::Is(Scalar::String(value.into())),
        }
    }

    #[test]
    fn order_and_repetition_do_not_matter_and_types_do() {
        let a = Selector::new(vec![is("a", "1"), is("b", "2"), is("a", "1")]);
        let b = Selector::new(vec![is("b", "2"), is("a", "1")]);
        assert_eq!(a, b);
        let number = Selector::new(vec![Condition {
            key: "a".into(),
            test: Test::Is(Scalar::Number(Number::new(1.0).unwrap())),
        }]);
        assert_ne!(number, Selector::new(vec![is("a", "1")]));
    }

    #[test]
    fn sets_are_sorted_and_a_set_of_one_is_that_one() {
        let set = |values: &[&str]| {
            Selector::new(vec![Condition {
                key: "k".into(),
                test: Test::In(values.iter().map(|v| Scalar::String((*v).into())).collect()),
            }])
        };
        assert_eq!(set(&["b", "a", "b"]), set(&["a", "b"]));
        assert_eq!(set(&["a", "a"]), Selector::new(vec![is("k", "a")]));
        assert!(set(&[]).conditions()[0].test.values().is_empty());
    }

    #[test]
    fn numbers_have_one_zero_and_print_as_labels_do() {
        assert_eq!(Number::new(0.0), Number::new(-0.0));
        assert_eq!(Number::new(f64::NAN), None);
        assert_eq!(
            Scalar::Number(Number::new(200.0).unwrap()).to_string(),
            "200"
        );
    }
}
