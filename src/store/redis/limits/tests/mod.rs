//! The scripts against a real server, if there is one, with time that the test sets.

mod budgets;
mod law;
mod permits;
mod rests;
mod shares;

use std::collections::{BTreeMap, BTreeSet};

use super::scripts::READ;
use super::*;
use crate::model::Millis;
use crate::store::lease::{BudgetWindow, Lease, Predecessors};
use crate::store::redis::tests::{Server, has_server};
use crate::store::standing::{AWAY, Mode, OwnShare, SILENT, Standing, WHOLE};

/// The time is the last argument, the run the one before it.
const TEST_NOW: &str = "local now = tonumber(table.remove(ARGV))\n";
const TEST_RUN: &str = "local run = table.remove(ARGV)\n";

const SHARES: &str = "h1:{all}:shares";
const BUDGETS: &str = "h1:{all}:budgets";
const RESTS: &str = "h1:{all}:rests";

/// The length of the windows of the test's budget, in milliseconds, and what is allowed in each.
const PERIOD: Millis = 20_000;
const ALLOWED: u32 = 997;

/// By how much clocks may differ.
const CLOCKS: Duration = Duration::from_secs(2);

/// The most by which the clocks of the level and of replicas are ahead or behind.
const MOST_AHEAD: Millis = 950;

/// Returns the scripts of the test.
fn scripts() -> Scripts {
    mutant(&[])
}

fn keys() -> ShareKeys {
    ShareKeys {
        shares: SHARES.into(),
        budgets: BUDGETS.into(),
        rests: RESTS.into(),
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
    /// The predecessors of which it knows what they used.
    restored: Predecessors,
}

impl Part {
    /// Goes on to the window at `now`; the law excepts a replica that has been `alone` for so long that
    /// its share is another's.
    fn go_on(&mut self, now: Millis, share: OwnShare, alone: bool) {
        let index = now.div_euclid(PERIOD).max(self.index);
        if index != self.index {
            (self.index, self.used, self.lapsed) = (index, 0, alone);
        }
        self.lease.open(&window(index), share);
    }
}

/// A silent replica is forgotten after so long.
const FORGET: Duration = Duration::from_secs(10);

/// A share lapses when nothing was heard of it for so long.
const LAPSE: Millis = 8000;

/// A replica as the test runs it.
#[derive(Debug)]
struct Replica {
    instance: u64,
    standing: Standing,
    /// The time that its monotonic clock is ahead.
    ahead: Duration,
    /// The time that its wall clock is ahead.
    wall: Millis,
    /// When it beats next.
    next: Millis,
    /// Whether nothing of it reaches the level.
    cut_off: bool,
    /// When the beat was sent whose reply counted last.
    heard: Option<Millis>,
    epoch: u64,
    /// The epoch in which the level heard it last.
    told: u64,
    /// Whether the level began anew with replicas of which none had ever shared limits, or which had
    /// not been heard since long before this one.
    unknown: bool,
    part: Part,
}

impl Replica {
    fn share(&self, now: Millis) -> OwnShare {
        self.standing.own_share(at(now) + self.ahead)
    }

    /// Whether its share has lapsed.
    fn has_lapsed(&self, now: Millis) -> bool {
        self.heard.is_none_or(|heard| now - heard > LAPSE)
    }

    /// Whether others may have been given its share, or may be: it has lapsed, and others have not,
    /// of whom the level heard the last at `last`.
    fn is_alone(&self, now: Millis, last: Millis) -> bool {
        let others = self.heard.is_none_or(|heard| last > heard + LAPSE);
        self.unknown || self.has_lapsed(now) && others
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
    /// By how much replicas take clocks to differ.
    clocks: Duration,
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
    /// The files of each name: the window, what was used in it, and by which processes.
    files: BTreeMap<String, (i64, u32, Predecessors)>,
    /// The last epoch that began with replicas of which none had ever shared limits.
    fresh: u64,
    /// When the level heard anybody last, and decided what it has.
    last: Millis,
    /// The last time at which a replica was heard that has ended since.
    ended: Millis,
    /// Windows that are excepted: see [`Self::resumed`].
    spoilt: BTreeSet<i64>,
    /// Number of shares that had lapsed and were resumed, and of those that the law excepts.
    resumptions: (u32, u32),
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
            clocks: CLOCKS,
            run: 0,
            replicas: BTreeMap::new(),
            instances: 0,
            late: Vec::new(),
            beats: 0,
            most: 0,
            used: BTreeMap::new(),
            files: BTreeMap::new(),
            fresh: 0,
            last: 0,
            ended: 0,
            spoilt: BTreeSet::new(),
            resumptions: (0, 0),
            log: Vec::new(),
        }
    }

    fn join(&mut self, name: &str, ahead: u64) {
        self.instances += 1;
        let ahead = Duration::from_millis(ahead);
        let standing = Standing::new(FORGET, self.clocks, at(self.now) + ahead);
        let replica = Replica {
            instance: self.instances,
            standing,
            ahead,
            wall: 0,
            next: self.now,
            cut_off: false,
            heard: None,
            epoch: 0,
            told: 0,
            unknown: false,
            part: Part::default(),
        };
        self.remove(name);
        self.replicas.insert(name.to_owned(), replica);
    }

    /// Ends a replica without a word.
    fn remove(&mut self, name: &str) {
        let ended = self.replicas.remove(name);
        self.ended = self.ended.max(ended.and_then(|r| r.heard).unwrap_or(0));
    }

    /// The same, with a wall clock that is `wall` ahead; it knows what its predecessor used if it has
    /// `files`.
    fn join_with(&mut self, name: &str, ahead: u64, wall: Millis, files: bool) {
        self.join(name, ahead);
        let file = self.files.get(name).filter(|_| files);
        let replica = self.replicas.get_mut(name).unwrap();
        replica.wall = wall;
        if let Some(file) = file {
            let part = &mut replica.part;
            (part.index, part.used, part.restored) = *file;
        }
    }

    fn level_time(&self) -> Millis {
        self.now + self.ahead
    }

    /// The beat of a replica at this time, and what became of it. The reply comes back after `trip`, of
    /// which the way there takes some part or all.
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
        let leases = replica.report(now, self.last, leaves);
        let lease = leases[0].1;
        let command = self
            .scripts
            .beat(&keys(), &member, &report, &[], &leases, leaves);
        self.log.push(format!("{now} {name} lost {lost} reply_lost {reply_lost} trip {trip} leaves {leaves} {report:?} {lease:?}"));
        if lost {
            return;
        }
        // It is processed on the way.
        let there = trip * Millis::try_from(self.beats % 5).unwrap() / 4;
        self.now += there;
        let reply = self.send(command);
        self.log.push(format!("  {} {reply:?}", self.level_time()));
        if !leaves {
            // The reply is still on its way. One that leaves makes no call any more.
            self.check();
        }
        self.now += trip - there;
        let back = self.now;
        let replica = self.replicas.get_mut(name).unwrap();
        let Ok((time, epoch, share, live, grants, _)) = reply else {
            return;
        };
        let told: u64 = redis::cmd("HGET")
            .arg(SHARES)
            .arg("epoch")
            .query(&mut self.connection)
            .unwrap();
        replica.told = told;
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
            let part = &mut replica.part;
            for granted in grants {
                part.lease
                    .granted(lease.window.index, &grant(granted), used);
                part.lapsed &= lease.window.index != part.index;
            }
        }
        if replica.standing.replied(verdict, sent, back) {
            let before = replica.heard.replace(now);
            // What it believed before may be nobody's any more, until it is given a share by a level that
            // knows that it has none, or which one.
            replica.unknown &= report.share > 0 && !report.lapsed && report.epoch != epoch;
            replica.epoch = epoch;
            if report.lapsed && report.epoch != epoch && share > 0 {
                self.resumed(name, before);
            }
        }
    }

    /// Takes note that `name`, whose last reply before was to the beat of `before`, may have been given
    /// its lapsed share again. The law excepts those who have been heard for longer and have not reported:
    /// it was cut off while they were not. So are the windows which that replica holds something of.
    fn resumed(&mut self, name: &str, before: Option<Millis>) {
        let mut row = redis::cmd("HGET");
        row.arg(SHARES).arg(format!("m:{name}"));
        let row: String = row.query(&mut self.connection).unwrap();
        if !row.ends_with(" 1") {
            // It was given another.
            return;
        }
        self.resumptions.0 += 1;
        let replica = &self.replicas[name];
        let (epoch, index) = (replica.epoch, replica.part.index);
        let before = before.unwrap();
        if self.ended > before + LAPSE {
            self.spoilt.extend([index, index + 1]);
        }
        for other in self.replicas.values_mut().filter(|r| r.told != epoch) {
            if other.heard.is_some_and(|heard| heard > before + LAPSE) {
                other.unknown = true;
                self.spoilt.extend([index, index + 1]);
            }
        }
        self.resumptions.1 += u32::from(self.spoilt.contains(&index));
    }

    fn send(&mut self, mut command: redis::Cmd) -> Result<ShareReply, redis::RedisError> {
        let time = self.level_time();
        let reply: ShareReply = command
            .arg(self.run)
            .arg(time)
            .query(&mut self.connection)?;
        if reply.1 != 0 {
            self.last = self.now;
        }
        Ok(reply)
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
        let leases = replica.report(now, self.last, false);
        let command = self
            .scripts
            .beat(&keys(), &member, &report, &[], &leases, false);
        self.late.push((now + after, command));
    }

    /// Lets a replica take up to `n` out of the budget, and checks that all together take no more than
    /// is allowed. One that is alone for too long takes none of a new window: see the law's exception.
    fn take(&mut self, name: &str, n: u32) -> u32 {
        let now = self.now;
        let replica = self.replicas.get_mut(name).unwrap();
        let alone = replica.is_alone(now, self.last);
        let share = replica.share(now);
        let part = &mut replica.part;
        part.go_on(now + replica.wall, share, alone);
        let mut taken = part.lease.room(part.used).min(n);
        if part.lapsed || replica.unknown {
            taken = 0;
        }
        if taken < n {
            part.lease.lack(1);
        }
        part.used += taken;
        let index = part.index;
        let [first, second, third, _] = part.restored;
        let written_by = [replica.instance, first, second, third];
        let file = (index, part.used, written_by);
        self.files.insert(name.to_owned(), file);
        let all = self.used.entry(index).or_default();
        *all += taken;
        assert!(
            *all <= ALLOWED || self.spoilt.contains(&index),
            "{}: {all} used of window {index} by {name}\n{:#?}\n{:#?}",
            self.log.first().map_or("", String::as_str),
            self.log[self.log.len().saturating_sub(80)..].to_vec(),
            self.replicas
        );
        taken
    }

    /// Checks the sum, in millionths, of what all may use together and what those who are alone may
    /// use. Replicas count but those that are alone: see [`Replica::is_alone`].
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
        let last = self.last;
        let counted = self.replicas.values().filter(|r| !r.is_alone(now, last));
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
    fn report(&mut self, now: Millis, last: Millis, leaves: bool) -> Vec<(String, LeaseReport)> {
        let alone = self.is_alone(now, last);
        let share = self.share(now);
        let part = &mut self.part;
        part.go_on(now + self.wall, share, alone);
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
    let mut scripts = Scripts::new(TEST_NOW, TEST_RUN, CLOCKS);
    for (rule, other) in rules {
        assert!(scripts.beat.contains(rule), "{rule}");
        scripts.beat = scripts.beat.replace(rule, other);
    }
    scripts
}
