//! Explanations of answers: the state of the cache for a query, and what would be fetched for it
//! and why, without a call to an upstream.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::cache::Chunks;
use super::chunk::Segment;
use super::fetch::{Source, policy};
use super::lane::Lane;
use super::parts::parts;
use super::plan::{Known, Lookup, classify, lifetime};
use super::revalidate::while_revalidating;
use super::second::peek::{Peek, gained};
use super::summaries::{made_of, routed};
use super::{Engine, RequestContext};
use crate::model::{Error, Millis, RangeSet, Step, TimeRange};
use crate::upstream::Upstream;

/// An explanation of the answer to a query.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The name of the upstream.
    pub upstream: String,
    /// The source of the answer.
    pub answer: AnswerSource,
    /// The reason for which a fetch would be refused now, if it would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The reason for which the answer is not cached, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bypass: Option<&'static str>,
    /// The parts of the range that are looked up one after the other.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stretches: Vec<RangeReport>,
    /// The whole answer, where it is cached whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole: Option<ResponseReport>,
}

/// The source of an answer; a later one takes longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AnswerSource {
    /// All of it is cached and fresh.
    Cache,
    /// All of it is in memory or in the second level of the cache.
    SecondLevel,
    /// Cached data that has just expired, while it is fetched.
    Expired,
    /// A fetch that is in flight.
    Wait,
    /// A fetch.
    Fetch,
    /// None: a fetch would be needed, and refused.
    Refused,
}

/// The state of the cache for a range.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeReport {
    /// The range, on the grid of buckets.
    #[serde(flatten)]
    pub period: TimeSpan,
    /// Milliseconds between two points: the bucket size, the step, or the native interval.
    pub cell_millis: Millis,
    /// The result of a look-up: `hit`, `stale`, `partial` or `miss`.
    pub held: &'static str,
    /// Seconds for which it stays fresh, if nothing is missing.
    pub fresh_seconds: f64,
    /// The cached ranges.
    pub cached: Vec<Cached>,
    /// The ranges that would be fetched.
    pub missing: Vec<Missing>,
    /// Set if all of it that is missing is being fetched already.
    pub under_way: bool,
    /// The time up to which it could be answered with expired data if the upstream failed, in
    /// milliseconds.
    pub fallback_to: Option<Millis>,
    /// The raw points that its buckets are made of, where they are made here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_of: Option<Box<RangeReport>>,
    /// The same of older parts, of which the upstream keeps coarser summaries.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub older: Vec<RangeReport>,
    /// The period of these summaries, where that is not the upstream's interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// Set if the range is made of other cached data.
    #[serde(skip)]
    derived: bool,
    /// Set if expired data is served at once while it is fetched again.
    #[serde(skip)]
    expired: bool,
    /// Whether some of it is in the second level only.
    #[serde(skip)]
    second_level: bool,
}

/// A range of time: milliseconds of Unix time, the end left out, and the same as text.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TimeSpan {
    start_time: Millis,
    end_time: Millis,
    period: String,
}

impl From<TimeRange> for TimeSpan {
    fn from(range: TimeRange) -> Self {
        // A time without a calendar date, such as the end of a bucket of ten thousand years, stays
        // a number.
        let at = |millis: Millis| {
            let since = u64::try_from(millis).map(Duration::from_millis).ok()?;
            let time = std::time::UNIX_EPOCH.checked_add(since)?;
            let mut text = String::new();
            write!(text, "{}", humantime::format_rfc3339_millis(time)).ok()?;
            Some(text)
        };
        let at = |millis| at(millis).unwrap_or_else(|| millis.to_string());
        Self {
            start_time: range.start(),
            end_time: range.end(),
            period: format!("{}/{}", at(range.start()), at(range.end())),
        }
    }
}

/// A part of a range that is cached.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cached {
    /// The part.
    #[serde(flatten)]
    pub period: TimeSpan,
    /// Seconds since its fetch began.
    pub age_seconds: f64,
    /// Set if the data can no longer change.
    pub settled: bool,
    /// Seconds for which it is still fresh; less than 0 where it has expired.
    pub fresh_seconds: f64,
    /// Whether it is in the second level of the cache and not in memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub second_level: bool,
}

/// A part of a range that would be fetched.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Missing {
    /// The part.
    #[serde(flatten)]
    pub period: TimeSpan,
    /// The reasons, part by part.
    pub why: Vec<RangeReason>,
    /// The calls that would be made: method and path, without headers and body.
    pub calls: Vec<String>,
    /// The units that the upstream would bill for these calls, if it bills any.
    #[serde(skip_serializing_if = "is_zero")]
    pub units: u32,
}

/// Returns whether `units` is 0.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(units: &u32) -> bool {
    *units == 0
}

/// The reason for which a part would be fetched.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RangeReason {
    /// The part.
    #[serde(flatten)]
    pub period: TimeSpan,
    /// `unknown`: never fetched, evicted, or invalidated; `expired`; `along`: fresh, but fetched
    /// with its neighbours because another call would cost more; `ahead`: for later requests.
    pub reason: &'static str,
}

/// A whole answer, or a list of names or values.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResponseReport {
    /// The result of a look-up: `hit`, `stale` or `miss`.
    pub held: &'static str,
    /// Seconds since its fetch began.
    pub age_seconds: Option<f64>,
    /// Seconds for which it is still fresh; less than 0 where it has expired.
    pub fresh_seconds: Option<f64>,
    /// Whether it is in the second level of the cache and not in memory.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub second_level: bool,
    /// Set if a fetch of it is in flight.
    pub under_way: bool,
}

/// Returns `lifetime` less `age`, in seconds.
fn left(lifetime: Duration, age: Duration) -> f64 {
    lifetime.as_secs_f64() - age.as_secs_f64()
}

impl ResponseReport {
    /// Returns the report of an answer that was fetched `age` ago and is fresh for `lifetime`, if
    /// it is cached.
    pub(super) fn of(
        known: Option<(Duration, Duration)>,
        second_level: bool,
        under_way: bool,
    ) -> Self {
        let held = match known {
            None => Lookup::Miss,
            Some((age, lifetime)) if age < lifetime => Lookup::Hit,
            Some(_) => Lookup::Stale,
        };
        Self {
            held: held.name(),
            age_seconds: known.map(|(age, _)| age.as_secs_f64()),
            fresh_seconds: known.map(|(age, lifetime)| left(lifetime, age)),
            second_level,
            under_way,
        }
    }

    fn origin(&self) -> AnswerSource {
        match self.held == Lookup::Hit.name() {
            true if self.second_level => AnswerSource::SecondLevel,
            true => AnswerSource::Cache,
            false if self.under_way => AnswerSource::Wait,
            false => AnswerSource::Fetch,
        }
    }
}

impl Explanation {
    /// Returns the explanation of an answer of `upstream` made of `stretches` or the `whole`.
    pub(super) fn new(
        upstream: &Upstream,
        stretches: Vec<RangeReport>,
        whole: Option<ResponseReport>,
        context: &RequestContext,
    ) -> Self {
        let parts = stretches.iter().map(RangeReport::origin);
        let parts = parts.chain(whole.iter().map(ResponseReport::origin));
        let mut answer = parts.max().unwrap_or(AnswerSource::Cache);
        let call = &context.call;
        let refused = upstream.client.refusal(call.caller, context.deadline);
        let refused = refused.filter(|_| answer == AnswerSource::Fetch);
        if refused.is_some() {
            answer = AnswerSource::Refused;
        }
        Self {
            upstream: upstream.name().to_owned(),
            answer,
            refused: refused.map(|e| e.to_string()),
            bypass: None,
            stretches,
            whole,
        }
    }
}

impl RangeReport {
    fn origin(&self) -> AnswerSource {
        match &self.made_of {
            _ if self.missing.is_empty() && self.second_level => AnswerSource::SecondLevel,
            _ if self.missing.is_empty() => AnswerSource::Cache,
            _ if self.expired => AnswerSource::Expired,
            Some(raw) => {
                let older = self.older.iter().map(Self::origin);
                older.fold(raw.origin(), AnswerSource::max)
            }
            // The range is known to be empty.
            None if self.derived => AnswerSource::Cache,
            None if self.under_way => AnswerSource::Wait,
            None => AnswerSource::Fetch,
        }
    }
}

impl Engine {
    /// Returns the report of `range` of `lane`, whose points come from `source`. The second level is
    /// read for it, and nothing is kept.
    pub(super) async fn explain(
        &self,
        lane: &Lane,
        range: TimeRange,
        source: Source,
        context: &RequestContext,
    ) -> Result<RangeReport, Error> {
        let mut peek = Peek::default();
        let mut stretch = self.stretch(lane, range, source, context, &mut peek)?;
        // What buckets are made of is looked at once it is known that they are not there.
        for _ in 0..2 {
            if !self.peek(&mut peek, context).await {
                break;
            }
            stretch = self.stretch(lane, range, source, context, &mut peek)?;
        }
        let chunks = self.memory.cache.look_up(lane, &range);
        stretch.expired = while_revalidating(lane, &range, &chunks, context).is_some();
        Ok(stretch)
    }

    /// The same, without the handling of expired data: raw points that buckets are made of are
    /// always fresh.
    fn stretch(
        &self,
        lane: &Lane,
        range: TimeRange,
        source: Source,
        context: &RequestContext,
        peek: &mut Peek,
    ) -> Result<RangeReport, Error> {
        let mut chunks = self.memory.cache.look_up(lane, &range);
        let mut plan = self.plan(lane, &range, &chunks, &RangeSet::new(), context);
        let policy = policy(lane, context);
        let now = context.now().monotonic;
        let held = chunks.coverage();
        let (mut from_level, mut gone) = (Vec::new(), RangeSet::new());
        if source == Source::Upstream
            && let Some(piece) = peek.of(lane, &plan.missing)
        {
            (from_level, gone) = gained(&held, piece);
            chunks.update(lane, &Chunks::beside(lane, piece));
            plan = self.plan(lane, &range, &chunks, &RangeSet::new(), context);
        }
        let coverage = chunks.coverage();
        let none = RangeSet::new();
        let Known { fresh, known, .. } =
            classify(&range, &coverage, &none, &policy, &context.now());
        let mut cached = Vec::new();
        let mut add = |segment: &Segment, part: &TimeRange, second_level| {
            let Some(part) = part.intersection(&range) else {
                return;
            };
            let age = now.saturating_sub(segment.fetched);
            let lifetime = lifetime(segment, &policy);
            cached.push(Cached {
                period: part.into(),
                age_seconds: age.as_secs_f64(),
                settled: segment.settled,
                fresh_seconds: left(lifetime, age),
                second_level,
            });
        };
        for segment in &held {
            for part in gone.missing_from(segment.range).iter() {
                add(segment, part, false);
            }
        }
        for segment in &from_level {
            add(segment, &segment.range, true);
        }
        cached.sort_by_key(|part| part.period.start_time);
        let flights = self.memory.flights.under_way(&lane.key);
        let mut asked = plan.missing.iter().filter_map(|m| m.intersection(&range));
        let fetched = asked.all(|part| flights.missing_from(part).is_empty());
        let mut missing = Vec::new();
        for range_missing in &plan.missing {
            let calls = match source {
                Source::Upstream => parts(lane, *range_missing)?,
                // The reports of what it is made of have the calls.
                Source::RawPoints | Source::Summaries => Vec::new(),
            };
            let calls = calls.iter().map(|part| part.call.described());
            let (calls, units): (Vec<String>, Vec<u32>) = calls.unzip();
            missing.push(Missing {
                period: (*range_missing).into(),
                why: reasons(range_missing, &range, &known, &fresh),
                calls,
                units: units.into_iter().fold(0, u32::saturating_add),
            });
        }
        let hull = plan.missing.iter().copied().reduce(|a, b| a.hull(&b));
        let mut parts = match hull {
            Some(hull) => self.parts_of(lane, hull, source, context, peek)?,
            None => Vec::new(),
        };
        let made_of = parts.pop().map(Box::new);
        Ok(RangeReport {
            period: range.into(),
            cell_millis: lane.cell().millis(),
            held: plan.lookup.name(),
            fresh_seconds: match missing.is_empty() {
                true => plan.ttl.as_secs_f64(),
                false => 0.0,
            },
            cached,
            missing,
            under_way: fetched && !plan.missing.is_empty(),
            fallback_to: plan.fallback,
            made_of,
            older: parts,
            kept: None,
            derived: source != Source::Upstream,
            expired: false,
            second_level: !gone.is_empty(),
        })
    }

    /// Returns the reports of the data that `range` of `lane` is made of, if that is other data,
    /// the newest last.
    fn parts_of(
        &self,
        lane: &Lane,
        range: TimeRange,
        source: Source,
        context: &RequestContext,
        peek: &mut Peek,
    ) -> Result<Vec<RangeReport>, Error> {
        match source {
            Source::Upstream => Ok(Vec::new()),
            Source::RawPoints => {
                let raw = lane.raw().into_iter();
                let report = |raw: Lane| {
                    let source = routed(&raw).unwrap_or(Source::Upstream);
                    self.stretch(&raw, range, source, context, peek)
                };
                raw.map(report).collect()
            }
            Source::Summaries => {
                let parts = made_of(lane, &range).into_iter();
                let parts = parts.filter_map(|(part, of)| Some((part, of?)));
                let report = |(part, (summaries, period)): (TimeRange, (Lane, Step))| {
                    let range = part.aligned(period);
                    let mut report =
                        self.stretch(&summaries, range, Source::Upstream, context, peek)?;
                    let interval = lane.interval();
                    let length = Duration::from_millis(period.millis().unsigned_abs());
                    report.kept = (period != interval)
                        .then(|| humantime::format_duration(length).to_string());
                    Ok(report)
                };
                parts.map(report).collect()
            }
        }
    }
}

/// Returns the reasons for which `missing` is fetched for `range`, given the part of it that is
/// known and fresh.
fn reasons(
    missing: &TimeRange,
    range: &TimeRange,
    known: &RangeSet,
    fresh: &RangeSet,
) -> Vec<RangeReason> {
    let mut parts: Vec<(TimeRange, &str)> = Vec::new();
    if let Some(asked) = missing.intersection(range) {
        parts.extend(known.missing_from(asked).iter().map(|r| (*r, "unknown")));
        for part in known.iter().filter_map(|k| k.intersection(&asked)) {
            parts.extend(fresh.missing_from(part).iter().map(|r| (*r, "expired")));
        }
        let along = fresh.iter().filter_map(|f| f.intersection(&asked));
        parts.extend(along.map(|r| (r, "along")));
    }
    let ahead = TimeRange::clamped(missing.start().max(range.end()), missing.end());
    if !ahead.is_empty() {
        parts.push((ahead, "ahead"));
    }
    parts.sort_by_key(|(range, _)| range.start());
    let reason = |(range, reason): (TimeRange, _)| RangeReason {
        period: range.into(),
        reason,
    };
    parts.into_iter().map(reason).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_dates_as_far_as_there_are_some() {
        let said = |start, end| TimeSpan::from(TimeRange::clamped(start, end)).period;
        assert_eq!(
            said(0, 1_700_000_000_123),
            "1970-01-01T00:00:00.000Z/2023-11-14T22:13:20.123Z"
        );
        assert_eq!(said(-60_000, 506_804_601_600_000), "-60000/506804601600000");
    }
}
