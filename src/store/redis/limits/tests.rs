//! The scripts against a real server, if there is one, with time that the test sets.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::super::tests::{Server, has_server};
use super::scripts::READ;
use super::*;
use crate::model::Millis;
use crate::store::lease::{BudgetWindow, Lease};
use crate::store::standing::{AWAY, Mode, SILENT, Standing, WHOLE};

/// The time is the last argument, the run the one before it.
const TEST_NOW: &str = "local now = tonumber(table.remove(ARGV))\n";
const TEST_RUN: &str = "local run = table.remove(ARGV)\n";

const SHARES: &str = "h1:{all}:shares";
const BUDGETS: &str = "h1:{all}:budgets";

/// The length of the windows of the test's budget, in milliseconds, and what is allowed in each.
const PERIOD: Millis = 20_000;
const ALLOWED: u32 = 997;

/// By how much clocks may differ, in the scripts of the test.
const SKEW: (&str, &str) = ("skew = 300000", "skew = 3000");

/// The most by which the level's clock differs from those of replicas.
const MOST_AHEAD: Millis = 2900;

/// Returns the scripts of the test.
fn scripts() -> Scripts {
    mutant(&[])
}

fn keys() -> ShareKeys {
    ShareKeys {
        shares: SHARES.into(),
        budgets: BUDGETS.into(),
    }
}

fn window(index: i64) -> BudgetWindow {
    BudgetWindow {
        per: "hour",
        index,
        start: index * PERIOD,
        end: (index + 1) * PERIOD,
        allowed: ALLOWED,
    }
}

/// A replica's part of the budget.
#[derive(Debug, Default)]
struct Part {
    lease: Lease,
    index: i64,
    used: u32,
    /// Set if the window began after others may have been given this replica's share.
    lapsed: bool,
    /// Set if it knows what its predecessor had used.
    restored: bool,
}

impl Part {
    /// Goes on to the window at `now`; the law excepts a replica that has been `alone` for so long that
    /// its share is another's.
    fn go_on(&mut self, now: Millis, share: u32, alone: bool) {
        let index = now.div_euclid(PERIOD);
        if index != self.index {
            (self.index, self.used, self.lapsed) = (index, 0, alone);
            self.restored = false;
        }
        self.lease.open(&window(index), share);
    }
}
const FORGET: Duration = Duration::from_secs(10);

/// Numbers that look random and are the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        // xorshift64*, Vigna 2016.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A replica as the test runs it.
#[derive(Debug)]
struct Replica {
    instance: u64,
    standing: Standing,
    /// The time that its clock is ahead.
    ahead: Duration,
    /// When it beats next.
    next: Millis,
    /// Whether nothing of it reaches the level.
    cut_off: bool,
    /// When the beat was sent whose reply counted last.
    heard: Option<Millis>,
    epoch: u64,
    /// Whether the level began anew with replicas of which none had ever shared limits.
    unknown: bool,
    part: Part,
}

impl Replica {
    /// Whether others may have been given its share, or may be.
    fn is_alone(&self, now: Millis) -> bool {
        let long = i64::try_from(FORGET.as_millis()).unwrap() * 4 / 5;
        self.unknown || self.heard.is_none_or(|heard| now - heard > long)
    }
}

/// A level and its replicas, in milliseconds since the test began.
struct World {
    connection: redis::Connection,
    scripts: Scripts,
    together: String,
    now: Millis,
    /// By how much the level's clock is ahead.
    ahead: Millis,
    /// Number of its starts.
    run: u64,
    replicas: BTreeMap<String, Replica>,
    instances: u64,
    /// Beats that are still on their way: when they arrive, and what they are.
    late: Vec<(Millis, redis::Cmd)>,
    beats: u64,
    /// Most that was used at once, in millionths.
    most: u32,
    /// The usage of all replicas in each window of the budget.
    used: BTreeMap<i64, u32>,
    /// The last epoch that began with replicas of which none had ever shared limits.
    fresh: u64,
    /// The events, the latest last.
    log: Vec<String>,
}

impl World {
    fn new(server: &Server, scripts: Scripts) -> Self {
        let client = redis::Client::open(server.settings().urls[0].clone()).unwrap();
        let mut connection = client.get_connection().unwrap();
        redis::cmd("FLUSHALL").exec(&mut connection).unwrap();
        // Permits are not given before a beat has seen that nothing is missing.
        let together = "return now - seen > 1000 and 0 or together(tonumber(state.total or '0'))";
        Self {
            connection,
            scripts,
            together: [TEST_NOW, READ, together].concat(),
            now: 1_000_000,
            ahead: 0,
            run: 0,
            replicas: BTreeMap::new(),
            instances: 0,
            late: Vec::new(),
            beats: 0,
            most: 0,
            used: BTreeMap::new(),
            fresh: 0,
            log: Vec::new(),
        }
    }

    fn join(&mut self, name: &str, ahead: u64) {
        self.instances += 1;
        let ahead = Duration::from_millis(ahead);
        let standing = Standing::new(FORGET, at(self.now) + ahead);
        let replica = Replica {
            instance: self.instances,
            standing,
            ahead,
            next: self.now,
            cut_off: false,
            heard: None,
            epoch: 0,
            unknown: false,
            part: Part::default(),
        };
        self.replicas.insert(name.to_owned(), replica);
    }

    fn level_time(&self) -> Millis {
        self.now + self.ahead
    }

    /// The beat of a replica at this time, and what became of it. The reply comes back after `trip`.
    fn beat(&mut self, name: &str, lost: bool, reply_lost: bool, trip: Millis, leaves: bool) {
        self.beats += 1;
        let now = self.now;
        let replica = self.replicas.get_mut(name).unwrap();
        let report = replica.standing.report(at(now) + replica.ahead);
        let member = MemberId {
            name,
            instance: replica.instance,
            forget_after: FORGET,
        };
        let leases = replica.report(now, leaves);
        let told = leases[0].1;
        let command = self
            .scripts
            .beat(&keys(), &member, &report, &leases, leaves);
        self.log.push(format!("{now} {name} lost {lost} reply_lost {reply_lost} trip {trip} leaves {leaves} {report:?} {told:?}"));
        if lost {
            return;
        }
        // It is processed half way.
        self.now += trip / 2;
        let reply = self.send(command);
        self.log.push(format!("  {} {reply:?}", self.level_time()));
        self.now += trip - trip / 2;
        let back = self.now;
        let replica = self.replicas.get_mut(name).unwrap();
        let Ok((time, epoch, share, live, grants)) = reply else {
            return;
        };
        if reply_lost || leaves {
            return;
        }
        let verdict = ShareVerdict {
            time,
            epoch,
            share,
            live,
        };
        let (sent, back) = (at(now) + replica.ahead, at(back) + replica.ahead);
        if Standing::counts(sent, back) {
            let used = replica.part.used;
            let lease = &mut replica.part.lease;
            lease.granted(told.window.index, &grant(grants[0]), used);
        }
        if replica.standing.replied(verdict, sent, back) {
            replica.heard = Some(now);
            // What it believed before may be nobody's any more, until it is given a share anew.
            replica.unknown &= report.share > 0;
            replica.epoch = epoch;
        }
    }

    fn send(&mut self, mut command: redis::Cmd) -> Result<ShareReply, redis::RedisError> {
        let time = self.level_time();
        command.arg(self.run).arg(time).query(&mut self.connection)
    }

    /// A beat that arrives later, whose reply nobody waits for.
    fn beat_late(&mut self, name: &str, after: Millis) {
        let now = self.now;
        let replica = self.replicas.get_mut(name).unwrap();
        let report = replica.standing.report(at(now) + replica.ahead);
        let member = MemberId {
            name,
            instance: replica.instance,
            forget_after: FORGET,
        };
        let leases = replica.report(now, false);
        let command = self.scripts.beat(&keys(), &member, &report, &leases, false);
        self.late.push((now + after, command));
    }

    /// Lets a replica take up to `n` out of the budget, and checks that all together take no more than
    /// is allowed. One that is alone for too long takes none of a new window: see the law's exception.
    fn take(&mut self, name: &str, n: u32) -> u32 {
        let now = self.now;
        let replica = self.replicas.get_mut(name).unwrap();
        let alone = replica.is_alone(now);
        let part = &mut replica.part;
        part.go_on(now, replica.standing.share(), alone);
        let mut taken = part.lease.room(part.used).min(n);
        if part.lapsed || replica.unknown {
            taken = 0;
        }
        if taken < n {
            part.lease.lack(1);
        }
        part.used += taken;
        let index = part.index;
        let all = self.used.entry(index).or_default();
        *all += taken;
        assert!(
            *all <= ALLOWED,
            "{all} used of window {index} by {name}\n{:#?}\n{:#?}",
            self.log[self.log.len().saturating_sub(80)..].to_vec(),
            self.replicas
        );
        taken
    }

    /// Checks the sum, in millionths, of what all may use together and what those who are alone may
    /// use. Replicas count that were heard within `FORGET`, and whose share is not of a level that
    /// began anew without them.
    fn check(&mut self) {
        let (now, time) = (self.now, self.level_time());
        let mut together = redis::cmd("EVAL");
        together.arg(&self.together).arg(1).arg(SHARES).arg(time);
        let together: u32 = together.query(&mut self.connection).unwrap();
        let state: BTreeMap<String, String> = redis::cmd("HGETALL")
            .arg(SHARES)
            .query(&mut self.connection)
            .unwrap();
        let fresh = state.get("fresh").is_some_and(|f| f == "1");
        let epoch: u64 = state.get("epoch").map_or(0, |e| e.parse().unwrap());
        for replica in self.replicas.values_mut() {
            replica.unknown |= fresh && replica.epoch != epoch;
        }
        if fresh && self.fresh != epoch {
            // Nobody is left who knows what was used before.
            self.fresh = epoch;
            self.used.clear();
            for replica in self.replicas.values().filter(|r| !r.unknown) {
                *self.used.entry(replica.part.index).or_default() += replica.part.used;
            }
        }
        let counted = self.replicas.values().filter(|replica| {
            let lapsed = replica
                .heard
                .is_none_or(|h| now - h > i64::try_from(FORGET.as_millis()).unwrap() * 4 / 5);
            !lapsed && !replica.unknown
        });
        // Permits are asked for by those only who have got a reply lately.
        let asks = |r: &Replica| r.standing.mode(at(now) + r.ahead) == Mode::Together;
        let asked = self.replicas.values().any(asks);
        let (mut believed, mut used) = (0, if asked { together } else { 0 });
        for replica in counted {
            believed += replica.standing.share();
            if let Mode::Alone(Some(share)) = replica.standing.mode(at(now) + replica.ahead) {
                used += share;
            }
        }
        self.most = self.most.max(used).max(believed);
    }
}

impl Replica {
    /// Returns what its beat tells of its lease.
    fn report(&mut self, now: Millis, leaves: bool) -> Vec<(String, LeaseReport)> {
        let alone = self.is_alone(now);
        let part = &mut self.part;
        part.go_on(now, self.standing.share(), alone);
        if leaves {
            part.lease.end();
        }
        let report = part
            .lease
            .report(window(part.index), part.used, part.restored);
        vec![("b".into(), report)]
    }
}

fn at(time: Millis) -> Duration {
    Duration::from_millis(time.unsigned_abs())
}

/// One history of so many steps. Gives the most that was used at once.
fn history(world: &mut World, seed: u64, steps: u64) -> u32 {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    let mut random = Random(hasher.finish() | 1);
    let most = 1 + random.below(12);
    let mut saved: Option<[Vec<(String, String)>; 2]> = None;
    for _ in 0..steps {
        let event = random.below(1000);
        if event < 75 {
            let now = world.now;
            world.log.push(format!("{now} event {event}"));
        }
        match event {
            0..20 => {
                let name = format!("r{}", random.below(most));
                let ahead = random.below(1_000_000_000);
                world.join(&name, ahead);
            }
            event @ 20..32 => {
                // Killed or ended.
                let names: Vec<_> = world.replicas.keys().cloned().collect();
                if !names.is_empty() {
                    let name = &names[random.below(names.len() as u64) as usize];
                    if event < 26 && !world.replicas[name].cut_off {
                        let lost = random.chance(30);
                        world.beat(name, lost, false, 2, true);
                    }
                    world.replicas.remove(name);
                }
            }
            32..60 => {
                let names: Vec<_> = world.replicas.keys().cloned().collect();
                if !names.is_empty() {
                    let name = &names[random.below(names.len() as u64) as usize];
                    let replica = world.replicas.get_mut(name).unwrap();
                    replica.cut_off = !replica.cut_off;
                }
            }
            60..63 => redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap(),
            63 => {
                // One of both is evicted.
                let key = [SHARES, BUDGETS][random.below(2) as usize];
                redis::cmd("DEL")
                    .arg(key)
                    .exec(&mut world.connection)
                    .unwrap();
            }
            64..68 => {
                let mut all = |key: &str| -> Vec<(String, String)> {
                    let mut command = redis::cmd("HGETALL");
                    command.arg(key).query(&mut world.connection).unwrap()
                };
                saved = Some([all(SHARES), all(BUDGETS)]);
            }
            68..70 => {
                // A failover, or a restart with an old snapshot.
                if let Some(saved) = saved.take().filter(|s| !s.iter().any(Vec::is_empty)) {
                    world.run += 1;
                    redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
                    for (key, saved) in [SHARES, BUDGETS].into_iter().zip(saved) {
                        let mut command = redis::cmd("HSET");
                        command.arg(key).arg(saved);
                        command.exec(&mut world.connection).unwrap();
                    }
                }
            }
            70 => {
                // A small step back, or one forward.
                world.ahead += i64::try_from(random.below(2200)).unwrap() - 200;
                world.ahead = world.ahead.min(MOST_AHEAD);
            }
            71 => {
                // Any step is noticed by the next beat that comes before long.
                let heard = world.replicas.iter().find(|(_, r)| !r.cut_off);
                if let Some(name) = heard.map(|(name, _)| name.clone()) {
                    world.beat(&name, false, false, 2, false);
                    world.ahead += i64::try_from(random.below(4000)).unwrap() - 2000;
                    world.ahead = world.ahead.clamp(-MOST_AHEAD, MOST_AHEAD);
                    world.now += 5;
                    world.beat(&name, false, false, 2, false);
                    world.check();
                }
            }
            72..75 => {
                // The level is away from all for a while.
                world.now += i64::try_from(random.below(8000)).unwrap();
            }
            _ => {}
        }
        // The next beat, and what arrives late before it.
        let next = world.replicas.iter().min_by_key(|(_, r)| r.next);
        let Some((name, next)) = next.map(|(n, r)| (n.clone(), r.next)) else {
            world.now += 100;
            continue;
        };
        // Shares change with time alone, too.
        while world.now + 200 < next {
            world.now += 200;
            world.check();
        }
        world.now = world.now.max(next);
        let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut world.late)
            .into_iter()
            .partition(|(at, _)| *at <= next);
        world.late = rest;
        for (_, command) in due {
            let _ = world.send(command);
            world.check();
        }
        let stall = if random.chance(3) {
            random.below(4000)
        } else {
            random.below(40)
        };
        let replica = world.replicas.get_mut(&name).unwrap();
        replica.next = world.now + 250 + i64::try_from(stall).unwrap();
        let cut_off = replica.cut_off;
        if !cut_off && random.chance(5) {
            world.beat_late(&name, i64::try_from(random.below(5000)).unwrap());
        } else {
            let lost = cut_off || random.chance(30);
            let trip = if random.chance(10) {
                random.below(900)
            } else {
                random.below(20)
            };
            let reply_lost = random.chance(20);
            world.beat(&name, lost, reply_lost, i64::try_from(trip).unwrap(), false);
        }
        world.check();
        let names: Vec<_> = world.replicas.keys().cloned().collect();
        for name in names {
            if random.chance(40) {
                // A call or all that it may.
                let n = [1, 7, ALLOWED][random.below(3) as usize];
                world.take(&name, n);
            }
        }
        world.check();
        if world.most > WHOLE {
            let from = world.log.len().saturating_sub(60);
            panic!(
                "seed {seed}: {} millionths were used at once\n{:#?}\n{:#?}",
                world.most,
                world.log[from..].to_vec(),
                world.replicas
            );
        }
    }
    world.most
}

#[allow(
    clippy::disallowed_methods,
    reason = "how much is tried is set where the tests run"
)]
fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |n| n.parse().unwrap())
}

/// `HELIOSTAT_SHARES_HISTORIES=300 HELIOSTAT_SHARES_STEPS=4000` is the full number.
#[tokio::test]
async fn shares_never_sum_above_the_whole_whatever_happens() {
    if !has_server() {
        return;
    }
    const { assert!(SILENT as u128 + LATEST_REPLY.as_millis() <= AWAY.as_millis()) };
    let server = Server::start(&[]).await;
    let histories = setting("HELIOSTAT_SHARES_HISTORIES", 12);
    let steps = setting("HELIOSTAT_SHARES_STEPS", 1000);
    let mut whole = 0;
    for seed in 0..histories {
        let mut world = World::new(&server, scripts());
        let most = history(&mut world, seed, steps);
        whole += u64::from(most > WHOLE / 100 * 95);
    }
    // Nor is it kept by giving nothing away.
    assert!(
        whole * 10 >= histories * 9,
        "{whole} of {histories} used it all"
    );
}

/// Lets `world` run for so many milliseconds; nothing is lost but what is cut off.
fn pass(world: &mut World, millis: Millis) {
    let end = world.now + millis;
    while world.now < end {
        let next = world.replicas.iter().min_by_key(|(_, r)| r.next);
        let Some((name, next)) = next.map(|(n, r)| (n.clone(), r.next)) else {
            world.now = end;
            return;
        };
        world.now = world.now.max(next.min(end));
        if world.now >= end {
            return;
        }
        let replica = world.replicas.get_mut(&name).unwrap();
        replica.next = world.now + 250;
        let cut_off = replica.cut_off;
        world.beat(&name, cut_off, false, 2, false);
        world.check();
    }
}

/// Scripts of which some rules are other ones.
fn mutant(rules: &[(&str, &str)]) -> Scripts {
    let mut scripts = Scripts::new(TEST_NOW, TEST_RUN);
    for (rule, other) in [SKEW].iter().chain(rules) {
        assert!(scripts.beat.contains(rule), "{rule}");
        scripts.beat = scripts.beat.replace(rule, other);
    }
    scripts
}

/// Four replicas share a limit, one of them is cut off, and the level loses all it knows.
fn loss_while_one_is_cut_off(server: &Server, scripts: Scripts) -> (u32, Vec<u32>) {
    let mut world = World::new(server, scripts);
    (0..4).for_each(|n| world.join(&format!("r{n}"), 7 * n));
    pass(&mut world, 6000);
    world.replicas.get_mut("r3").unwrap().cut_off = true;
    pass(&mut world, 2000);
    redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
    pass(&mut world, 5000);
    let shares = world.replicas.values().map(|r| r.standing.share());
    (world.most, shares.collect())
}

/// One of four replicas is cut off for so long that its share is forgotten, and returns.
fn return_after_long(server: &Server, scripts: Scripts) -> (u32, Vec<u32>) {
    let mut world = World::new(server, scripts);
    (0..4).for_each(|n| world.join(&format!("r{n}"), 7 * n));
    pass(&mut world, 6000);
    world.replicas.get_mut("r3").unwrap().cut_off = true;
    pass(&mut world, 12_000);
    world.replicas.get_mut("r3").unwrap().cut_off = false;
    pass(&mut world, 3000);
    let shares = world.replicas.values().map(|r| r.standing.share());
    (world.most, shares.collect())
}

#[tokio::test]
async fn nobodys_share_grows_right_after_data_was_lost() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let (most, shares) = loss_while_one_is_cut_off(&server, scripts());
    assert!(most <= WHOLE, "{most}");
    assert_eq!(shares, [WHOLE / 4; 4]);
    // The rule that failed: the whole is given away at once.
    let failed = mutant(&[("whole and 1000000 or math.min(known, 1000000)", "1000000")]);
    let (most, _) = loss_while_one_is_cut_off(&server, failed);
    assert!(most > WHOLE, "{most}");
}

#[tokio::test]
async fn a_share_that_has_lapsed_is_not_claimed_again() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let (most, shares) = return_after_long(&server, scripts());
    assert!(most <= WHOLE, "{most}");
    assert_eq!(shares, [WHOLE / 4; 4]);
    // The rule that failed: whatever a replica says it has is its.
    let failed = mutant(&[
        (
            "claim = math.min(believed, mine.claim)\nend",
            "claim = math.min(believed, mine.claim)\nelseif of == state.epoch then claim = 250000\nend",
        ),
        (
            "share = math.max(0, math.min(",
            "share = math.max(claim, math.min(",
        ),
    ]);
    let (most, shares) = return_after_long(&server, failed);
    assert!(most > WHOLE, "{most} {shares:?}");
}

#[tokio::test]
async fn permits_are_those_of_one_bucket_that_begins_empty() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let mut world = World::new(&server, scripts());
    (0..4).for_each(|n| world.join(&format!("r{n}"), 0));
    pass(&mut world, 6000);
    let take = |world: &mut World, want: u32| -> (u32, f64) {
        let (answer, _) = tokio::sync::oneshot::channel();
        let ask = PermitAsk {
            upstream: String::new(),
            per_second: 50.0,
            burst: 20.0,
            want,
            answer,
        };
        let time = world.level_time();
        let mut command = world.scripts.permits(SHARES, "h1:{all}:limit:x", &ask);
        command.arg(time).query(&mut world.connection).unwrap()
    };
    assert_eq!(take(&mut world, 100), (0, 20.0), "it begins empty");
    world.now += 100;
    assert_eq!(take(&mut world, 100).0, 5);
    pass(&mut world, 10_000);
    assert_eq!(take(&mut world, 100).0, 20, "a burst");
    // One is cut off: what it may use is not used together.
    world.replicas.get_mut("r3").unwrap().cut_off = true;
    pass(&mut world, 5000);
    assert_eq!(take(&mut world, 100).0, 15);
    let now = world.now;
    pass(&mut world, 2000);
    let elapsed = world.now - now;
    assert!((1..=2000).contains(&elapsed));
    assert_eq!(take(&mut world, 10).0, 10, "some are left");
    // It is back: what is used together again begins empty.
    world.replicas.get_mut("r3").unwrap().cut_off = false;
    pass(&mut world, 600);
    let (granted, _) = take(&mut world, 100);
    assert!(granted <= 30, "{granted}");
    redis::cmd("DEL")
        .arg("h1:{all}:limit:x")
        .exec(&mut world.connection)
        .unwrap();
    assert_eq!(take(&mut world, 100).0, 0, "evicted");
    // All data lost: those that are there have their shares, and a bucket that begins empty.
    redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
    assert_eq!(take(&mut world, 100).0, 0);
    pass(&mut world, 1000);
    assert_eq!(take(&mut world, 100).0, 0);
    world.now += 200;
    assert_eq!(take(&mut world, 100).0, 10);
}

#[tokio::test]
async fn one_call_at_once_is_granted_whatever_part_of_the_limit_is_left() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let granted = |scripts: Scripts| {
        let mut world = World::new(&server, scripts);
        // As large as the time is.
        world.ahead = 1_795_700_000_123;
        (0..4).for_each(|n| world.join(&format!("r{n}"), 0));
        pass(&mut world, 6000);
        world.replicas.get_mut("r3").unwrap().cut_off = true;
        pass(&mut world, 5000);
        let (answer, _) = tokio::sync::oneshot::channel();
        let ask = PermitAsk {
            upstream: String::new(),
            per_second: 100.0,
            burst: 1.0,
            want: 1,
            answer,
        };
        let mut all = 0;
        for _ in 0..10 {
            pass(&mut world, 250);
            let time = world.level_time();
            let mut command = world.scripts.permits(SHARES, "h1:{all}:limit:x", &ask);
            let (granted, _): (u32, f64) = command.arg(time).query(&mut world.connection).unwrap();
            all += granted;
        }
        all
    };
    assert!(granted(scripts()) >= 9);
    // The rule that failed.
    let mut failed = scripts();
    let rule = "(depth - (due - now))";
    assert!(failed.permits.contains(rule));
    failed.permits = failed.permits.replace(rule, "(now + depth - due)");
    assert_eq!(granted(failed), 0);
}

#[tokio::test]
async fn a_name_is_of_one_replica_until_that_is_gone() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let mut world = World::new(&server, scripts());
    world.join("r0", 0);
    pass(&mut world, 5000);
    assert_eq!(world.replicas["r0"].standing.share(), WHOLE);
    // It is killed, and another comes at once.
    world.join("r0", 0);
    pass(&mut world, 2000);
    assert_eq!(world.replicas["r0"].standing.share(), 0);
    pass(&mut world, 2000);
    assert_eq!(world.replicas["r0"].standing.share(), WHOLE);
    // One that ends leaves its share to the others.
    world.join("r1", 0);
    pass(&mut world, 2000);
    assert_eq!(world.replicas["r1"].standing.share(), WHOLE / 2);
    world.beat("r0", false, false, 2, true);
    world.replicas.remove("r0");
    pass(&mut world, 600);
    assert_eq!(world.replicas["r1"].standing.share(), WHOLE);
    assert!(world.most <= WHOLE);
}

/// Four replicas, of which the first alone uses the budget.
#[tokio::test]
async fn all_of_a_budget_can_be_used_by_one_or_by_all_and_not_a_call_more() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let mut world = World::new(&server, scripts());
    (0..4).for_each(|n| world.join(&format!("r{n}"), 7 * n));
    pass(&mut world, 6000);
    let until_next = |world: &World| PERIOD - world.now % PERIOD;
    let rest = until_next(&world);
    pass(&mut world, rest + 100);
    let index = world.now / PERIOD;
    // Each begins the window with its share, and nobody waits for that.
    assert_eq!(world.take("r0", ALLOWED), ALLOWED / 4);
    while world.now < (index + 1) * PERIOD - 2000 {
        world.take("r0", ALLOWED);
        pass(&mut world, 250);
    }
    assert_eq!(world.used[&index], ALLOWED, "one alone uses all of it");
    // The next is used by all; one is cut off and has its lease.
    let rest = until_next(&world);
    pass(&mut world, rest + 100);
    let index = world.now / PERIOD;
    pass(&mut world, 1000);
    world.replicas.get_mut("r3").unwrap().cut_off = true;
    pass(&mut world, 4000);
    let mut by_one = 0;
    while world.now < (index + 1) * PERIOD - 2000 {
        by_one += world.take("r3", 5);
        (0..3).for_each(|n| _ = world.take(&format!("r{n}"), 50));
        pass(&mut world, 250);
    }
    assert!(
        (ALLOWED / 4..=ALLOWED / 4 + 1).contains(&by_one),
        "{by_one}"
    );
    assert_eq!(world.used[&index], ALLOWED);
}

/// The fate of the rest of a window after `event`, when one of four has used 100 of it.
fn used_after(server: &Server, scripts: Scripts, event: impl FnOnce(&mut World)) -> u32 {
    let mut world = World::new(server, scripts);
    (0..4).for_each(|n| world.join(&format!("r{n}"), 7 * n));
    pass(&mut world, 6000);
    let rest = PERIOD - world.now % PERIOD;
    pass(&mut world, rest + 1000);
    let index = world.now / PERIOD;
    world.take("r3", 100);
    pass(&mut world, 1000);
    event(&mut world);
    while world.now < (index + 1) * PERIOD - 1000 {
        let names: Vec<_> = world.replicas.keys().cloned().collect();
        names.iter().for_each(|name| _ = world.take(name, ALLOWED));
        pass(&mut world, 250);
    }
    world.used[&index]
}

fn empty(world: &mut World) {
    redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
}

#[tokio::test]
async fn what_becomes_of_leases_that_are_not_used() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let used = |event: fn(&mut World)| used_after(&server, scripts(), event);
    // One that ends leaves the rest of its lease to the others.
    let leave = |world: &mut World| {
        world.beat("r3", false, false, 2, true);
        world.replicas.remove("r3");
    };
    assert_eq!(used(leave), ALLOWED);
    // One that is killed keeps it.
    let kill = |world: &mut World| _ = world.replicas.remove("r3");
    let lease = (ALLOWED - 100) / 4;
    assert_eq!(used(kill), ALLOWED - lease);
    // Unless its successor knows what it had used.
    let succeed = |world: &mut World| {
        world.replicas.remove("r3");
        pass(world, 3500);
        world.join("r3", 0);
        let part = &mut world.replicas.get_mut("r3").unwrap().part;
        (part.index, part.used, part.restored) = (world.now / PERIOD, 100, true);
    };
    assert_eq!(used(succeed), ALLOWED);
    let forget = |world: &mut World| {
        world.replicas.remove("r3");
        pass(world, 3500);
        world.join("r3", 0);
    };
    assert_eq!(used(forget), ALLOWED - lease);
    // All data is lost: who is there has what it had, but for what had not been divided without a rest.
    assert!((ALLOWED - 3..=ALLOWED).contains(&used(empty)));
    let away = |world: &mut World| {
        world.replicas.get_mut("r3").unwrap().cut_off = true;
        empty(world);
    };
    assert!((ALLOWED - 3..=ALLOWED).contains(&used(away)));
}

/// Rules that would break the law, each seen to break it.
#[tokio::test]
async fn a_budget_divided_by_other_rules_is_exceeded() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let broken = |rule: (&str, &str), event: fn(&mut World)| {
        let scripts = mutant(&[rule]);
        let tried = std::panic::AssertUnwindSafe(|| used_after(&server, scripts, event));
        std::panic::catch_unwind(tried).is_err()
    };
    let cut_off: fn(&mut World) = |world| {
        world.replicas.get_mut("r3").unwrap().cut_off = true;
        pass(world, 4000);
    };
    // What a silent replica holds is free.
    let silent = ("(alive and other.used or other.claim)", "other.used");
    let free = ("free = free - other.claim", "free = free - other.used");
    assert!(broken(free, cut_off), "{free:?}");
    assert!(!broken(silent, cut_off), "it is not, whatever is left");
    // After data was lost all is given away anew.
    let lost: fn(&mut World) = |world| {
        world.replicas.get_mut("r3").unwrap().cut_off = true;
        empty(world);
    };
    let anew = ("last, 0, 0, 0\n", "last, 1000000, 0, 0\n");
    assert!(broken(anew, lost), "{anew:?}");
    // A window that is new is given away whole, though others may have begun it with their shares.
    let turn: fn(&mut World) = |world| {
        let rest = PERIOD - world.now % PERIOD;
        pass(world, rest - 2000);
        world.replicas.get_mut("r3").unwrap().cut_off = true;
        pass(world, 2100);
        for _ in 0..20 {
            (0..4).for_each(|n| _ = world.take(&format!("r{n}"), ALLOWED));
            pass(world, 250);
        }
    };
    let whole = ("and member.claim > 0 then", "and false then");
    assert!(broken(whole, turn), "{whole:?}");
    assert!(!broken(("now", "now"), turn));
}
