//! The law of shares and budgets: random histories of a level and its replicas, in which messages are
//! lost or late, replicas come, end, are killed and cut off, clocks differ and step, and data is lost.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::*;

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

/// One history of so many steps. Gives the most that was used at once.
fn history(world: &mut World, seed: u64, steps: u64) -> u32 {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    let mut random = Random(hasher.finish() | 1);
    let most = 1 + random.below(12);
    let mut saved: Option<[Vec<(String, String)>; 2]> = None;
    let mut away: Option<(Millis, bool)> = None;
    for _ in 0..steps {
        if let Some((_, empty)) = away.take_if(|(end, _)| *end <= world.now)
            && empty
        {
            world.run += 1;
            redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
        }
        let event = random.below(1000);
        if event < 76 {
            let now = world.now;
            world.log.push(format!("{now} event {event}"));
        }
        match event {
            0..20 => {
                let name = format!("r{}", random.below(most));
                let ahead = random.below(1_000_000_000);
                let wall = i64::try_from(random.below(1900)).unwrap() - MOST_AHEAD;
                let files = random.chance(30);
                world.join_with(&name, ahead, wall, files);
            }
            event @ 20..32 => {
                // Killed or ended.
                let names: Vec<_> = world.replicas.keys().cloned().collect();
                if !names.is_empty() {
                    let name = &names[random.below(names.len() as u64) as usize];
                    if event < 26 && !world.replicas[name].cut_off && away.is_none() {
                        let lost = random.chance(30);
                        world.beat(name, lost, false, 2, true);
                    }
                    world.remove(name);
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
                let mut heard = world.replicas.iter();
                let heard = heard.find(|(_, r)| !r.cut_off && away.is_none());
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
            75 => {
                // It is away for longer, while replicas go on. It may come back empty.
                let end = world.now + i64::try_from(random.below(20_000)).unwrap();
                away = Some((end, random.chance(70)));
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
            if away.is_none() {
                let _ = world.send(command);
                world.check();
            }
        }
        let stall = if random.chance(3) {
            random.below(4000)
        } else {
            random.below(40)
        };
        let replica = world.replicas.get_mut(&name).unwrap();
        replica.next = world.now + 250 + i64::try_from(stall).unwrap();
        let cut_off = replica.cut_off || away.is_some();
        if !cut_off && random.chance(5) {
            world.beat_late(&name, i64::try_from(random.below(5000)).unwrap());
        } else {
            let lost = cut_off || random.chance(30);
            let trip = if random.chance(10) {
                random.below(2500)
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

/// `HELIOSTAT_SHARES_HISTORIES=300` is the full number; other histories begin with
/// `HELIOSTAT_SHARES_FIRST`.
#[tokio::test]
async fn shares_never_sum_above_the_whole_whatever_happens() {
    if !has_server() {
        return;
    }
    const { assert!(SILENT as u128 + LATEST_REPLY.as_millis() <= AWAY.as_millis()) };
    let server = Server::start(&[]).await;
    let histories = setting("HELIOSTAT_SHARES_HISTORIES", 30);
    let steps = setting("HELIOSTAT_SHARES_STEPS", 4000);
    let first = setting("HELIOSTAT_SHARES_FIRST", 0);
    let (mut whole, mut resumed) = (0, (0, 0));
    for seed in first..first + histories {
        let mut world = World::new(&server, scripts());
        world.log.push(format!("seed {seed}"));
        let most = history(&mut world, seed, steps);
        whole += u64::from(most > WHOLE / 100 * 95);
        resumed.0 += world.resumptions.0;
        resumed.1 += world.resumptions.1;
    }
    println!("{resumed:?} shares that had lapsed were resumed, and may have been others'");
    // Nor is it kept by giving nothing away.
    assert!(
        whole * 10 >= histories * 9,
        "{whole} of {histories} used it all"
    );
}
