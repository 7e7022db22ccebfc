//! The law over levels: whatever is lost, late, rolled back or restarted, and whatever the clocks
//! of several engines say, an answer is the one that the source gives directly.

use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::adapters::mirror::Mirror;
use crate::engine::tests::{
    Clocks, INTERVAL, Keeping, SETTLE, World, buckets, check, engine_with, layout, query,
};
use crate::engine::{Answer, Memory, Selection};
use crate::model::{Aggregate, Error, Layout, MetricQuery, Statistic};
use crate::store::key::{LaneName, Names, ValueKey};
use crate::store::sim::{Sim, SimFault};
use crate::store::{Found, Invalidation, Lease, LevelReply, Put};
use crate::wire::encoding::Encoding;

pub(super) const REFRESH: Millis = 10_000;

/// The clocks of one machine: its wall clock is off, and its monotonic one began at some time.
#[derive(Debug)]
pub(super) struct Machine {
    world: Arc<Clocks>,
    skew: AtomicI64,
    began: AtomicI64,
}

impl Machine {
    fn new(world: &Arc<Clocks>, number: i64) -> Arc<Self> {
        Arc::new(Self {
            world: world.clone(),
            skew: AtomicI64::new(0),
            began: AtomicI64::new(1_000_000_000 * (number + 1)),
        })
    }
}

impl Clock for Machine {
    fn now(&self) -> Millis {
        self.world.truth() + self.skew.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        self.world.monotonic() + Duration::from_millis(self.began.load(Ordering::SeqCst) as u64)
    }
}

/// A level as one machine sees it.
struct Seen {
    sim: Arc<Sim>,
    machine: Arc<Machine>,
    /// The error of the level's time, either way; `None` if its time is not known.
    time: Option<Millis>,
}

impl CacheLevel for Seen {
    fn name(&self) -> &'static str {
        self.sim.name()
    }

    fn is_shared(&self) -> bool {
        self.time.is_some()
    }

    fn names(&self) -> &Names {
        self.sim.names()
    }

    fn state(&self) -> Option<LevelState> {
        let monotonic = i64::try_from(self.machine.monotonic().as_millis()).unwrap();
        let clock = match self.time {
            Some(error) => LevelClock {
                // Off by up to the error, whichever machine it is.
                offset: self.machine.world.truth() - monotonic + error
                    - 2 * error * (self.machine.began.load(Ordering::SeqCst) / 1_000_000_000 % 2),
                error,
                trusted: true,
            },
            None => LevelClock {
                offset: self.machine.now() - monotonic,
                error: 0,
                trusted: false,
            },
        };
        Some(LevelState {
            invalidations: self.sim.invalidations(),
            clock,
            replicas: Arc::default(),
        })
    }

    fn read(&self, keys: Vec<ValueKey>) -> LevelReply<'_, Vec<Option<Found>>> {
        self.sim.read(keys)
    }

    fn write(&self, puts: Vec<Put>) -> LevelReply<'_, Vec<bool>> {
        self.sim.write(puts)
    }

    fn leases(&self) -> bool {
        self.sim.leases()
    }

    fn lease(&self, lane: &LaneName, range: TimeRange) -> LevelReply<'_, Lease> {
        self.sim.lease(lane, range)
    }

    fn applied(&self, _: Stamp) {}

    fn invalidate(&self, invalidation: Invalidation) -> LevelReply<'_, Stamp> {
        self.sim.invalidate(invalidation)
    }
}

/// A request waits 50 ms for a level that hangs; timers of the runtime are exact to the millisecond.
const WAIT: Duration = Duration::from_millis(51);

/// Makes an engine over a source that knows this world.
pub(super) type Make = Box<dyn Fn(&World, &Arc<dyn Clock>, Arc<Memory>) -> Arc<Engine>>;

/// Engines over one level and one source.
pub(super) struct Fleet {
    pub(super) sim: Arc<Sim>,
    time: Option<Millis>,
    make: Make,
    pub(super) members: Vec<(Arc<Machine>, World)>,
    epoch: u64,
}

impl Fleet {
    /// Of a mirror.
    fn new(count: usize, time: Option<Millis>, aggregate: Aggregate) -> Self {
        let make = move |world: &World, clock: &Arc<dyn Clock>, memory| {
            let mirror = Mirror {
                api_key: None,
                page: 100_000,
            };
            let source = world.source.clone();
            engine_with(source, clock, Box::new(mirror), keeping(aggregate), memory)
        };
        Self::with(count, time, Box::new(make))
    }

    pub(super) fn with(count: usize, time: Option<Millis>, make: Make) -> Self {
        let first = World::new(REFRESH, Aggregate::Local);
        let clock: Arc<dyn Clock> = first.clocks.clone();
        let mut fleet = Self {
            sim: Arc::new(Sim::new(1, clock)),
            time,
            make,
            members: Vec::new(),
            epoch: 1,
        };
        for number in 0..count {
            let machine = Machine::new(&first.clocks, number as i64);
            let world = World {
                clocks: first.clocks.clone(),
                source: first.source.clone(),
                engine: fleet.engine(&machine, &first),
            };
            fleet.members.push((machine, world));
        }
        fleet
    }

    fn engine(&self, machine: &Arc<Machine>, world: &World) -> Arc<Engine> {
        let clock: Arc<dyn Clock> = machine.clone();
        let level = LevelSetup {
            level: Arc::new(Seen {
                sim: self.sim.clone(),
                machine: machine.clone(),
                time: self.time,
            }),
            deadline: Duration::from_millis(50),
        };
        let memory = Memory::with_levels(64 << 20, vec![level], &clock);
        (self.make)(world, &clock, memory)
    }

    /// Returns the context of a request to a member that comes now.
    pub(super) fn context(&self, member: usize) -> crate::engine::RequestContext {
        let (machine, world) = &self.members[member];
        let mut context = world.clocks.context(Encoding::Identity);
        context.arrived = machine.monotonic();
        context.wall = machine.now();
        context
    }

    pub(super) fn clocks(&self) -> &Arc<Clocks> {
        &self.members[0].1.clocks
    }

    /// A member starts anew: what waited to be written is lost.
    pub(super) fn restart(&mut self, member: usize) {
        let (machine, world) = &self.members[member];
        machine.began.fetch_add(977_000, Ordering::SeqCst);
        let engine = self.engine(machine, world);
        self.members[member].1.engine = engine;
    }

    async fn ask(&self, member: usize, query: &MetricQuery) -> Result<Answer, Error> {
        let context = self.context(member);
        let (_, world) = &self.members[member];
        world.engine.answer(query, &context).await
    }

    pub(super) async fn flush(&self) {
        for (_, world) in &self.members {
            world.engine.flush().await;
        }
    }

    /// The source changes what it has in `range`, which one member is told; the others hear of it.
    pub(super) async fn rewrite(&self, member: usize, range: TimeRange) {
        self.clocks().rewritten.lock().unwrap().push(range);
        let selection = Selection {
            range: Some(range),
            ..Selection::default()
        };
        let (_, world) = &self.members[member];
        let upstream = &world.engine.upstreams()[0];
        while world
            .engine
            .invalidate_everywhere(upstream, selection.clone())
            .await
            .is_err()
        {}
        for (_, world) in &self.members {
            world.engine.catch_up().await;
        }
    }

    /// The level loses everything, which everybody hears of.
    async fn lose_all(&mut self) {
        self.epoch += 1;
        self.sim.lose_all(self.epoch);
        for (_, world) in &self.members {
            world.engine.catch_up().await;
        }
    }
}

pub(super) fn keeping(aggregate: Aggregate) -> Keeping {
    Keeping {
        recheck: 0,
        refresh: REFRESH,
        while_revalidating: 0,
        aggregate,
    }
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

#[derive(Clone, Debug)]
pub(super) enum FleetOp {
    /// A query that ends `back` before now and is `len` long.
    Query(usize, Millis, Millis, Layout),
    Other(WorldOp),
}

/// An event in a world besides queries.
#[derive(Clone, Debug)]
pub(super) enum WorldOp {
    Pass(Millis),
    /// Waits until all is written.
    Flush,
    Skew(usize, Millis),
    Restart(usize),
    /// Memory forgets its chunks.
    Clear(usize),
    Failing(bool),
    Rewrite(usize, Millis, Millis),
    Faults(Vec<SimFault>),
    Away(bool),
    Evict(u8),
    RollBack(usize),
    LoseAll,
}

fn fault() -> impl Strategy<Value = SimFault> {
    prop_oneof![
        Just(SimFault::None),
        Just(SimFault::Lost),
        Just(SimFault::ReplyLost),
        (1u64..2000).prop_map(|ms| SimFault::Late(Duration::from_millis(ms))),
    ]
}

/// Returns a strategy for a window: the time from its end to now, and its length.
pub(super) fn window() -> impl Strategy<Value = (Millis, Millis)> + Clone {
    let back = prop_oneof![3 => -20_000i64..60_000, 2 => 0i64..400_000];
    let len = prop_oneof![1i64..90_000, 1i64..500_000];
    (back, len)
}

fn fleet_op() -> impl Strategy<Value = FleetOp> {
    prop_oneof![
        14 => (0usize..5, window(), layout())
            .prop_map(|(who, (back, len), layout)| FleetOp::Query(who, back, len, layout)),
        29 => world_op().prop_map(FleetOp::Other),
    ]
}

pub(super) fn world_op() -> impl Strategy<Value = WorldOp> {
    prop_oneof![
        6 => prop_oneof![0i64..3000, 0i64..40_000, 0i64..400_000].prop_map(WorldOp::Pass),
        8 => Just(WorldOp::Flush),
        1 => (0usize..5, -3_600_000i64..3_600_000).prop_map(|(who, by)| WorldOp::Skew(who, by)),
        3 => (0usize..5).prop_map(WorldOp::Restart),
        2 => (0usize..5).prop_map(WorldOp::Clear),
        1 => any::<bool>().prop_map(WorldOp::Failing),
        2 => (0usize..5, window())
            .prop_map(|(who, (back, len))| WorldOp::Rewrite(who, back, len)),
        2 => prop::collection::vec(fault(), 0..12).prop_map(WorldOp::Faults),
        1 => any::<bool>().prop_map(WorldOp::Away),
        1 => any::<u8>().prop_map(WorldOp::Evict),
        1 => (1usize..20).prop_map(WorldOp::RollBack),
        1 => Just(WorldOp::LoseAll),
    ]
}

async fn obey(ops: &[FleetOp], count: usize, time: Option<Millis>, aggregate: Aggregate) {
    let mut fleet = Fleet::new(count, time, aggregate);
    for op in ops {
        match op {
            FleetOp::Query(who, back, len, layout) => {
                let who = who % count;
                let end = fleet.clocks().truth() - back;
                let asked = query(end - len, end, *layout);
                let result = fleet.ask(who, &asked).await;
                check(&fleet.members[who].1, &asked, &result, REFRESH);
            }
            FleetOp::Other(op) => fleet.undergo(op).await,
        }
    }
}

impl Fleet {
    pub(super) async fn undergo(&mut self, op: &WorldOp) {
        let count = self.members.len();
        match op {
            WorldOp::Pass(millis) => self.clocks().pass(*millis),
            WorldOp::Flush => self.flush().await,
            WorldOp::Skew(who, by) => {
                let machine = &self.members[who % count].0;
                machine.skew.store(*by, Ordering::SeqCst);
            }
            WorldOp::Restart(who) => self.restart(who % count),
            WorldOp::Clear(who) => self.members[who % count].1.engine.memory.cache.clear(),
            WorldOp::Failing(failing) => {
                let source = &self.members[0].1.source;
                source.failing.store(*failing, Ordering::SeqCst);
            }
            WorldOp::Rewrite(who, back, len) => {
                let end = self.clocks().truth() - back;
                self.sim.cut_off(false);
                let range = TimeRange::clamped(end - len, end);
                self.rewrite(who % count, range).await;
            }
            WorldOp::Faults(faults) => self.sim.faults(faults.clone()),
            WorldOp::Away(away) => self.sim.cut_off(*away),
            WorldOp::Evict(mask) => self
                .sim
                .evict(|key| (key.slot as u8 ^ key.lane[0]) & 7 == mask & 7),
            WorldOp::RollBack(n) => self.sim.roll_back(*n),
            WorldOp::LoseAll => self.lose_all().await,
        }
    }
}

/// Number of histories that are tried; 200 unless the environment sets it.
#[allow(
    clippy::disallowed_methods,
    reason = "a test may be told how long to run"
)]
pub(super) fn histories() -> u32 {
    let told = std::env::var("HELIOSTAT_HISTORIES").ok();
    told.and_then(|n| n.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(histories()))]

    #[test]
    fn answers_out_of_a_second_level_are_those_of_the_source(
        ops in prop::collection::vec(fleet_op(), 1..40),
        count in 1usize..=5,
        time in prop_oneof![Just(None), (0i64..400).prop_map(Some)],
        local in any::<bool>(),
    ) {
        let aggregate = if local { Aggregate::Local } else { Aggregate::Upstream };
        // Of what is known by wall time, there is one engine: it is on its disk.
        let count = if time.is_some() { count } else { 1 };
        runtime().block_on(obey(&ops, count, time, aggregate));
    }
}

const HOUR: Millis = 3_600_000;

#[test]
fn after_a_restart_only_what_may_still_change_is_fetched() {
    runtime().block_on(async {
        let mut fleet = Fleet::new(1, None, Aggregate::Local);
        let window = |fleet: &Fleet| {
            let end = fleet.clocks().truth();
            query(end - HOUR / 4, end, Layout::Raw)
        };
        // A dashboard that polls for a while.
        for _ in 0..50 {
            let asked = window(&fleet);
            fleet.ask(0, &asked).await.unwrap();
            fleet.clocks().pass(REFRESH + 1000);
        }
        fleet.flush().await;
        fleet.members[0].1.calls();
        fleet.restart(0);
        let asked = window(&fleet);
        let answer = fleet.ask(0, &asked).await;
        check(&fleet.members[0].1, &asked, &answer, REFRESH);
        let calls = fleet.members[0].1.calls();
        let [call] = &calls[..] else {
            panic!("one call for the tail: {calls:?}")
        };
        let settled = fleet.clocks().truth() - SETTLE - 2 * REFRESH - 2000 - INTERVAL;
        assert!(call.start() >= settled, "{call:?}, {settled}");
        // Polls go on without the level being asked.
        let old = query(
            asked.range.start(),
            asked.range.start() + 60_000,
            Layout::Raw,
        );
        fleet.restart(0);
        let answer = fleet.ask(0, &old).await.unwrap();
        assert_eq!(fleet.members[0].1.calls(), [], "history is not fetched");
        assert_eq!(answer.cache.lookup, crate::engine::Lookup::Hit);
    });
}

#[test]
fn late_points_that_a_second_look_found_are_kept_too() {
    runtime().block_on(async {
        let make = |world: &World, clock: &Arc<dyn Clock>, memory| {
            let mirror = Mirror {
                api_key: None,
                page: 100_000,
            };
            let keeping = Keeping {
                recheck: 600_000,
                ..keeping(Aggregate::Local)
            };
            engine_with(
                world.source.clone(),
                clock,
                Box::new(mirror),
                keeping,
                memory,
            )
        };
        let mut fleet = Fleet::with(1, None, Box::new(make));
        let begin = fleet.clocks().truth();
        let old = query(begin, begin + 60_000, Layout::Raw);
        let late = TimeRange::clamped(begin + 10_000, begin + 40_000);
        *fleet.clocks().late.lock().unwrap() = late;
        // They come when the page of their time has been written without them.
        for (poll, pause) in (0..20).zip([7_000, 12_000, 25_000, 45_000, 31_000].iter().cycle()) {
            let now = fleet.clocks().truth();
            fleet
                .ask(0, &query(begin - 100_000, now, Layout::Raw))
                .await
                .unwrap();
            fleet.flush().await;
            if poll == 4 {
                *fleet.clocks().late.lock().unwrap() = TimeRange::clamped(0, 0);
            }
            fleet.clocks().pass(*pause);
            tokio::time::sleep(Duration::from_millis(*pause as u64)).await;
        }
        fleet.flush().await;
        fleet.restart(0);
        fleet.members[0].1.calls();
        let answer = fleet.ask(0, &old).await;
        check(&fleet.members[0].1, &old, &answer, REFRESH);
        assert_eq!(fleet.members[0].1.calls(), [], "it is read from the level");
    });
}

#[test]
fn buckets_that_the_upstream_made_are_kept_too() {
    runtime().block_on(async {
        let mut fleet = Fleet::new(1, None, Aggregate::Upstream);
        let end = fleet.clocks().truth() - HOUR;
        let asked = query(end - HOUR, end, buckets(Statistic::P95, 60_000));
        fleet.ask(0, &asked).await.unwrap();
        fleet.flush().await;
        fleet.restart(0);
        fleet.members[0].1.calls();
        let answer = fleet.ask(0, &asked).await;
        check(&fleet.members[0].1, &asked, &answer, REFRESH);
        assert_eq!(fleet.members[0].1.calls(), []);
    });
}

#[test]
fn a_replica_beside_a_warm_one_fetches_nothing_while_the_tail_is_fresh() {
    runtime().block_on(async {
        let fleet = Fleet::new(2, Some(5), Aggregate::Local);
        let end = fleet.clocks().truth();
        let asked = query(end - HOUR / 4, end, Layout::Raw);
        fleet.ask(0, &asked).await.unwrap();
        fleet.flush().await;
        fleet.members[0].1.calls();
        let answer = fleet.ask(1, &asked).await;
        check(&fleet.members[1].1, &asked, &answer, REFRESH);
        assert_eq!(fleet.members[0].1.calls(), []);
        // What may still change is as old for it as it is, or older by what is not known.
        fleet.clocks().pass(REFRESH - 100);
        fleet.ask(1, &asked).await.unwrap();
        assert_eq!(fleet.members[0].1.calls(), []);
        fleet.clocks().pass(95);
        fleet.ask(1, &asked).await.unwrap();
        assert_eq!(fleet.members[0].1.calls().len(), 1);
    });
}

#[test]
fn what_was_invalidated_does_not_come_back_by_a_write_that_was_late() {
    runtime().block_on(async {
        let mut fleet = Fleet::new(1, None, Aggregate::Local);
        let end = fleet.clocks().truth() - HOUR;
        let asked = query(end - HOUR / 4, end, Layout::Raw);
        fleet.ask(0, &asked).await.unwrap();
        // It has not been written yet.
        fleet.rewrite(0, asked.range).await;
        fleet.flush().await;
        fleet.restart(0);
        let answer = fleet.ask(0, &asked).await;
        check(&fleet.members[0].1, &asked, &answer, REFRESH);
        // Nor what had been written before.
        fleet.flush().await;
        fleet.rewrite(0, asked.range).await;
        fleet.restart(0);
        let answer = fleet.ask(0, &asked).await;
        check(&fleet.members[0].1, &asked, &answer, REFRESH);
    });
}

#[test]
fn a_level_that_hangs_costs_a_request_its_deadline_at_most() {
    runtime().block_on(async {
        let fleet = Fleet::new(1, Some(0), Aggregate::Local);
        // Neither reads nor leases come back, which wait one after the other.
        fleet.sim.give_leases();
        fleet.sim.hang(true);
        let end = fleet.clocks().truth() - HOUR;
        for i in 0..20 {
            let (start, end) = (end - (i + 1) * HOUR / 4, end - i * HOUR / 4);
            let asked = query(start, end, Layout::Raw);
            let began = tokio::time::Instant::now();
            let answer = fleet.ask(0, &asked).await.unwrap();
            assert!(began.elapsed() <= WAIT, "{:?}", began.elapsed());
            assert!(answer.timing.second <= WAIT);
        }
    });
}

#[test]
fn a_request_of_many_ranges_waits_no_longer_than_one() {
    runtime().block_on(async {
        let fleet = Fleet::new(1, None, Aggregate::Local);
        let end = fleet.clocks().truth() - HOUR;
        // Its raw points are read in eight stretches, one after the other.
        let asked = query(end - 16_000 * INTERVAL, end, Layout::Raw);
        fleet.sim.hang(true);
        let began = tokio::time::Instant::now();
        let answer = fleet.ask(0, &asked).await.unwrap();
        let took = began.elapsed();
        assert!(took <= WAIT, "{took:?}");
        assert!(answer.timing.second >= Duration::from_millis(50));
        assert!(answer.timing.second <= WAIT);
        check(&fleet.members[0].1, &asked, &Ok(answer), REFRESH);
    });
}

#[test]
fn what_another_version_has_written_is_a_miss_and_is_replaced() {
    runtime().block_on(async {
        let mut fleet = Fleet::new(1, None, Aggregate::Local);
        let end = fleet.clocks().truth() - HOUR;
        let asked = query(end - HOUR / 4, end, Layout::Raw);
        for damage in [
            |bytes: &mut Vec<u8>| bytes[0] = 99,
            |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2),
            |bytes: &mut Vec<u8>| bytes.clear(),
        ] {
            fleet.ask(0, &asked).await.unwrap();
            fleet.flush().await;
            fleet.sim.damage(damage);
            fleet.restart(0);
            fleet.members[0].1.calls();
            let answer = fleet.ask(0, &asked).await;
            check(&fleet.members[0].1, &asked, &answer, REFRESH);
            assert!(!fleet.members[0].1.calls().is_empty());
            fleet.flush().await;
            fleet.restart(0);
            fleet.members[0].1.calls();
            let answer = fleet.ask(0, &asked).await;
            check(&fleet.members[0].1, &asked, &answer, REFRESH);
            assert_eq!(fleet.members[0].1.calls(), [], "it is there again");
        }
    });
}
