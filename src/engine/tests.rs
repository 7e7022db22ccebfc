//! The law: over any order of queries, evictions, upstream failures and clock steps, the answer
//! through the cache is the one that the source gives directly.

mod overload;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::header::{DATE, HeaderValue};
use http::{HeaderMap, StatusCode};
use proptest::prelude::*;
use tokio::time::Instant;

use super::lane::Lane;
use super::*;
use crate::adapters::mirror::Mirror;
use crate::adapters::{Adapter, Response};
use crate::aggregate::aggregate;
use crate::model::{
    Aggregate, Batching, Freshness, IncompleteBuckets, InstantAlignment, Kind, Layout, Limits,
    MetricQuery, MultiSeries, Points, RangeLimits, Reading, Selector, Statistic, Step,
    StepAlignment, TargetUrl, TimeRange,
};
use crate::telemetry::metrics::UpstreamMetrics;
use crate::upstream::{
    AnswerMemory, AnswerShare, BoxFuture, ClientConfig, Forward, Identity, Outgoing, Transport,
    UpstreamClient,
};
use crate::wire::encoding::Encoding;
use crate::wire::mirror::request::{RequestBounds, read_metric};
use crate::wire::mirror::response::{METRIC_HEAD, metric_tail};
use crate::wire::number::{write_bucket, write_point};

/// Clients that ask for different times read different encodings.
const ENCODINGS: [Encoding; 3] = [Encoding::Identity, Encoding::Gzip, Encoding::Zstd];
pub(super) const BEGIN: Millis = 1_700_000_000_000;
pub(super) const INTERVAL: Millis = 1000;
pub(super) const SETTLE: Millis = 20_000;
pub(super) const MAX_STALE: Millis = 60_000;

/// Our clocks, and the true time, which is the upstream's.
#[derive(Debug)]
pub(super) struct Clocks {
    truth: AtomicI64,
    pub(super) skew: AtomicI64,
    monotonic: AtomicU64,
    /// Ranges whose values the upstream has changed since, each by one.
    pub(super) rewritten: Mutex<Vec<TimeRange>>,
    /// Points of this range have not come yet, however old they are.
    pub(super) late: Mutex<TimeRange>,
}

impl Clocks {
    pub(super) fn new() -> Self {
        Self {
            truth: AtomicI64::new(BEGIN),
            skew: AtomicI64::new(0),
            monotonic: AtomicU64::new(5_000_000),
            rewritten: Mutex::default(),
            late: Mutex::new(TimeRange::clamped(0, 0)),
        }
    }

    /// Returns the context of a request that comes now.
    pub(super) fn context(&self, encoding: Encoding) -> RequestContext {
        let deadline = Instant::now() + Duration::from_secs(60);
        RequestContext {
            arrived: self.monotonic(),
            wall: self.now(),
            deadline,
            call: CallContext::new(None, deadline, crate::telemetry::trace::Trace::default()),
            encoding,
            max_age: None,
            level_wait: None,
        }
    }

    pub(super) fn pass(&self, millis: i64) {
        self.truth.fetch_add(millis, Ordering::SeqCst);
        self.monotonic.fetch_add(millis as u64, Ordering::SeqCst);
    }

    pub(super) fn truth(&self) -> Millis {
        self.truth.load(Ordering::SeqCst)
    }
}

impl Clock for Clocks {
    fn now(&self) -> Millis {
        self.truth() + self.skew.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic.load(Ordering::SeqCst))
    }
}

/// The runtime's clock, which a test pauses.
#[derive(Debug)]
pub(super) struct RuntimeClock(Instant);

impl RuntimeClock {
    pub(super) fn starting_now() -> Self {
        Self(Instant::now())
    }
}

impl Clock for RuntimeClock {
    fn now(&self) -> Millis {
        1_700_000_000_000 + self.0.elapsed().as_millis() as Millis
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(1_000_000) + self.0.elapsed()
    }
}

fn hash(n: i64) -> u64 {
    let mut x = (n as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The points of `range` that can be seen at `now`: off the grid, with gaps, some late by nearly
/// as long as data takes to settle, some at the same time.
fn visible(range: &TimeRange, clocks: &Clocks, now: Millis) -> Points {
    let rewritten = clocks.rewritten.lock().unwrap();
    let missing = *clocks.late.lock().unwrap();
    let mut pairs = Vec::new();
    for k in range.start() / INTERVAL - 1..=range.end() / INTERVAL {
        for series in 0..2i64 {
            let random = hash(k * 2 + series);
            let jitter = if random.is_multiple_of(3) {
                0
            } else {
                (random >> 8) as i64 % INTERVAL
            };
            let late = if random.is_multiple_of(5) {
                (random >> 20) as i64 % (SETTLE - 2000)
            } else {
                0
            };
            let gap = hash(k / 37).is_multiple_of(4);
            let time = k * INTERVAL + jitter;
            if !gap && !missing.holds(time) && range.holds(time) && time + late <= now {
                let changed = rewritten.iter().filter(|r| r.holds(time)).count();
                pairs.push((time, (random % 10_000) as f64 / 100.0 + changed as f64));
            }
        }
    }
    Points::from_unsorted(pairs)
}

/// Returns the answer to `query`, computed without any cache.
pub(super) fn direct(query: &MetricQuery, clocks: &Clocks, now: Millis) -> Vec<(Millis, f64)> {
    match query.layout {
        Layout::Raw => visible(&query.range, clocks, now).iter().collect(),
        Layout::Buckets { statistic, size } => {
            let range = query.range.aligned(size);
            let points = visible(&range, clocks, now);
            aggregate(&points, statistic, size, &range).iter().collect()
        }
    }
}

/// A mirror in memory.
pub(super) struct Source {
    clocks: Arc<Clocks>,
    pub(super) failing: AtomicBool,
    truncating: AtomicBool,
    asked: Mutex<Vec<TimeRange>>,
    /// Answers that meet this range do not come.
    withheld: Mutex<Option<TimeRange>>,
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
            let query = read_metric(&request.body, RequestBounds::default())?.query;
            self.asked.lock().unwrap().push(query.range);
            let is_withheld = || {
                let withheld = *self.withheld.lock().unwrap();
                withheld.is_some_and(|withheld| withheld.intersection(&query.range).is_some())
            };
            while is_withheld() {
                tokio::task::yield_now().await;
            }
            let now = self.clocks.truth();
            let points = direct(&query, &self.clocks, now);
            let mut limit = query.limit.unwrap_or(u32::MAX) as usize;
            if self.truncating.load(Ordering::SeqCst) {
                limit = limit.min(700);
            }
            let mut body = METRIC_HEAD.to_vec();
            for (i, (time, value)) in points.iter().take(limit).enumerate() {
                if i > 0 {
                    body.push(b',');
                }
                match query.layout {
                    Layout::Raw => write_point(&mut body, *time, *value),
                    Layout::Buckets { size, .. } => write_bucket(&mut body, *time, size, *value),
                }
            }
            let aggregated = query.layout != Layout::Raw;
            body.extend_from_slice(metric_tail(aggregated, points.len() > limit));
            for _ in 0..3 {
                // The world may change before the answer arrives.
                tokio::task::yield_now().await;
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

/// The freshness of an upstream's data.
#[derive(Clone, Copy)]
pub(super) struct Keeping {
    pub(super) recheck: Millis,
    pub(super) refresh: Millis,
    pub(super) while_revalidating: Millis,
    pub(super) aggregate: Aggregate,
}

/// An engine over one upstream, named "law", that is reached by `transport`.
pub(super) fn engine_over(
    transport: Arc<dyn Transport>,
    clocks: &Arc<Clocks>,
    adapter: Box<dyn Adapter>,
    keeping: Keeping,
) -> Arc<Engine> {
    let clock: Arc<dyn Clock> = clocks.clone();
    engine_with(transport, &clock, adapter, keeping, Memory::new(64 << 20))
}

/// The same over `memory`.
pub(super) fn engine_with(
    transport: Arc<dyn Transport>,
    clock: &Arc<dyn Clock>,
    adapter: Box<dyn Adapter>,
    keeping: Keeping,
    memory: Arc<Memory>,
) -> Arc<Engine> {
    let limits = Limits::for_tests();
    engine_limited(transport, clock, adapter, keeping, memory, limits, true)
}

/// The same, whose upstream has these `limits`, and is refreshed `ahead` of polls or not.
pub(super) fn engine_limited(
    transport: Arc<dyn Transport>,
    clock: &Arc<dyn Clock>,
    adapter: Box<dyn Adapter>,
    keeping: Keeping,
    memory: Arc<Memory>,
    limits: Limits,
    ahead: bool,
) -> Arc<Engine> {
    let upstream = upstream_over(transport, clock, adapter, keeping, limits, ahead);
    engine_of(upstream, memory, clock)
}

/// An engine over `upstream` that answers from `memory`.
pub(super) fn engine_of(
    upstream: Upstream,
    memory: Arc<Memory>,
    clock: &Arc<dyn Clock>,
) -> Arc<Engine> {
    let none = Box::new(|_, _, _, _| unreachable!("no targets are allowed"));
    let upstreams = vec![Arc::new(upstream)];
    let registry = Registry::new(upstreams, "law".into(), Vec::new(), none);
    Engine::new(registry, memory, 100_000, clock.clone())
}

/// An upstream named "law" that is reached by `transport`.
pub(super) fn upstream_over(
    transport: Arc<dyn Transport>,
    clock: &Arc<dyn Clock>,
    adapter: Box<dyn Adapter>,
    keeping: Keeping,
    limits: Limits,
    ahead: bool,
) -> Upstream {
    let metrics = UpstreamMetrics::new("law");
    let client = UpstreamClient::new(ClientConfig {
        units: None,
        batch: Batching::default(),
        signer: None,
        transport,
        urls: vec![TargetUrl::parse("http://source").unwrap()],
        headers: crate::reloadable::Reloadable::fixed(http::HeaderMap::new()),
        limits,
        joint: None,
        shared: None,
        method: crate::model::QueryMethod::Auto,
        max_response: usize::MAX,
        answers: AnswerMemory::new(usize::MAX),
        budget_file: None,
        metrics: metrics.clone(),
        clock: clock.clone(),
    });
    let millis = |m: Millis| Duration::from_millis(m as u64);
    let freshness = Freshness {
        settle: SETTLE,
        refresh: millis(keeping.refresh),
        recheck: millis(keeping.recheck),
        max_stale: millis(MAX_STALE),
        stale_while_revalidate: millis(keeping.while_revalidating),
        history_ttl: Duration::from_secs(3600),
        metadata_ttl: Duration::from_secs(60),
    };
    let reading = Reading {
        interval: Step::new(INTERVAL).unwrap(),
        aggregate: keeping.aggregate,
        raw_points_max: 2000,
        multi_series: MultiSeries::Merge,
        incomplete_buckets: IncompleteBuckets::Include,
        max_response: usize::MAX,
        range_limits: RangeLimits {
            series: usize::MAX,
            span: 0,
        },
        step_alignment: StepAlignment::Exact,
        parameters: Vec::new(),
        instant_alignment: InstantAlignment::Refresh,
        refresh_ahead: ahead,
        replicas: crate::model::Replicas::Same,
        replica_labels: Vec::new(),
        method: crate::model::QueryMethod::Auto,
    };
    Upstream {
        identity: Identity::new(),
        freshness,
        reading,
        adapter,
        stored_as: Some(Arc::from(&b"law"[..])),
        forward: Forward::Nothing,
        client,
        metrics,
    }
}

pub(super) struct World {
    pub(super) clocks: Arc<Clocks>,
    pub(super) source: Arc<Source>,
    pub(super) engine: Arc<Engine>,
}

impl Engine {
    /// Answers `query` for the default upstream.
    pub(super) async fn answer(
        self: &Arc<Self>,
        query: &MetricQuery,
        context: &RequestContext,
    ) -> Result<Answer, Error> {
        let prepared = self.prepare(&Details::default(), query.clone())?;
        self.metric(&prepared, &query.range, context).await
    }
}

impl World {
    pub(super) fn new(refresh: Millis, aggregate: Aggregate) -> Self {
        Self::revalidating(refresh, aggregate, 0)
    }

    /// A world in which data is served for so long after it expired while it is fetched anew.
    fn revalidating(refresh: Millis, aggregate: Aggregate, while_revalidating: Millis) -> Self {
        Self::with(refresh, aggregate, while_revalidating, 0)
    }

    /// The same, in which what settled less than `recheck` ago is looked at again.
    fn with(
        refresh: Millis,
        aggregate: Aggregate,
        while_revalidating: Millis,
        recheck: Millis,
    ) -> Self {
        let clocks = Arc::new(Clocks::new());
        let source = Arc::new(Source {
            clocks: clocks.clone(),
            failing: AtomicBool::new(false),
            truncating: AtomicBool::new(false),
            asked: Mutex::default(),
            withheld: Mutex::default(),
        });
        let mirror = Mirror {
            api_key: None,
            page: 100_000,
        };
        let keeping = Keeping {
            recheck,
            refresh,
            while_revalidating,
            aggregate,
        };
        Self {
            engine: engine_over(source.clone(), &clocks, Box::new(mirror), keeping),
            clocks,
            source,
        }
    }

    async fn ask(&self, query: &MetricQuery) -> Result<Answer, Error> {
        let encoding = ENCODINGS[query.range.start().rem_euclid(3) as usize];
        let context = self.clocks.context(encoding);
        self.engine.answer(query, &context).await
    }

    /// The upstream changes what it has in `range`, and that is forgotten.
    fn rewrite(&self, range: TimeRange) {
        self.clocks.rewritten.lock().unwrap().push(range);
        let selection = Selection {
            range: Some(range),
            ..Selection::default()
        };
        self.engine
            .invalidate(&self.engine.upstreams()[0], &selection);
    }

    pub(super) fn calls(&self) -> Vec<TimeRange> {
        std::mem::take(&mut self.source.asked.lock().unwrap())
    }
}

/// The points of an answer, as a client reads them.
pub(super) fn points(answer: &Answer) -> Vec<(Millis, f64)> {
    let points = answer.encoding.join(answer.points.clone()).concat();
    let points = match answer.encoding {
        Encoding::Identity => points,
        Encoding::Gzip => {
            let mut text = Vec::new();
            std::io::copy(&mut flate2::read::GzDecoder::new(&points[..]), &mut text).unwrap();
            text
        }
        Encoding::Zstd => zstd::stream::decode_all(&points[..]).unwrap(),
    };
    let text = [b"[", points.as_slice(), b"]"].concat();
    let rows: Vec<Vec<f64>> = serde_json::from_slice(&text).unwrap();
    rows.iter().map(|r| (r[1] as Millis, r[0])).collect()
}

pub(super) fn query(start: Millis, end: Millis, layout: Layout) -> MetricQuery {
    MetricQuery {
        selector: Selector::default(),
        metric_field: None,
        range: TimeRange::new(start, end).unwrap(),
        limit: None,
        layout,
    }
}

/// A lane of raw points.
pub(super) fn lane() -> Lane {
    let upstream = World::new(0, Aggregate::Local).engine.upstreams()[0].clone();
    Lane::of(upstream, &Details::default(), query(0, 0, Layout::Raw))
}

pub(super) fn buckets(statistic: Statistic, size: Millis) -> Layout {
    Layout::Buckets {
        statistic,
        size: Step::new(size).unwrap(),
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// A query that ends `back` before now (after it if negative) and is `len` long.
    Query {
        back: Millis,
        len: Millis,
        layout: Layout,
    },
    /// Two queries at once.
    Pair {
        back: Millis,
        len: Millis,
        apart: Millis,
        layout: Layout,
    },
    Pass(Millis),
    Skew(Millis),
    Evict(i64),
    EvictAll,
    Failing(bool),
    Truncating(bool),
    /// The upstream changes what it has in a range, and that is forgotten here; perhaps so many
    /// steps after a query for it began.
    Rewrite {
        back: Millis,
        len: Millis,
        during: Option<(Layout, u8)>,
    },
}

pub(super) fn layout() -> impl Strategy<Value = Layout> {
    let size = prop::sample::select(vec![700i64, 5000, 60_000, 333_000]);
    let statistic = prop::sample::select(Statistic::ALL.to_vec());
    prop_oneof![
        2 => Just(Layout::Raw),
        5 => (statistic, size).prop_map(|(statistic, size)| buckets(statistic, size)),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let back = prop_oneof![3 => -30_000i64..60_000, 2 => 0i64..3_000_000];
    let len = prop_oneof![1i64..90_000, 1i64..2_500_000];
    prop_oneof![
        10 => (back.clone(), len.clone(), layout())
            .prop_map(|(back, len, layout)| Op::Query { back, len, layout }),
        2 => (back.clone(), len.clone(), prop::option::of((layout(), 0u8..12)))
            .prop_map(|(back, len, during)| Op::Rewrite { back, len, during }),
        2 => (back, len, 0i64..50_000, layout())
            .prop_map(|(back, len, apart, layout)| Op::Pair { back, len, apart, layout }),
        6 => prop_oneof![0i64..3000, 0i64..40_000, 0i64..4_000_000].prop_map(Op::Pass),
        1 => (-4_000_000i64..4_000_000).prop_map(Op::Skew),
        1 => (0i64..4).prop_map(Op::Evict),
        1 => Just(Op::EvictAll),
        2 => any::<bool>().prop_map(Op::Failing),
        1 => any::<bool>().prop_map(Op::Truncating),
    ]
}

/// Holds an answer to the law. `refresh` is how old the tail may be.
pub(super) fn check(
    world: &World,
    asked: &MetricQuery,
    result: &Result<Answer, Error>,
    refresh: Millis,
) {
    let now = world.clocks.truth();
    let failing = world.source.failing.load(Ordering::SeqCst);
    let answer = match result {
        Ok(answer) => answer,
        Err(error) => {
            assert!(failing, "only a failing source is an excuse: {error:?}");
            return;
        }
    };
    let got = points(answer);
    if refresh == 0 && answer.cache.detail.is_none() {
        assert_eq!(got, direct(asked, &world.clocks, now), "{asked:?} at {now}");
        return;
    }
    // What was served may be as old as a refresh or, marked, as stale as may be: nothing that
    // came later can be missing, and nothing that is not there can be shown.
    let (oldest, edge) = match &answer.cache.detail {
        None => (refresh, Millis::MAX),
        Some(detail) => {
            assert!(failing, "{detail}");
            assert!(answer.cache.ttl_seconds < 0);
            let edge = detail.rsplit_once("known to ").unwrap().1;
            (refresh + MAX_STALE, edge.parse().unwrap())
        }
    };
    if asked.layout != Layout::Raw {
        let settled =
            |p: &&(Millis, f64)| p.0 + 400_000 < (now - oldest - SETTLE) && p.0 + 400_000 < edge;
        let expected = direct(asked, &world.clocks, now);
        let expected: Vec<_> = expected.iter().filter(settled).collect();
        let got: Vec<_> = got.iter().filter(settled).collect();
        assert_eq!(got, expected, "{asked:?} at {now}");
        return;
    }
    let newest = direct(asked, &world.clocks, now);
    let mut at = 0;
    for point in &got {
        let found = newest[at..].iter().position(|p| p == point);
        at += 1 + found.unwrap_or_else(|| panic!("{point:?} is not in the source: {asked:?}"));
    }
    let old = direct(asked, &world.clocks, now - oldest);
    let missing = old.iter().find(|p| p.0 < edge && !got.contains(p));
    assert_eq!(missing, None, "{asked:?} at {now}, {:?}", answer.cache);
}

fn obey(ops: &[Op], refresh: Millis, aggregate: Aggregate) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(refresh, aggregate);
        for op in ops {
            let now = world.clocks.truth();
            match *op {
                Op::Query { back, len, layout } => {
                    let asked = query(now - back - len, now - back, layout);
                    let result = world.ask(&asked).await;
                    check(&world, &asked, &result, refresh);
                }
                Op::Pair {
                    back,
                    len,
                    apart,
                    layout,
                } => {
                    let one = query(now - back - len, now - back, layout);
                    let two = query(now - back - len - apart, now - back - apart, layout);
                    let (a, b) = tokio::join!(world.ask(&one), world.ask(&two));
                    check(&world, &one, &a, refresh);
                    check(&world, &two, &b, refresh);
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
                Op::Truncating(is) => world.source.truncating.store(is, Ordering::SeqCst),
                Op::Rewrite { back, len, during } => {
                    let range = TimeRange::new(now - back - len, now - back).unwrap();
                    let Some((layout, steps)) = during else {
                        world.rewrite(range);
                        continue;
                    };
                    let asked = query(range.start(), range.end(), layout);
                    let rewrite = async {
                        for _ in 0..steps {
                            tokio::task::yield_now().await;
                        }
                        world.rewrite(range);
                    };
                    // It may have seen either.
                    let _ = tokio::join!(world.ask(&asked), rewrite);
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn cached_answers_equal_direct_ones_to_the_bit_when_nothing_may_be_old(
        ops in prop::collection::vec(op(), 1..40),
        aggregate in prop::sample::select(vec![Aggregate::Local, Aggregate::Upstream, Aggregate::Auto]),
    ) {
        obey(&ops, 0, aggregate);
    }

    #[test]
    fn cached_answers_equal_direct_ones_up_to_the_refresh_time(
        ops in prop::collection::vec(op(), 1..40),
        aggregate in prop::sample::select(vec![Aggregate::Local, Aggregate::Upstream, Aggregate::Auto]),
    ) {
        obey(&ops, 7000, aggregate);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sliding_window_asks_only_for_the_tail() {
    let world = World::new(10_000, Aggregate::Auto);
    let layout = buckets(Statistic::Mean, 60_000);
    for _ in 0..20 {
        let now = world.clocks.truth();
        world
            .ask(&query(now - 1_800_000, now, layout))
            .await
            .unwrap();
        world.clocks.pass(10_000);
    }
    let calls = world.calls();
    assert_eq!(calls.len(), 20, "one call a refresh");
    for call in &calls[1..] {
        // From the bucket in which settled data ends to a refresh ahead, on the bucket grid.
        assert!(call.millis() <= SETTLE + 10_000 + 2 * 60_000, "{call:?}");
    }
}

/// Lets time pass by both clocks, the engine's and the runtime's.
async fn wait(world: &World, millis: i64) {
    for _ in 0..millis / 50 {
        world.clocks.pass(50);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_steady_poll_is_refreshed_before_it_is_due() {
    for (pace, layout) in [
        (10_000, Layout::Raw),
        (60_000, buckets(Statistic::Mean, 60_000)),
        (60_000, Layout::Raw),
    ] {
        let world = World::new(10_000, Aggregate::Auto);
        for poll in 0..12 {
            let now = world.clocks.truth();
            let asked = query(now - 1_800_000, now, layout);
            let answer = world.ask(&asked).await.unwrap();
            let hit = answer.cache.lookup == Lookup::Hit;
            assert_eq!(hit, poll >= 3, "poll {poll} of {layout:?}");
            // A poll comes a little early or late.
            wait(&world, pace + [0, 50, -50][poll % 3]).await;
        }
        let calls = world.calls().len();
        assert!((12..=13).contains(&calls), "{calls} calls for 12 polls");
        // Nobody polls any more.
        wait(&world, 5 * pace).await;
        assert!(
            world.calls().len() <= 1,
            "one call for a poll that did not come"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn points_that_come_after_they_settled_are_found_by_a_second_look() {
    const RECHECK: Millis = 600_000;
    for layout in [Layout::Raw, buckets(Statistic::Count, 10_000)] {
        let world = World::with(10_000, Aggregate::Local, 0, RECHECK);
        let begin = world.clocks.truth();
        let late = TimeRange::clamped(begin + 10_000, begin + 40_000);
        *world.clocks.late.lock().unwrap() = late;
        let ask = async || {
            let now = world.clocks.truth();
            let asked = query(begin - 100_000, now, layout);
            points(&world.ask(&asked).await.unwrap())
        };
        let due = |world: &World| {
            let asked = query(begin, begin + 60_000, layout);
            direct(&asked, &world.clocks, world.clocks.truth())
        };
        let known = |all: &[(Millis, f64)]| -> Vec<(Millis, f64)> {
            let inside = |p: &&(Millis, f64)| (begin..begin + 60_000).contains(&p.0);
            all.iter().filter(inside).copied().collect()
        };
        // An irregular pace, so that nothing is refreshed ahead.
        for pause in [7_000, 12_000, 25_000, 45_000] {
            ask().await;
            wait(&world, pause).await;
        }
        assert_eq!(known(&ask().await), due(&world));
        // They come more than `settle` after their time.
        *world.clocks.late.lock().unwrap() = TimeRange::clamped(0, 0);
        assert_ne!(known(&ask().await), due(&world), "settled without them");
        for pause in [31_000, 47_000, 62_000, 11_000, 83_000] {
            wait(&world, pause).await;
            ask().await;
        }
        assert_eq!(known(&ask().await), due(&world));
        let calls = world.calls();
        let again = calls.iter().filter(|c| c.start() < begin + 10_000);
        assert!(again.count() <= 8, "{calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn buckets_that_are_made_during_a_second_look_are_made_again() {
    let world = World::with(10_000, Aggregate::Local, 0, 600_000);
    let end = world.clocks.truth() - 100_000;
    let lane = |layout, range: TimeRange| {
        let upstream = world.engine.upstreams()[0].clone();
        let query = query(range.start(), range.end(), layout);
        Lane::of(upstream, &Details::default(), query)
    };
    let layout = buckets(Statistic::Count, 10_000);
    let all = TimeRange::clamped(end - 5_000_000, end);
    let raw = lane(Layout::Raw, all);
    // Of several chunks, the first has points that came late, and the last is not cached.
    let late = TimeRange::clamped(all.start() + 10_000, all.start() + 40_000);
    let last = TimeRange::clamped(end - 10_000, end);
    assert!(raw.chunk_span().cells_in(&all) > 2);
    *world.clocks.late.lock().unwrap() = late;
    let asked = query(all.start(), all.end(), layout);
    let before = points(&world.ask(&asked).await.unwrap());
    *world.clocks.late.lock().unwrap() = TimeRange::clamped(0, 0);
    let cache = &world.engine.memory.cache;
    cache.invalidate(|key| *key != raw.key);
    cache.invalidate_range(&raw.upstream, &last, |key| *key == raw.key);
    *world.source.withheld.lock().unwrap() = Some(last);
    let look = async {
        // Once the first chunk has been read for the buckets.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        world.engine.recheck(&raw, late).await;
        *world.source.withheld.lock().unwrap() = None;
    };
    let (during, ()) = tokio::join!(world.ask(&asked), look);
    // Not `assert_eq!`: there are hundreds.
    assert!(points(&during.unwrap()) == before, "read before");
    let due = direct(&asked, &world.clocks, world.clocks.truth());
    assert!(before != due, "some came late");
    assert!(
        points(&world.ask(&asked).await.unwrap()) == due,
        "all there are now"
    );
    let again = world.ask(&asked).await.unwrap();
    assert_eq!(again.cache.lookup, Lookup::Hit, "what is made then stays");
}

#[tokio::test(start_paused = true)]
async fn expired_points_are_not_followed_by_later_ones_beyond_a_hole() {
    let world = World::new(10_000, Aggregate::Auto);
    let begin = world.clocks.truth();
    let start = begin - 1990 * INTERVAL;
    world.ask(&query(start, begin, Layout::Raw)).await.unwrap();
    // Read in two: the first part has a tail of then, the second is fresh.
    world.clocks.pass(40 * INTERVAL);
    let (middle, now) = (start + 2000 * INTERVAL, world.clocks.truth());
    world.ask(&query(middle, now, Layout::Raw)).await.unwrap();
    world.source.failing.store(true, Ordering::SeqCst);
    let answer = world.ask(&query(start, now, Layout::Raw)).await.unwrap();
    assert!(answer.cache.error || answer.cache.ttl_seconds < 0);
    assert!(answer.partial);
    let last = points(&answer).last().map(|p| p.0);
    assert!(last.is_some_and(|t| t < middle), "{last:?} of {begin}");
    // Where the expired part is the last, the answer ends where it is known to.
    let end = middle - INTERVAL;
    let answer = world.ask(&query(start, end, Layout::Raw)).await.unwrap();
    assert!(!answer.partial);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_polled_at_a_steady_pace_is_not_refreshed() {
    let world = World::new(10_000, Aggregate::Auto);
    let mut asks = 0;
    for pause in [10_000, 15_000, 31_000, 12_000, 22_000, 11_000] {
        let now = world.clocks.truth();
        let asked = query(now - 600_000, now, Layout::Raw);
        world.ask(&asked).await.unwrap();
        asks += 1;
        wait(&world, pause).await;
    }
    // History does not change, however often it is asked for.
    let now = world.clocks.truth();
    let history = query(now - 3_000_000, now - 1_800_000, Layout::Raw);
    for _ in 0..5 {
        world.ask(&history).await.unwrap();
        wait(&world, 10_000).await;
    }
    assert_eq!(world.calls().len(), asks + 1);
}

#[tokio::test(start_paused = true)]
async fn within_a_refresh_a_window_that_slides_costs_no_call() {
    let world = World::new(10_000, Aggregate::Auto);
    for _ in 0..9 {
        let now = world.clocks.truth();
        world
            .ask(&query(now - 600_000, now, Layout::Raw))
            .await
            .unwrap();
        world.clocks.pass(1000);
    }
    assert_eq!(world.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_statistic_of_one_series_shares_its_raw_points() {
    let world = World::new(10_000, Aggregate::Local);
    let now = world.clocks.truth();
    for statistic in Statistic::ALL {
        for size in [5000, 60_000] {
            let asked = query(now - 1_200_000, now - 600_000, buckets(statistic, size));
            world.ask(&asked).await.unwrap();
        }
    }
    assert!(
        world.calls().len() <= 3,
        "once, and once for each edge of larger buckets"
    );
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_clients_at_once_cost_one_call() {
    let world = Arc::new(World::new(10_000, Aggregate::Auto));
    let now = world.clocks.truth();
    let tasks: Vec<_> = (0..10_000)
        .map(|i| {
            let world = world.clone();
            let layout = buckets(Statistic::ALL[i % 12], 60_000);
            tokio::spawn(async move { world.ask(&query(now - 1_800_000, now, layout)).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(world.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_has_just_expired_is_served_at_once_and_fetched_once_meanwhile() {
    for layout in [Layout::Raw, buckets(Statistic::Max, 60_000)] {
        let world = World::revalidating(10_000, Aggregate::Local, 30_000);
        let ask = async || {
            let now = world.clocks.truth();
            world.ask(&query(now - 600_000, now, layout)).await.unwrap()
        };
        ask().await;
        world.clocks.pass(15_000);
        world.calls();
        for _ in 0..3 {
            let answer = ask().await;
            assert!(answer.cache.ttl_seconds < 0, "{:?}", answer.cache);
            assert!(answer.cache.detail.unwrap().contains("revalidating"));
        }
        // The fetch goes on by itself; then the data is fresh again.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let calls = world.calls();
        assert_eq!(calls.len(), 1, "{layout:?}: {calls:?}");
        let fresh = ask().await;
        assert_eq!(
            (fresh.cache.lookup, fresh.cache.detail),
            (Lookup::Hit, None)
        );
        world.clocks.pass(10_000 + 31_000);
        let too_old = ask().await;
        assert_eq!(too_old.cache.detail, None);
        let calls = world.calls();
        assert_eq!(calls.len(), 1, "{layout:?}: {calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_after_the_moment_of_a_fetch_is_known_by_it() {
    let world = World::new(10_000, Aggregate::Local);
    let now = world.clocks.truth();
    let hours = query(now - 3_600_000, now, buckets(Statistic::Mean, 3_600_000));
    world.ask(&hours).await.unwrap();
    world.source.failing.store(true, Ordering::SeqCst);
    world.clocks.pass(75_000);
    let after = query(now + 30_000, now + 75_000, Layout::Raw);
    let error = world.ask(&after).await.unwrap_err();
    assert_eq!(error.kind, Kind::UpstreamUnreachable);
    let before = query(now - 60_000, now + 75_000, Layout::Raw);
    world.clocks.pass(-10_000);
    let stale = world.ask(&before).await.unwrap().cache.detail.unwrap();
    assert!(stale.ends_with(&format!("known to {now}")), "{stale}");
}

#[tokio::test(start_paused = true)]
async fn all_of_an_upstream_is_dropped_at_once() {
    let world = World::new(10_000, Aggregate::Auto);
    let now = world.clocks.truth();
    let asked = query(now - 3_000_000, now - 600_000, Layout::Raw);
    world.ask(&asked).await.unwrap();
    let upstream = world.engine.upstreams()[0].clone();
    let chunks = world.engine.cache_stats()[0].chunks;
    assert!(chunks > 1);
    let dropped = world.engine.invalidate(&upstream, &Selection::default());
    assert_eq!(dropped as u64, chunks);
    assert_eq!(world.engine.cache_stats()[0].chunks, 0);
    let miss = world.ask(&asked).await.unwrap();
    assert_eq!(miss.cache.lookup, Lookup::Miss);
    assert_eq!(world.calls().len(), 4, "two stretches each time");
}

#[tokio::test(start_paused = true)]
async fn errors_about_caps_state_the_cap() {
    let world = World::new(0, Aggregate::Auto);
    let refused = |asked: MetricQuery| {
        let world = &world;
        async move { world.ask(&asked).await.unwrap_err() }
    };
    let buckets_cap = refused(query(0, 100_001, buckets(Statistic::Sum, 1))).await;
    assert_eq!(buckets_cap.kind, Kind::TooManyPoints);
    assert!(buckets_cap.message.contains("100000"), "{buckets_cap}");
    let local = World::new(0, Aggregate::Local);
    let all_of_time = query(0, BEGIN, buckets(Statistic::Max, BEGIN));
    let local_cap = local.ask(&all_of_time).await.unwrap_err();
    assert_eq!(local_cap.kind, Kind::TooManyPoints);
    assert!(local_cap.message.contains("32000"), "{local_cap}");
    let context = local.clocks.context(Encoding::Identity);
    let explained = local
        .engine
        .explain_metric(&Details::default(), all_of_time, &context)
        .await;
    assert_eq!(explained.unwrap_err().kind, Kind::TooManyPoints);
    assert!(local.calls().is_empty());
    let raw_cap = refused(query(0, 2000 * 16 * INTERVAL + 1, Layout::Raw)).await;
    assert_eq!(raw_cap.kind, Kind::TooManyPoints);
    assert!(raw_cap.message.contains("32000"), "{raw_cap}");
}
