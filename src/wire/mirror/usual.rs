//! Reads requests for metric values of the usual form in one pass, without a tree.
//!
//! Only the form that StackState itself writes is accepted: known members, each at most once,
//! strings without escapes, no white space but spaces, short bodies. Everything else is left to the
//! complete reader, which also produces the errors; what is accepted here means the same there.

use super::details::details;
use super::request::{Request, RequestBounds, method};
use crate::model::{
    Condition, Details, Layout, MAX_TIME, MetricQuery, Millis, Scalar, Selector, Step, Test,
    TimeRange,
};
use crate::wire::json::{Json, Node};

/// The longest body that is read here, in bytes. The usual request has a few hundred; longer ones
/// are rare, and the complete reader limits their contents.
const LONGEST: usize = 4096;

/// Reads the body of `/api/metric`; `None` if it does not have the usual form, whether valid or
/// not.
pub(super) fn read_metric(body: &[u8], bounds: RequestBounds) -> Option<Request<MetricQuery>> {
    if body.len() > LONGEST.min(bounds.value).min(bounds.details) {
        return None;
    }
    // Without escapes a string ends at the next quote; strings must not contain control characters.
    // The whole body is searched at once, which takes one vector instruction for several bytes.
    let odd = |odd: bool, byte: &u8| odd | (*byte < b' ') | (*byte == b'\\');
    if body.iter().fold(false, odd) {
        return None;
    }
    let text = std::str::from_utf8(body).ok()?;
    let mut reader = Reader { text, rest: body };
    let (mut details, mut query, mut tagged) = (None, None, false);
    reader.object(|reader| {
        if reader.takes(b"connectionDetails\":") {
            once(&mut details, reader.details(bounds)?)
        } else if reader.takes(b"query\":") {
            once(&mut query, reader.query()?)
        } else if reader.takes(b"_type\":") {
            reader.any_tag(&mut tagged)
        } else {
            None
        }
    })?;
    if reader.peek().is_some() {
        return None;
    }
    Some(Request {
        details: details?,
        query: query?,
    })
}

/// Sets `member`, which may occur only once, to `value`.
fn once<T>(member: &mut Option<T>, value: T) -> Option<()> {
    member.replace(value).is_none().then_some(())
}

/// The rest of the body. Its readers return `None` if the form is unusual.
struct Reader<'a> {
    text: &'a str,
    /// The end of `text`.
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Returns the next byte that is not a space; `None` at the end.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match self.rest.split_first()? {
                (b' ', rest) => self.rest = rest,
                (byte, _) => return Some(*byte),
            }
        }
    }

    fn skip(&mut self, expected: u8) -> Option<()> {
        let found = self.peek()? == expected;
        found.then(|| self.rest = self.rest.get(1..).unwrap_or_default())
    }

    /// Skips `word` if it comes next, and returns whether it does. Its length is known when this is
    /// compiled, so it is compared in some instructions.
    fn takes<const N: usize>(&mut self, word: &[u8; N]) -> bool {
        match self.rest.split_first_chunk::<N>() {
            Some((found, rest)) if found == word => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// Does the same after spaces.
    fn is<const N: usize>(&mut self, word: &[u8; N]) -> Option<bool> {
        self.peek()?;
        Some(self.takes(word))
    }

    /// Reads an object; `member` reads the rest of a member whose first quote has been read: its name, with
    /// the colon right behind it, and its value.
    fn object(&mut self, mut member: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.skip(b'{')?;
        if self.skip(b'}').is_some() {
            return Some(());
        }
        loop {
            self.skip(b'"')?;
            member(self)?;
            if self.skip(b',').is_none() {
                return self.skip(b'}');
            }
        }
    }

    fn string(&mut self) -> Option<&'a str> {
        self.skip(b'"')?;
        let start = self.text.len() - self.rest.len();
        // Strings are short, so a call of a vectorised search would take longer.
        let end = self.rest.iter().position(|byte| *byte == b'"')?;
        self.rest = self.rest.get(end + 1..)?;
        self.text.get(start..start + end)
    }

    /// Reads a number without sign, fraction and exponent, of at most 18 digits.
    fn number(&mut self) -> Option<i64> {
        let leading_zero = self.peek()? == b'0';
        let (mut number, mut length) = (0i64, 0);
        for byte in self.rest.iter().take(19) {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            // Of 19 digits, none is used.
            number = number.wrapping_mul(10).wrapping_add(i64::from(digit));
            length += 1;
        }
        self.rest = self.rest.get(length..)?;
        let more = matches!(self.rest.first(), Some(b'.' | b'e' | b'E'));
        let whole = (1..=18).contains(&length) && !(leading_zero && length > 1) && !more;
        whole.then_some(number)
    }

    /// Reads a member that may be null, which is the same as absent; otherwise it may occur once.
    fn optional<T>(
        &mut self,
        member: &mut Option<T>,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<()> {
        if member.is_some() {
            return None;
        }
        if !self.is(b"null")? {
            *member = Some(read(self)?);
        }
        Some(())
    }

    /// Reads a `_type`, which may occur once and has to be `expected`, quotes included.
    fn tag<const N: usize>(&mut self, seen: &mut bool, expected: &[u8; N]) -> Option<()> {
        (!std::mem::replace(seen, true) && self.is(expected)?).then_some(())
    }

    /// Reads a `_type` with any value.
    fn any_tag(&mut self, seen: &mut bool) -> Option<()> {
        self.string()?;
        (!std::mem::replace(seen, true)).then_some(())
    }

    fn details(&mut self, bounds: RequestBounds) -> Option<Details> {
        let start = self.rest;
        let mut details = Details::default();
        let upstream = |reader: &mut Self| match reader.takes(b"upstream\":") {
            true => once(&mut details.upstream, reader.string()?.to_owned()),
            false => None,
        };
        if self.object(upstream).is_some() {
            return Some(details);
        }
        let mut values = serde_json::Deserializer::from_slice(start).into_iter::<Json<'_>>();
        let json = values.next()?.ok()?;
        self.rest = start.get(values.byte_offset()..)?;
        if json.count() > bounds.details_values() {
            return None;
        }
        self::details(&Node::root(&json)).ok()
    }

    fn query(&mut self) -> Option<MetricQuery> {
        let (mut conditions, mut start, mut end) = (None, None, None);
        let (mut limit, mut latest_first, mut metric_field) = (None, None, None);
        let (mut layout, mut tagged) = (None, false);
        self.object(|reader| {
            if reader.takes(b"conditions\":") {
                reader.optional(&mut conditions, Self::conditions)
            } else if reader.takes(b"startTime\":") {
                reader.optional(&mut start, Self::time)
            } else if reader.takes(b"endTime\":") {
                reader.optional(&mut end, Self::time)
            } else if reader.takes(b"aggregation\":") {
                reader.optional(&mut layout, Self::aggregation)
            } else if reader.takes(b"limit\":") {
                reader.optional(&mut limit, Self::number)
            } else if reader.takes(b"latestFirst\":") {
                // It has no effect.
                reader.optional(&mut latest_first, |reader| {
                    (reader.is(b"true")? || reader.is(b"false")?).then_some(())
                })
            } else if reader.takes(b"metricField\":") {
                reader.optional(&mut metric_field, Self::string)
            } else if reader.takes(b"_type\":") {
                reader.any_tag(&mut tagged)
            } else {
                None
            }
        })?;
        let limit = match limit {
            None => None,
            Some(limit) => {
                let limit = i32::try_from(limit).ok()?;
                Some(u32::try_from(limit).ok().filter(|n| *n > 0)?)
            }
        };
        Some(MetricQuery {
            selector: Selector::new(conditions.unwrap_or_default()),
            metric_field: metric_field.filter(|f| !f.is_empty()).map(str::to_owned),
            range: TimeRange::new(start?, end?)?,
            limit,
            layout: layout.unwrap_or(Layout::Raw),
        })
    }

    fn time(&mut self) -> Option<Millis> {
        self.number().filter(|time| *time <= MAX_TIME)
    }

    fn conditions(&mut self) -> Option<Vec<Condition>> {
        // The usual number of conditions.
        let mut conditions = Vec::with_capacity(2);
        self.skip(b'[')?;
        if self.skip(b']').is_some() {
            return Some(conditions);
        }
        loop {
            conditions.push(self.condition()?);
            if self.skip(b',').is_none() {
                self.skip(b']')?;
                return Some(conditions);
            }
        }
    }

    fn condition(&mut self) -> Option<Condition> {
        let (mut key, mut value, mut tagged) = (None, None, false);
        self.object(|reader| {
            if reader.takes(b"key\":") {
                once(&mut key, reader.string()?)
            } else if reader.takes(b"value\":") {
                once(&mut value, reader.typed_string()?)
            } else if reader.takes(b"_type\":") {
                reader.tag(&mut tagged, b"\"EqualityCondition\"")
            } else {
                None
            }
        })?;
        Some(Condition {
            key: key.filter(|key| !key.is_empty())?.to_owned(),
            test: Test::Is(Scalar::String(value?.to_owned())),
        })
    }

    fn typed_string(&mut self) -> Option<&'a str> {
        let (mut value, mut tagged) = (None, false);
        self.object(|reader| {
            if reader.takes(b"value\":") {
                once(&mut value, reader.string()?)
            } else if reader.takes(b"_type\":") {
                reader.tag(&mut tagged, b"\"StringValue\"")
            } else {
                None
            }
        })?;
        value
    }

    fn aggregation(&mut self) -> Option<Layout> {
        let (mut statistic, mut size, mut tagged) = (None, None, false);
        self.object(|reader| {
            if reader.takes(b"method\":") {
                once(&mut statistic, method(reader.string()?)?)
            } else if reader.takes(b"bucketSizeMillis\":") {
                once(&mut size, Step::new(reader.time()?)?)
            } else if reader.takes(b"_type\":") {
                reader.tag(&mut tagged, b"\"Aggregation\"")
            } else {
                None
            }
        })?;
        Some(Layout::Buckets {
            statistic: statistic?,
            size: size?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use crate::wire::mirror::request::read_metric_tree;

    const BOUNDS: RequestBounds = RequestBounds {
        details: 16 << 10,
        value: 8 << 10,
    };

    fn usual() -> Value {
        json!({
            "connectionDetails": { "upstream": "prom" },
            "query": {
                "conditions": [
                    { "key": "name", "value": { "value": "up", "_type": "StringValue" }, "_type": "EqualityCondition" },
                    { "key": "host", "value": { "value": "web-1" } },
                ],
                "startTime": 1_700_000_000_000_i64,
                "endTime": 1_700_003_600_000_i64,
                "limit": 10_000,
                "latestFirst": false,
                "metricField": "value",
                "aggregation": { "method": "MEAN", "bucketSizeMillis": 60_000, "_type": "Aggregation" },
                "_type": "MetricsQuery",
            },
            "_type": "MetricsRequest",
        })
    }

    /// Returns the paths of all values in `value` as JSON pointers.
    fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    pointers(value, &format!("{at}/{name}"), all);
                }
            }
            Value::Array(elements) => {
                for (i, value) in elements.iter().enumerate() {
                    pointers(value, &format!("{at}/{i}"), all);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn what_stackstate_sends_is_of_the_usual_form() {
        let body = usual().to_string();
        let read = read_metric(body.as_bytes(), BOUNDS).expect("it is usual");
        assert_eq!(read, read_metric_tree(body.as_bytes(), BOUNDS).unwrap());
        let empty = body.replace(r#"{"upstream":"prom"}"#, "{}");
        let read = read_metric(empty.as_bytes(), BOUNDS).expect("it is usual");
        assert_eq!(read, read_metric_tree(empty.as_bytes(), BOUNDS).unwrap());
    }

    proptest! {
        /// Replaces, removes, duplicates or truncates any value of a usual request.
        #[test]
        fn what_is_read_here_means_what_the_complete_reader_reads(
            place in any::<prop::sample::Index>(),
            second in any::<prop::sample::Index>(),
            instead in prop::sample::select(vec![
                json!(null), json!(0), json!(-1), json!(1.5), json!(1e12), json!(1e300), json!(i64::MAX),
                json!(u64::MAX), json!(true), json!(""), json!("x"), json!("\n\""), json!([]), json!([1]),
                json!(["a", 5]), json!({}), json!({ "value": "x" }), json!({ "value": 1, "_type": "DoubleValue" }),
                json!({ "url": "http://h:1" }), json!({ "host": "h", "port": "9" }), json!("mean"),
                json!("EqualityCondition"), json!("Aggregation"), json!("1700000000000"), json!(2_147_483_648_i64),
            ]),
            how in 0..4,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut request = usual();
            let mut all = Vec::new();
            pointers(&request, "", &mut all);
            let path = &all[place.index(all.len())];
            let mut text = match how {
                0 => {
                    let (parent, name) = path.rsplit_once('/').unwrap_or(("", ""));
                    if let Some(Value::Object(members)) = request.pointer_mut(parent) {
                        members.remove(name);
                    }
                    request.to_string()
                }
                1 => {
                    // A second member of this name.
                    let name = path.rsplit_once('/').map_or("x", |p| p.1);
                    let parent = all[second.index(all.len())].clone();
                    let marker = "again";
                    if let Some(Value::Object(members)) = request.pointer_mut(&parent) {
                        members.insert(marker.to_owned(), instead);
                    }
                    request.to_string().replace(marker, name)
                }
                _ => {
                    *request.pointer_mut(path).unwrap() = instead;
                    request.to_string()
                }
            };
            if how == 3 {
                let mut at = cut.index(text.len());
                while !text.is_char_boundary(at) {
                    at -= 1;
                }
                text.truncate(at);
            }
            if let Some(read) = read_metric(text.as_bytes(), BOUNDS) {
                prop_assert_eq!(Ok(read), read_metric_tree(text.as_bytes(), BOUNDS), "{}", text);
            }
        }
    }
}
