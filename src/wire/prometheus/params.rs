//! The parameters of requests.

use std::borrow::Cow;
use std::time::Duration;

use memchr::{memchr, memchr_iter, memchr2};
use url::form_urlencoded;

use super::units::{read_duration, read_time, to_duration, to_millis, write_step, write_time};
use crate::model::{Error, Millis, SharedText, Step};

/// The most parameters of one request.
const MOST_PARAMETERS: usize = 10_000;

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
    /// type is `application/x-www-form-urlencoded`, whose names `is_known` knows. Others are not read.
    ///
    /// It takes time in proportion to the texts' length; what is returned has the length of its names and
    /// values.
    ///
    /// # Errors
    ///
    /// [`Kind::InvalidRequest`](crate::model::Kind::InvalidRequest) for more than 10,000 parameters, and for
    /// a value that is not UTF-8: Prometheus takes none in an expression, either.
    pub fn read(
        url: Option<&str>,
        form: Option<&[u8]>,
        is_known: impl Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        let mut pairs = Vec::new();
        for text in [form, url.map(str::as_bytes)].into_iter().flatten() {
            let mut rest = Some(text);
            while let Some(text) = rest {
                let end = memchr(b'&', text);
                rest = end.and_then(|end| text.get(end + 1..));
                let one = text.get(..end.unwrap_or(text.len())).unwrap_or_default();
                let Some(pair) = pair(one, &is_known)? else {
                    continue;
                };
                if pairs.len() == MOST_PARAMETERS {
                    let message = format!("more than {MOST_PARAMETERS} parameters");
                    return Err(Error::invalid("$", message));
                }
                pairs.push(pair);
            }
        }
        Ok(Self(pairs))
    }

    /// Returns the first value of `name`; empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.map_or("", |(_, value)| value)
    }

    /// Returns all values of `name`, in order, which are empty from then on.
    pub fn take_all(&mut self, name: &str) -> Vec<String> {
        let found = self.0.iter_mut().filter(|(n, _)| n == name);
        found.map(|(_, value)| std::mem::take(value)).collect()
    }

    /// Replaces the values of `name` by as many others.
    pub fn replace(&mut self, name: &str, values: Vec<String>) {
        let places = self.0.iter_mut().filter(|(n, _)| n == name);
        for ((_, old), new) in places.zip(values) {
            *old = new;
        }
    }

    /// Replaces the first value of `name`.
    pub fn set(&mut self, name: &str, value: String) {
        if let Some((_, old)) = self.0.iter_mut().find(|(n, _)| n == name) {
            *old = value;
        }
    }

    /// Returns the first value of `name`, which is empty from then on: a copy of a long one is spared.
    fn take(&mut self, name: &str) -> String {
        let found = self.0.iter_mut().find(|(n, _)| n == name);
        found.map_or_else(String::new, |(_, value)| std::mem::take(value))
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

    /// Returns all pairs, ordered by name. Of one name they stay in order, so that the first still
    /// counts.
    pub fn sorted(self) -> Vec<(String, String)> {
        let mut pairs = self.0;
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
    pub query: SharedText,
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

    /// Reads the query in `params`, and takes its expression out of them. Errors have the wording of
    /// Prometheus, and checks are made in its order. Prometheus accepts steps below a millisecond, by
    /// which it then cannot divide; here they are refused as not positive.
    pub fn read(params: &mut Params) -> Result<Self, Error> {
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
            query: params.take("query").into(),
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
    pub fn pairs(&self, start: Millis, end: Millis) -> Vec<(String, SharedText)> {
        let lookback = &self.carried.lookback_delta;
        let mut pairs = vec![
            ("query".to_owned(), self.query.clone()),
            ("start".to_owned(), write_time(start).into()),
            ("end".to_owned(), write_time(end).into()),
            ("step".to_owned(), write_step(self.step).into()),
        ];
        if !lookback.is_empty() {
            pairs.push(("lookback_delta".to_owned(), lookback.as_str().into()));
        }
        let other = self.other.iter();
        pairs.extend(other.map(|(name, value)| (name.clone(), value.as_str().into())));
        pairs
    }
}

/// An instant query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstantQuery {
    /// The expression as it was written.
    pub query: SharedText,
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

    /// Reads the query in `params`, and takes its expression out of them. Errors are in the words of
    /// Prometheus.
    pub fn read(params: &mut Params) -> Result<Self, Error> {
        let time = match params.get("time") {
            "" => None,
            text => {
                let said = |e| invalid("time", &format!("Invalid time value for 'time': {e}"));
                Some(to_millis(read_time(text).map_err(said)?))
            }
        };
        Ok(Self {
            query: params.take("query").into(),
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

/// Parses one `name=value`, if the name is known.
fn pair(text: &[u8], is_known: impl Fn(&str) -> bool) -> Result<Option<(String, String)>, Error> {
    if text.is_empty() || memchr(b';', text).is_some() {
        return Ok(None);
    }
    let end = memchr(b'=', text).unwrap_or(text.len());
    let name = text.get(..end).and_then(unescaped);
    let name = name.as_deref().and_then(|name| str::from_utf8(name).ok());
    let Some(name) = name.filter(|name| is_known(name)) else {
        return Ok(None);
    };
    let Some(value) = unescaped(text.get(end + 1..).unwrap_or_default()) else {
        return Ok(None);
    };
    match String::from_utf8(value.into_owned()) {
        Ok(value) => Ok(Some((name.to_owned(), value))),
        Err(_) => Err(invalid(name, "it is not UTF-8")),
    }
}

/// Returns `text` unescaped, or `None` if an escape is invalid.
fn unescaped(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(first) = memchr2(b'+', b'%', text) else {
        return Some(Cow::Borrowed(text));
    };
    let (before, rest) = text.split_at_checked(first)?;
    let escapes = memchr_iter(b'%', rest).count();
    let mut plain = Vec::with_capacity(text.len().checked_sub(2 * escapes)?);
    plain.extend_from_slice(before);
    let mut bytes = rest.iter();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'+' => b' ',
            b'%' => 16 * hex(*bytes.next()?)? + hex(*bytes.next()?)?,
            byte => *byte,
        });
    }
    Some(Cow::Owned(plain))
}

/// Returns the value of a hexadecimal digit.
fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(url: &str) -> Params {
        Params::read(Some(url), None, |_| true).unwrap()
    }

    fn read(url: &str) -> Result<RangeQuery, Error> {
        RangeQuery::read(&mut all(url))
    }

    #[test]
    fn the_first_value_counts_and_the_form_comes_first() {
        let params = Params::read(
            Some("a=url&b=%C3%A9+%2B&b=2&c&&=x"),
            Some(b"d=1;e=2&a=form&f=%zz&g=%4&h=%41"),
            |_| true,
        );
        let params = params.unwrap();
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
        assert_eq!(&*query.query, "up + 1");
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
        let instant = InstantQuery::read(&mut all("query=up&time=1.5&x=1")).unwrap();
        assert_eq!((instant.time, instant.other.len()), (Some(1500), 1));
        let now = InstantQuery::read(&mut all("query=up&time=")).unwrap();
        assert_eq!(now.time, None);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let url = "_=1543578564&query=up&dedup=true&match[]=b&x=1&match[]=a&query=g";
        let known = |name: &str| ["query", "match[]", "dedup"].contains(&name);
        let mut params = Params::read(Some(url), None, known).unwrap();
        assert_eq!(params.take_all("match[]"), ["b", "a"]);
        params.replace("match[]", vec!["c".to_owned(), "d".to_owned()]);
        let pairs: Vec<_> = params.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(
            pairs.join("&"),
            "query=up&dedup=true&match[]=c&match[]=d&query=g"
        );
    }

    #[test]
    fn many_parameters_and_broken_text_are_refused_by_their_names() {
        let form = |text: &[u8]| Params::read(None, Some(text), |name| name == "match[]");
        let many = "match[]=a&".repeat(MOST_PARAMETERS);
        assert_eq!(form(many.as_bytes()).unwrap().iter().count(), 10_000);
        let more = form(format!("{many}match[]").as_bytes()).unwrap_err();
        assert!(more.message.contains("10000 parameters"), "{more}");
        // Those that nobody knows do not count.
        let unknown = format!("{many}{}", "a&=&\u{e9}=1&".repeat(10_000));
        assert!(form(unknown.as_bytes()).is_ok());
        for broken in [&b"match[]=%ff"[..], b"match[]=\xc3("] {
            let error = form(broken).unwrap_err();
            assert!(
                error.message.contains("\"match[]\": it is not UTF-8"),
                "{error}"
            );
        }
        assert!(form(b"a=%ff&%ff=a&\xc3=1").is_ok());
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
                query: query.into(),
                start,
                end: start + steps * step,
                step: Step::new(step).unwrap(),
                timeout: None,
                carried: Carried::default(),
                other: vec![("a b".to_owned(), "&=;é".to_owned())],
            };
            let form = asked.form(asked.start, asked.end);
            let mut params = Params::read(None, Some(form.as_bytes()), |_| true).unwrap();
            prop_assert_eq!(RangeQuery::read(&mut params).unwrap(), asked);
        }
    }
}
