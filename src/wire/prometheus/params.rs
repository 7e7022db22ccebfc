//! The parameters of requests.

use std::time::Duration;

use percent_encoding::percent_decode;
use url::form_urlencoded;

use super::units::{read_duration, read_time, to_duration, to_millis, write_step, write_time};
use crate::model::{Error, Millis, Step};

/// The most points per series in an answer of Prometheus, less one.
pub const MOST_STEPS: i128 = 11_000;

/// The parameters of a request, first those of the form, then those of the URL.
///
/// They are parsed as by Go's `Request.FormValue`: of several values for one name the first counts,
/// and a pair that contains a semicolon or an invalid escape is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// Returns the parameters of the query string `url` and of `form`, the body of a POST whose
    /// type is `application/x-www-form-urlencoded`.
    pub fn read(url: Option<&str>, form: Option<&[u8]>) -> Self {
        let texts = [form, url.map(str::as_bytes)];
        let pairs = texts
            .into_iter()
            .flatten()
            .flat_map(|text| text.split(|b| *b == b'&'));
        Self(pairs.filter_map(pair).collect())
    }

    /// Returns the first value of `name`; empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.map_or("", |(_, value)| value)
    }

    /// Drops the parameters whose names do not satisfy `is_known`.
    pub fn retain(&mut self, is_known: impl Fn(&str) -> bool) {
        self.0.retain(|(name, _)| is_known(name));
    }

    /// Returns all values of `name`, in order.
    pub fn all(&self, name: &str) -> Vec<String> {
        let found = self.0.iter().filter(|(n, _)| n == name);
        found.map(|(_, value)| value.clone()).collect()
    }

    /// Replaces the values of `name` by as many others.
    pub fn replace(&mut self, name: &str, values: Vec<String>) {
        let places = self.0.iter_mut().filter(|(n, _)| n == name);
        for ((_, old), new) in places.zip(values) {
            *old = new;
        }
    }

    /// Replaces the first value of `name`.
    pub fn set(&mut self, name: &str, value: &str) {
        if let Some((_, old)) = self.0.iter_mut().find(|(n, _)| n == name) {
            value.clone_into(old);
        }
    }

    /// Returns the first value of `name` as a time; `None` if there is none or it is not a time.
    pub fn time_at(&self, name: &str) -> Option<Millis> {
        let text = self.get(name);
        let read = (!text.is_empty()).then(|| read_time(text))?;
        read.ok().map(to_millis)
    }

    /// Sets `name` to `time`.
    pub fn set_time(&mut self, name: &str, time: Millis) {
        let value = write_time(time);
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Removes all values of `name`.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| n != name);
    }

    /// Returns all pairs, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// Returns all pairs, sorted by name. Pairs with the same name keep their order, so that the
    /// first still counts.
    pub fn sorted(&self) -> Vec<(String, String)> {
        let mut pairs = self.0.clone();
        pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        pairs
    }

    fn without(&self, known: &[&str]) -> Vec<(String, String)> {
        let other = self.0.iter().filter(|(n, _)| !known.contains(&n.as_str()));
        other.cloned().collect()
    }

    fn time(&self, name: &str) -> Result<i128, Error> {
        read_time(self.get(name)).map_err(|e| invalid(name, &e))
    }

    fn timeout(&self) -> Result<Option<Duration>, Error> {
        match self.get("timeout") {
            "" => Ok(None),
            text => {
                let read = read_duration(text).map_err(|e| invalid("timeout", &e))?;
                Ok(Some(to_duration(read)))
            }
        }
    }

    fn carried(&self) -> Carried {
        Carried {
            limit: self.get("limit").to_owned(),
            stats: self.get("stats").to_owned(),
            lookback_delta: self.get("lookback_delta").to_owned(),
        }
    }
}

/// Parameters that are passed on to the origin as they were written; empty if absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Carried {
    /// Most series in the answer; empty and `0` mean all. Which series are dropped then depends on
    /// the window.
    pub limit: String,
    /// Whether the origin adds statistics about the query; anything but empty means yes.
    pub stats: String,
    /// The look-back of samples; it changes the values. Prometheus 2.42 does not have it yet.
    pub lookback_delta: String,
}

/// A range query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeQuery {
    /// The expression as it was written.
    pub query: String,
    /// The first evaluation time.
    pub start: Millis,
    /// The end of the evaluation times, inclusive; not before `start`.
    pub end: Millis,
    /// The distance between evaluation times.
    pub step: Step,
    /// The longest time for the evaluation.
    pub timeout: Option<Duration>,
    /// Further parameters of the API.
    pub carried: Carried,
    /// Parameters that are not part of Prometheus' API, such as `dedup`, in order. They may
    /// change the answer.
    pub other: Vec<(String, String)>,
}

impl RangeQuery {
    /// The parameters that Prometheus reads.
    pub const PARAMETERS: &[&str] = &[
        "query",
        "start",
        "end",
        "step",
        "timeout",
        "limit",
        "stats",
        "lookback_delta",
    ];

    /// Reads the query in `params`. Errors have the wording of Prometheus, and checks are made in
    /// its order. Prometheus accepts steps below a millisecond, by which it then cannot divide;
    /// here they are refused as not positive.
    pub fn read(params: &Params) -> Result<Self, Error> {
        let start = params.time("start")?;
        let end = params.time("end")?;
        if end < start {
            return Err(invalid(
                "end",
                "end timestamp must not be before start time",
            ));
        }
        let step = read_duration(params.get("step")).map_err(|e| invalid("step", &e))?;
        let whole = Millis::try_from(step / 1_000_000).ok().and_then(Step::new);
        let Some(whole) = whole else {
            return Err(invalid(
                "step",
                "zero or negative query resolution step widths are not accepted. \
                 Try a positive integer",
            ));
        };
        if (end - start) / step > MOST_STEPS {
            return Err(Error::invalid(
                "step",
                "exceeded maximum resolution of 11,000 points per timeseries. \
                 Try decreasing the query resolution (?step=XX)",
            ));
        }
        Ok(Self {
            query: params.get("query").to_owned(),
            start: to_millis(start),
            end: to_millis(end),
            step: whole,
            timeout: params.timeout()?,
            carried: params.carried(),
            other: params.without(Self::PARAMETERS),
        })
    }

    /// Returns the form that asks the origin for the same query from `start` to `end`, both
    /// inclusive, without `timeout`, `limit` and `stats`, which concern a single answer.
    pub fn form(&self, start: Millis, end: Millis) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(self.pairs(start, end));
        form.finish()
    }

    /// Returns the same as pairs of names and values.
    pub fn pairs(&self, start: Millis, end: Millis) -> Vec<(String, String)> {
        let lookback = &self.carried.lookback_delta;
        let mut pairs = vec![
            ("query".to_owned(), self.query.clone()),
            ("start".to_owned(), write_time(start)),
            ("end".to_owned(), write_time(end)),
            ("step".to_owned(), write_step(self.step)),
        ];
        if !lookback.is_empty() {
            pairs.push(("lookback_delta".to_owned(), lookback.clone()));
        }
        pairs.extend(self.other.iter().cloned());
        pairs
    }
}

/// An instant query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstantQuery {
    /// The expression as it was written.
    pub query: String,
    /// The evaluation time; `None` means now.
    pub time: Option<Millis>,
    /// The longest time for the evaluation.
    pub timeout: Option<Duration>,
    /// Further parameters of the API.
    pub carried: Carried,
    /// Parameters that are not part of Prometheus' API, in order.
    pub other: Vec<(String, String)>,
}

impl InstantQuery {
    /// The parameters that Prometheus reads.
    pub const PARAMETERS: &[&str] = &[
        "query",
        "time",
        "timeout",
        "limit",
        "stats",
        "lookback_delta",
    ];

    /// Reads the query in `params`. Errors have the wording of Prometheus.
    pub fn read(params: &Params) -> Result<Self, Error> {
        let time = match params.get("time") {
            "" => None,
            text => {
                let said = |e| invalid("time", &format!("Invalid time value for 'time': {e}"));
                Some(to_millis(read_time(text).map_err(said)?))
            }
        };
        Ok(Self {
            query: params.get("query").to_owned(),
            time,
            timeout: params.timeout()?,
            carried: params.carried(),
            other: params.without(Self::PARAMETERS),
        })
    }
}

fn invalid(name: &str, said: &str) -> Error {
    Error::invalid(name, format!("invalid parameter \"{name}\": {said}"))
}

/// Parses one `name=value`.
fn pair(text: &[u8]) -> Option<(String, String)> {
    if text.is_empty() || text.contains(&b';') {
        return None;
    }
    let (name, value) = match text.iter().position(|b| *b == b'=') {
        Some(at) => (text.get(..at)?, text.get(at + 1..)?),
        None => (text, &b""[..]),
    };
    Some((unescaped(name)?, unescaped(value)?))
}

/// Returns `text` unescaped, or `None` if an escape is invalid. Bytes that are not UTF-8 become
/// U+FFFD; no label of Prometheus contains any.
fn unescaped(text: &[u8]) -> Option<String> {
    let mut escapes = text.split(|b| *b == b'%');
    escapes.next();
    let whole = |after: &[u8]| {
        let two = after.get(..2);
        two.is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit))
    };
    if !escapes.all(whole) {
        return None;
    }
    let spaced: Vec<u8> = text
        .iter()
        .map(|b| if *b == b'+' { b' ' } else { *b })
        .collect();
    Some(percent_decode(&spaced).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(url: &str) -> Result<RangeQuery, Error> {
        RangeQuery::read(&Params::read(Some(url), None))
    }

    #[test]
    fn the_first_value_counts_and_the_form_comes_first() {
        let params = Params::read(
            Some("a=url&b=%C3%A9+%2B&b=2&c&&=x"),
            Some(b"d=1;e=2&a=form&f=%zz&g=%4&h=%41"),
        );
        let pairs: Vec<_> = params.iter().collect();
        let expected = [
            ("a", "form"),
            ("h", "A"),
            ("a", "url"),
            ("b", "é +"),
            ("b", "2"),
            ("c", ""),
            ("", "x"),
        ];
        assert_eq!(pairs, expected);
        assert_eq!(
            ["a", "b", "f", "none"].map(|n| params.get(n)),
            ["form", "é +", "", ""]
        );
        let sorted = params.sorted();
        let names: Vec<_> = sorted.iter().map(|(n, v)| format!("{n}{v}")).collect();
        assert_eq!(names, ["x", "aform", "aurl", "bé +", "b2", "c", "hA"]);
    }

    #[test]
    fn a_range_query_is_read() {
        let url = "query=up+%2B+1&start=1700000000.001&end=2023-11-14T23:13:20Z&step=1m30s\
                   &timeout=5&dedup=true&limit=0&lookback_delta=1m&stats=all&max[]=1&max[]=2";
        let query = read(url).unwrap();
        assert_eq!(query.query, "up + 1");
        assert_eq!(
            (query.start, query.end),
            (1_700_000_000_001, 1_700_003_600_000)
        );
        assert_eq!(query.step.millis(), 90_000);
        assert_eq!(query.timeout, Some(Duration::from_secs(5)));
        let carried = &query.carried;
        assert_eq!(
            [&carried.limit, &carried.stats, &carried.lookback_delta],
            ["0", "all", "1m"]
        );
        let other = [("dedup", "true"), ("max[]", "1"), ("max[]", "2")];
        assert_eq!(
            query.other,
            other.map(|(n, v)| (n.to_owned(), v.to_owned()))
        );
        assert_eq!(
            query.form(-1500, 60_000),
            "query=up+%2B+1&start=-1.500&end=60&step=90&lookback_delta=1m\
             &dedup=true&max%5B%5D=1&max%5B%5D=2"
        );
        let instant = Params::read(Some("query=up&time=1.5&x=1"), None);
        let instant = InstantQuery::read(&instant).unwrap();
        assert_eq!((instant.time, instant.other.len()), (Some(1500), 1));
        let now = Params::read(Some("query=up&time="), None);
        assert_eq!(InstantQuery::read(&now).unwrap().time, None);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let url = "_=1543578564&query=up&dedup=true&match[]=b&x=1&match[]=a&query=g";
        let mut params = Params::read(Some(url), None);
        params.retain(|name| ["query", "match[]", "dedup"].contains(&name));
        assert_eq!(params.all("match[]"), ["b", "a"]);
        params.replace("match[]", vec!["c".to_owned(), "d".to_owned()]);
        let pairs: Vec<_> = params.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(
            pairs.join("&"),
            "query=up&dedup=true&match[]=c&match[]=d&query=g"
        );
    }

    #[test]
    fn a_step_is_cut_to_the_millisecond_as_the_origin_cuts_it() {
        let step = |text: &str| read(&format!("start=0&end=1&step={text}")).map(|q| q.step);
        assert_eq!(step("1.001").unwrap().millis(), 1000);
        assert_eq!(step("0.0015").unwrap().millis(), 1);
        assert_eq!(step("1001ms").unwrap().millis(), 1001);
        assert!(step("0.0005").is_err());
    }

    proptest! {
        #[test]
        fn a_form_reads_back_the_same(
            query in "\\PC{0,40}",
            start in 0i64..2_000_000_000_000,
            steps in 0i64..11_000,
            step in 1i64..100_000_000,
        ) {
            let asked = RangeQuery {
                query,
                start,
                end: start + steps * step,
                step: Step::new(step).unwrap(),
                timeout: None,
                carried: Carried::default(),
                other: vec![("a b".to_owned(), "&=;é".to_owned())],
            };
            let form = asked.form(asked.start, asked.end);
            let read = RangeQuery::read(&Params::read(None, Some(form.as_bytes())));
            prop_assert_eq!(read.unwrap(), asked);
        }
    }
}
