//! The law for range queries: over any order of windows, steps, evictions, failures and clock
//! steps, the body is the one that the source writes directly, to the byte.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use http::header::{DATE, HeaderValue};
use http::{HeaderMap, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::adapters::Adapter;
use crate::adapters::Response;
use crate::adapters::prometheus::Prometheus;
use crate::engine::Lookup;
use crate::engine::tests::{Clocks, Keeping, engine_over};
use crate::model::{
    Aggregate, Condition, Layout, MetricQuery, Scalar, Selector, Step, Test, TimeRange,
};
use crate::upstream::{AnswerShare, BoxFuture, Outgoing, Transport};
use crate::wire::encoding::Encoding;
use crate::wire::prometheus::Params;

const SERIES: [&str; 3] = ["a", "b", "c"];

/// Whether `series` has a sample at second `t`: one has gaps, one comes and goes.
fn has_sample(series: &str, t: Millis) -> bool {
    match series {
        "a" => true,
        "b" => t / 1000 % 7 != 0 && t / 60_000 % 5 != 0,
        _ => t / 300_000 % 2 == 0,
    }
}

/// When the sample of `series` at `t` has arrived: some are late, by less than data settles in.
fn arrival(series: &str, t: Millis) -> Millis {
    t + (t / 1000 * 7919 + series.len() as Millis).rem_euclid(19) * 1000
}

/// Returns the number of samples of `series` that there were at `now` in the five seconds up to
/// `t`.
fn value(series: &str, t: Millis, now: Millis) -> Option<usize> {
    let newest = t.div_euclid(1000) * 1000;
    let samples = (0..5).map(|i| newest - i * 1000).filter(|s| *s > t - 5000);
    let there = samples.filter(|s| has_sample(series, *s) && arrival(series, *s) <= now);
    Some(there.count()).filter(|n| *n > 0)
}

/// The body that the source gives at `now`.
fn direct(first: Millis, last: Millis, step: Millis, now: Millis) -> String {
    let mut body = r#"{"status":"success","data":{"resultType":"matrix","result":["#.to_owned();
    let mut comma = "";
    for series in SERIES {
        let times = (0..).map(|i| first + i * step).take_while(|t| *t <= last);
        let mut values = String::new();
        for (t, v) in times.filter_map(|t| Some((t, value(series, t, now)?))) {
            let (seconds, rest) = (t / 1000, t % 1000);
            let fraction = if rest == 0 {
                String::new()
            } else {
                format!(".{rest:03}")
            };
            write!(values, "[{seconds}{fraction},\"{v}\"],").unwrap();
        }
        if values.pop().is_some() {
            write!(
                body,
                "{comma}{{\"metric\":{{\"s\":\"{series}\"}},\"values\":[{values}]}}"
            )
            .unwrap();
            comma = ",";
        }
    }
    body + "]}}"
}

/// The body of an answer without series.
const NO_SERIES: &str = r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#;

/// The warning of an answer with gaps.
const WARNED: &str = r#","warnings":["a store is down"]"#;
const PARTIAL: &str = r#","isPartial":true"#;

/// A Prometheus in memory.
struct Source {
    clocks: Arc<Clocks>,
    failing: AtomicBool,
    /// Set while it lacks data, and says so in a warning.
    warning: AtomicBool,
    /// Set while it lacks data, and says `isPartial`.
    partial: AtomicBool,
    /// Set while it rounds start and end down to multiples of the step.
    aligning: AtomicBool,
    /// Set while it writes `null` for no series.
    null: AtomicBool,
    calls: Mutex<Vec<(Millis, Millis)>>,
}

impl Transport for Source {
    fn send(
        &self,
        request: Outgoing,
        _: Arc<AnswerShare>,
    ) -> BoxFuture<'_, Result<Response, Error>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if self.failing.load(Ordering::SeqCst) {
                return Err(Error::new(Kind::UpstreamUnreachable, "down"));
            }
            let asked = RangeQuery::read(&mut Params::read(None, Some(&request.body), |_| true)?)?;
            self.calls.lock().unwrap().push((asked.start, asked.end));
            let now = self.clocks.truth();
            let is = |kind: &AtomicBool| kind.load(Ordering::SeqCst);
            let (mut start, mut end, step) = (asked.start, asked.end, asked.step);
            if is(&self.aligning) {
                (start, end) = (step.floor(start), step.floor(end));
            }
            let mut body = direct(start, end, step.millis(), now);
            if is(&self.warning) || is(&self.partial) {
                body = NO_SERIES.to_owned();
            }
            if is(&self.null) && body == NO_SERIES {
                body = body.replace("[]", "null");
            }
            for (kind, said) in [(&self.warning, WARNED), (&self.partial, PARTIAL)] {
                if is(kind) {
                    body.insert_str(body.len() - 1, said);
                }
            }
            let date = UNIX_EPOCH + Duration::from_millis(now as u64);
            let date = HeaderValue::from_str(&httpdate::fmt_http_date(date)).unwrap();
            Ok(Response {
                status: StatusCode::OK,
                headers: HeaderMap::from_iter([(DATE, date)]),
                body: Bytes::from(body),
            })
        })
    }
}

struct World {
    clocks: Arc<Clocks>,
    source: Arc<Source>,
    engine: Arc<Engine>,
}

impl World {
    fn new(refresh: Millis) -> Self {
        let clocks = Arc::new(Clocks::new());
        let source = Arc::new(Source {
            clocks: clocks.clone(),
            failing: AtomicBool::new(false),
            warning: AtomicBool::new(false),
            partial: AtomicBool::new(false),
            aligning: AtomicBool::new(false),
            null: AtomicBool::new(false),
            calls: Mutex::default(),
        });
        let adapter = Prometheus::new(Step::SECOND, false, 20_000);
        let keeping = Keeping {
            recheck: 0,
            refresh,
            while_revalidating: 0,
            aggregate: Aggregate::Auto,
        };
        Self {
            engine: engine_over(source.clone(), &clocks, Box::new(adapter), keeping),
            clocks,
            source,
        }
    }

    async fn ask(&self, start: Millis, end: Millis, step: Millis) -> Result<CachedResponse, Error> {
        let text = format!(
            "query=x&start={}&end={}&step={}ms",
            seconds(start),
            seconds(end),
            step
        );
        let query =
            RangeQuery::read(&mut Params::read(Some(&text), None, |_| true).unwrap()).unwrap();
        assert_eq!(
            (query.start, query.end, query.step.millis()),
            (start, end, step)
        );
        let request = RangeRequest {
            query,
            lag: 0,
            headers: Vec::new(),
        };
        let upstream = self.engine.upstreams()[0].clone();
        let context = self.clocks.context(Encoding::Identity);
        self.engine.query_range(&upstream, request, &context).await
    }

    fn calls(&self) -> Vec<(Millis, Millis)> {
        std::mem::take(&mut self.source.calls.lock().unwrap())
    }
}

fn seconds(millis: Millis) -> String {
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

fn text(answer: &CachedResponse) -> String {
    String::from_utf8(answer.encoding.join(answer.body.clone()).concat()).unwrap()
}

#[derive(Clone, Debug)]
enum Op {
    /// A window that ends about `back` before now, or after it, `odd` off the common grid.
    Query {
        back: Millis,
        len: Millis,
        step: Millis,
        odd: Millis,
    },
    Pass(Millis),
    Skew(Millis),
    Evict(i64),
    EvictAll,
    Failing(bool),
    Warning(bool),
    Partial(bool),
    Aligning(bool),
    Null(bool),
}

fn op() -> impl Strategy<Value = Op> {
    let step = prop::sample::select(vec![1000i64, 1500, 3000, 7000, 15_000, 60_000]);
    let back = prop_oneof![4 => -20_000i64..100_000, 1 => 0i64..4_000_000];
    let len = prop_oneof![0i64..180_000, 0i64..1_000_000];
    let odd = prop_oneof![6 => Just(0i64), 1 => 0i64..60_000];
    prop_oneof![
        10 => (back, len, step, odd)
            .prop_map(|(back, len, step, odd)| Op::Query { back, len, step, odd }),
        6 => prop_oneof![Just(3000i64), 0i64..40_000, 0i64..4_000_000].prop_map(Op::Pass),
        1 => (-4_000_000i64..4_000_000).prop_map(Op::Skew),
        1 => (0i64..4).prop_map(Op::Evict),
        1 => Just(Op::EvictAll),
        2 => any::<bool>().prop_map(Op::Failing),
        1 => any::<bool>().prop_map(Op::Warning),
        1 => any::<bool>().prop_map(Op::Partial),
        1 => any::<bool>().prop_map(Op::Aligning),
        1 => any::<bool>().prop_map(Op::Null),
    ]
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(test);
}

/// Holds each answer to the one that the source gives directly, while `ops` happen.
fn hold_the_law(ops: &[Op]) {
    run(async {
        let world = World::new(0);
        let is = |kind: &AtomicBool| kind.load(Ordering::SeqCst);
        for op in ops {
            let now = world.clocks.truth();
            match *op {
                Op::Query {
                    back,
                    len,
                    step,
                    odd,
                } => {
                    let start = (now - back - len) / 60_000 * 60_000 + odd;
                    let end = start + len;
                    let answer = match world.ask(start, end, step).await {
                        Ok(answer) => answer,
                        Err(error) => {
                            let failing = is(&world.source.failing);
                            assert!(failing, "only a failing source is an excuse: {error:?}");
                            continue;
                        }
                    };
                    let got = text(&answer);
                    let admits = got.ends_with(&format!("{WARNED}}}"))
                        || got.contains(&format!("{PARTIAL}}}"))
                        || got.contains(&format!("{PARTIAL},"));
                    if answer.cache.detail.is_some() || admits {
                        continue;
                    }
                    let (mut start, mut last) = (start, start + (end - start) / step * step);
                    if answer.cache.bypass.is_some() && is(&world.source.aligning) {
                        assert_ne!(start % step, 0, "only such are passed on: {op:?}");
                        (start, last) = (start / step * step, end / step * step);
                    }
                    let got = got.replace(":null}", ":[]}");
                    assert_eq!(got, direct(start, last, step, now), "{op:?}");
                }
                Op::Pass(millis) => world.clocks.pass(millis),
                Op::Skew(millis) => world.clocks.skew.store(millis, Ordering::SeqCst),
                Op::Evict(n) => world
                    .engine
                    .memory
                    .cache
                    .evict(|index| index.rem_euclid(4) == n),
                Op::EvictAll => world.engine.memory.cache.clear(),
                Op::Failing(is) => world.source.failing.store(is, Ordering::SeqCst),
                Op::Warning(is) => world.source.warning.store(is, Ordering::SeqCst),
                Op::Partial(is) => world.source.partial.store(is, Ordering::SeqCst),
                Op::Aligning(is) => world.source.aligning.store(is, Ordering::SeqCst),
                Op::Null(is) => world.source.null.store(is, Ordering::SeqCst),
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_the_source_s_own_to_the_byte(ops in prop::collection::vec(op(), 1..40)) {
        hold_the_law(&ops);
    }
}

/// Found by the property test above.
#[test]
fn a_coarse_step_does_not_take_over_a_tail_that_has_expired() {
    let query = |len, step| Op::Query {
        back: 0,
        len,
        step,
        odd: 0,
    };
    hold_the_law(&[
        query(0, 1000),
        Op::Pass(3_268_153),
        Op::Pass(18_172),
        query(47_000, 1000),
        Op::Pass(3000),
        query(57_000, 3000),
    ]);
}

/// A time long past, on every grid.
const OLD: Millis = 1_699_920_000_000;

#[test]
fn known_values_are_not_fetched_again() {
    run(async {
        let world = World::new(10_000);
        let first = world.ask(OLD, OLD + 300_000, 15_000).await.unwrap();
        assert_eq!(first.cache.lookup, Lookup::Miss);
        let slid = world
            .ask(OLD + 30_000, OLD + 330_000, 15_000)
            .await
            .unwrap();
        assert_eq!(slid.cache.lookup, Lookup::Partial);
        assert_eq!(
            world.calls(),
            [(OLD, OLD + 300_000), (OLD + 315_000, OLD + 330_000)]
        );
        // Between two evaluation times there is nothing to ask for.
        let within = world
            .ask(OLD + 30_000, OLD + 344_999, 15_000)
            .await
            .unwrap();
        assert_eq!((within.cache.lookup, world.calls().len()), (Lookup::Hit, 0));
        // Another phase shares nothing.
        world.ask(OLD + 1, OLD + 300_000, 15_000).await.unwrap();
        assert_eq!(world.calls(), [(OLD + 1, OLD + 285_001)]);
    });
}

#[test]
fn coarse_steps_come_out_of_finer_ones_where_all_times_meet() {
    run(async {
        let world = World::new(10_000);
        world.ask(OLD, OLD + 600_000, 15_000).await.unwrap();
        assert_eq!(world.calls().len(), 1);
        let coarse = world
            .ask(OLD + 60_000, OLD + 600_000, 60_000)
            .await
            .unwrap();
        assert_eq!(
            text(&coarse),
            direct(OLD + 60_000, OLD + 600_000, 60_000, world.clocks.truth())
        );
        assert_eq!((coarse.cache.lookup, world.calls().len()), (Lookup::Hit, 0));
        // Its times are not among those known, or not all of its range is known.
        world.ask(OLD + 1000, OLD + 600_000, 60_000).await.unwrap();
        world.ask(OLD, OLD + 660_000, 30_000).await.unwrap();
        assert_eq!(world.calls().len(), 2);
    });
}

/// Laid out over the window of the second query, the chunks of the first would take 140 GB.
#[test]
fn a_fine_step_is_not_laid_out_over_a_window_of_centuries() {
    run(async {
        let world = World::new(10_000);
        let start = 1_700_000_000_000;
        world.ask(start, start, 1).await.unwrap();
        let wide = 9_000_000_000_000;
        let answer = world.ask(0, wide, wide).await.unwrap();
        assert_eq!(text(&answer), direct(0, wide, wide, world.clocks.truth()));
    });
}

#[test]
fn warnings_are_passed_on_and_what_came_with_them_is_not_kept() {
    run(async {
        let world = World::new(10_000);
        world.source.warning.store(true, Ordering::SeqCst);
        let warned = world.ask(OLD, OLD + 60_000, 15_000).await.unwrap();
        assert!(
            text(&warned).ends_with(r#"]},"warnings":["a store is down"]}"#),
            "{}",
            text(&warned)
        );
        assert!(!warned.cache.stored);
        world.source.warning.store(false, Ordering::SeqCst);
        let whole = world.ask(OLD, OLD + 60_000, 15_000).await.unwrap();
        assert_eq!(
            text(&whole),
            direct(OLD, OLD + 60_000, 15_000, world.clocks.truth())
        );
    });
}

#[test]
fn is_partial_is_passed_on_whichever_piece_said_so_and_is_not_kept() {
    run(async {
        let world = World::new(10_000);
        world.ask(OLD, OLD + 60_000, 15_000).await.unwrap();
        world.source.partial.store(true, Ordering::SeqCst);
        let partial = world.ask(OLD, OLD + 120_000, 15_000).await.unwrap();
        let got = text(&partial);
        assert!(got.ends_with(r#"]},"isPartial":true}"#), "{got}");
        assert!(
            got.contains(r#"{"s":"a"}"#),
            "what is cached is shown: {got}"
        );
        assert_eq!(partial.cache.lookup, Lookup::Partial);
        assert!(!partial.cache.stored);
        world.source.partial.store(false, Ordering::SeqCst);
        let whole = world.ask(OLD, OLD + 120_000, 15_000).await.unwrap();
        let now = world.clocks.truth();
        assert_eq!(text(&whole), direct(OLD, OLD + 120_000, 15_000, now));
    });
}

#[test]
fn answers_on_the_grid_of_an_upstream_that_aligns_are_passed_on() {
    run(async {
        let world = World::new(10_000);
        world.source.aligning.store(true, Ordering::SeqCst);
        for (calls, off) in [(2, 1), (1, 7_001)] {
            let answer = world.ask(OLD + off, OLD + off + 60_000, 15_000).await;
            let answer = answer.unwrap();
            let now = world.clocks.truth();
            assert_eq!(text(&answer), direct(OLD, OLD + 60_000, 15_000, now));
            assert_eq!(answer.cache.bypass, Some("aligned by the upstream"));
            assert_eq!(world.calls().len(), calls);
        }
        // What starts on the grid is cached as ever.
        world.ask(OLD, OLD + 61_000, 15_000).await.unwrap();
        let hit = world.ask(OLD, OLD + 60_000, 15_000).await.unwrap();
        assert_eq!((hit.cache.lookup, hit.cache.bypass), (Lookup::Hit, None));
        // It is not believed to do so for ever.
        world.source.aligning.store(false, Ordering::SeqCst);
        world.clocks.pass(600_000);
        let answer = world.ask(OLD + 1, OLD + 60_001, 15_000).await.unwrap();
        assert!(answer.cache.bypass.is_none() && answer.cache.stored);
    });
}

#[test]
fn long_ranges_are_asked_for_in_parts() {
    run(async {
        let world = World::new(10_000);
        let limits = crate::model::RangeLimits {
            series: 3,
            span: 120_000,
        };
        let adapter = Prometheus::new(Step::SECOND, false, 20_000);
        let expression = Expression {
            query: "x".into(),
            step: Step::new(15_000).unwrap(),
            phase: 5000,
            lag: 0,
            parameters: Vec::new(),
            headers: Vec::new(),
        };
        let range = TimeRange::new(OLD, OLD + 300_000).unwrap();
        let parts = adapter.range(&expression, &range, limits).unwrap();
        let starts: Vec<_> = parts.iter().map(|p| p.start - OLD).collect();
        assert_eq!(starts, [5000, 125_000, 245_000]);
        // More than 11,000 steps would be refused.
        let long = world.ask(OLD - 11_000_000, OLD, 1000).await.unwrap();
        assert_eq!(world.calls().len(), 2);
        assert_eq!(
            text(&long),
            direct(OLD - 11_000_000, OLD, 1000, world.clocks.truth())
        );
    });
}

/// Settled data is 20 seconds old.
#[test]
fn points_of_an_expression_settle_with_the_newest_sample_that_they_read() {
    run(async {
        let calls_for = |text: String, back: Millis| async move {
            let world = World::new(1000);
            let condition = Condition {
                key: "~".into(),
                test: Test::Is(Scalar::String(text)),
            };
            let end = world.clocks.truth() - back;
            let query = MetricQuery {
                selector: Selector::new(vec![condition]),
                metric_field: None,
                range: TimeRange::clamped(end - 60_000, end),
                limit: None,
                layout: Layout::Raw,
            };
            for _ in 0..2 {
                let context = world.clocks.context(Encoding::Identity);
                let answer = world.engine.answer(&query, &context);
                answer.await.unwrap();
                world.clocks.pass(5000);
            }
            world.calls().len()
        };
        let soon = crate::engine::tests::BEGIN / 1000 + 60;
        for (text, back, calls) in [
            ("up".to_owned(), 30_000, 1),
            ("up offset -1m".to_owned(), 30_000, 2),
            ("up offset -1m".to_owned(), 90_000, 1),
            ("up offset 1m".to_owned(), 0, 1),
            (format!("up @ {soon}"), 90_000, 2),
            ("up @ 1600000000".to_owned(), 0, 1),
        ] {
            assert_eq!(calls_for(text.clone(), back).await, calls, "{text}");
        }
    });
}
