//! Reads documents with limits on their number of values, so that a tree takes memory in proportion
//! to its text.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor,
};
use serde_json::Number;

use super::Json;
use crate::model::{Checkpoints, Error, stop};

/// The number of values that even a short document may hold; a longer one may hold one for each
/// [`BYTES_A_VALUE`] of its bytes.
const LEAST_VALUES: usize = 16 << 10;
const BYTES_A_VALUE: usize = 16;

/// The number of additional values that an array or an object counts as: its first allocation has
/// room for this many.
const CONTAINER: usize = 4;

/// The bounds of one member of a document.
#[derive(Clone, Copy, Debug)]
pub struct MemberBounds {
    /// The member's name.
    pub name: &'static str,
    /// Most values in it, including itself and all arrays and objects.
    pub values: usize,
    /// Most bytes of its names and strings together.
    pub text: usize,
}

/// Parses `body` as JSON, with any number of values.
///
/// # Errors
///
/// [`Kind::InvalidRequest`](crate::model::Kind::InvalidRequest) if it is not JSON.
pub fn parse(body: &[u8]) -> Result<Json<'_>, Error> {
    read(body, usize::MAX, None)
}

/// Most values in an upstream's answer: about 250,000 field values of the mirror API.
const ANSWER_VALUES: usize = 1_800_000;

/// Parses `body`, an upstream's answer, as JSON.
///
/// # Errors
///
/// [`Kind::InvalidRequest`](crate::model::Kind::InvalidRequest) if it is not JSON, or holds more than
/// 1.8 million values.
pub fn parse_answer(body: &[u8]) -> Result<Json<'_>, Error> {
    read(body, ANSWER_VALUES, None)
}

/// Parses `body`, which a client sent, as JSON: an object, one member of which may have its own
/// bounds.
///
/// # Errors
///
/// [`Kind::InvalidRequest`](crate::model::Kind::InvalidRequest) if it is not JSON, or holds more
/// values than its length allows for.
pub fn parse_within(body: &[u8], member: Option<MemberBounds>) -> Result<Json<'_>, Error> {
    read(body, LEAST_VALUES.max(body.len() / BYTES_A_VALUE), member)
}

/// Parses `body`, which may hold at most `most` values.
fn read(body: &[u8], most: usize, member: Option<MemberBounds>) -> Result<Json<'_>, Error> {
    let invalid =
        |e: &dyn fmt::Display| Error::invalid("$", format!("the body is not valid JSON: {e}"));
    // UTF-8 is checked once for the whole text, which is cheaper than for each string.
    let text = std::str::from_utf8(body).map_err(|e| invalid(&e))?;
    let budget = Budget {
        values: Cell::new(most),
        text: Cell::new(usize::MAX),
    };
    let member = member.map(|bounds| {
        let budget = Budget {
            values: Cell::new(bounds.values),
            text: Cell::new(bounds.text),
        };
        (bounds, budget)
    });
    let seed = Seed {
        budget: &budget,
        container: CONTAINER,
        member: member.as_ref(),
    };
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = seed.deserialize(&mut reader);
    let value = value.and_then(|value| reader.end().map(|()| value));
    value.map_err(|e| match &member {
        Some((bounds, spent)) if spent.is_spent() => Error::invalid(
            bounds.name,
            format!(
                "is too large: at most {} values and {} bytes of names and texts are allowed \
                 (server.max_details)",
                bounds.values, bounds.text
            ),
        ),
        _ if budget.is_spent() => {
            Error::invalid("$", format!("the body holds more than {most} values"))
        }
        _ => invalid(&e),
    })
}

/// The number of values and bytes of text that may still be read.
struct Budget {
    values: Cell<usize>,
    text: Cell<usize>,
}

/// Marks a budget that was exceeded.
const SPENT: usize = usize::MAX - 1;

impl Budget {
    fn is_spent(&self) -> bool {
        self.values.get() == SPENT || self.text.get() == SPENT
    }

    fn spend<E: serde::de::Error>(left: &Cell<usize>, amount: usize) -> Result<(), E> {
        match left.get() {
            // Unlimited.
            usize::MAX => Ok(()),
            some if some >= amount && some != SPENT => {
                left.set(some - amount);
                Ok(())
            }
            _ => {
                left.set(SPENT);
                Err(E::custom("too large"))
            }
        }
    }
}

/// Deserializes a value within a budget.
#[derive(Clone, Copy)]
struct Seed<'b> {
    budget: &'b Budget,
    /// The number of additional values that an array or object counts as.
    container: usize,
    /// The member of this object that has its own bounds.
    member: Option<&'b (MemberBounds, Budget)>,
}

impl<'b> Seed<'b> {
    fn within(self) -> Self {
        Self {
            member: None,
            ..self
        }
    }

    /// Returns the seed for the member `name`.
    fn of_member(self, name: &str) -> Self {
        match self.member.filter(|(bounds, _)| bounds.name == name) {
            Some((_, budget)) => Self {
                budget,
                container: 0,
                member: None,
            },
            None => self.within(),
        }
    }

    fn value<E: serde::de::Error>(self, more: usize) -> Result<(), E> {
        Budget::spend(&self.budget.values, 1 + more)
    }

    fn text<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        Budget::spend(&self.budget.text, text.len())
    }
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let budget = Budget {
            values: Cell::new(usize::MAX),
            text: Cell::new(usize::MAX),
        };
        let seed = Seed {
            budget: &budget,
            container: 0,
            member: None,
        };
        seed.deserialize(deserializer)
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Json<'de>, E> {
        self.value(0)?;
        Ok(Json::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, b: bool) -> Result<Json<'de>, E> {
        self.value(0)?;
        Ok(Json::Bool(b))
    }

    fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Json<'de>, E> {
        self.value(0)?;
        Ok(Json::Number(n.into()))
    }

    fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Json<'de>, E> {
        self.value(0)?;
        Ok(Json::Number(n.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Json<'de>, E> {
        self.value(0)?;
        let number = Number::from_f64(n).map(Json::Number);
        number.ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, s: &'de str) -> Result<Json<'de>, E> {
        self.value(0)?;
        self.text(s)?;
        Ok(Json::String(Cow::Borrowed(s)))
    }

    fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Json<'de>, E> {
        self.value(0)?;
        self.text(s)?;
        Ok(Json::String(Cow::Owned(s.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json<'de>, A::Error> {
        self.value(self.container)?;
        let (mut elements, mut checkpoints) = (Vec::new(), Checkpoints::default());
        while let Some(element) = seq.next_element_seed(self.within())? {
            if checkpoints.stop() {
                return Err(A::Error::custom(stop::STOPPED));
            }
            elements.push(element);
        }
        Ok(Json::Array(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json<'de>, A::Error> {
        self.value(self.container)?;
        let (mut members, mut checkpoints) = (Vec::new(), Checkpoints::default());
        while let Some(MemberName(name)) = map.next_key()? {
            if checkpoints.stop() {
                return Err(A::Error::custom(stop::STOPPED));
            }
            let seed = self.of_member(&name);
            seed.text(&name)?;
            members.push((name, map.next_value_seed(seed)?));
        }
        Ok(Json::Object(members))
    }
}

/// The name of a member.
struct MemberName<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for MemberName<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = MemberName<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<MemberName<'de>, E> {
                Ok(MemberName(Cow::Borrowed(s)))
            }
            fn visit_str<E>(self, s: &str) -> Result<MemberName<'de>, E> {
                Ok(MemberName(Cow::Owned(s.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
