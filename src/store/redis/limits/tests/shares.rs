//! Shares: the rules that failed once, and names.

use super::*;

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
    world.remove("r0");
    pass(&mut world, 600);
    assert_eq!(world.replicas["r1"].standing.share(), WHOLE);
    assert!(world.most <= WHOLE);
}

/// Four replicas share a limit; the level is away for longer than shares are kept, and comes back empty,
/// with `event` before and `meanwhile` after half of this.
fn comes_back_empty(
    world: &mut World,
    before: impl FnOnce(&mut World),
    meanwhile: impl FnOnce(&mut World),
) {
    (0..4).for_each(|n| world.join(&format!("r{n}"), 7 * n));
    pass(world, 6000);
    before(world);
    cut_off(world, true);
    pass(world, 8000);
    meanwhile(world);
    pass(world, 7000);
    world.run += 1;
    redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
    cut_off(world, false);
}

fn cut_off(world: &mut World, cut: bool) {
    for replica in world.replicas.values_mut() {
        replica.cut_off = cut;
    }
}

fn shares(world: &World) -> Vec<u32> {
    let shares = world.replicas.values().map(|r| r.standing.share());
    shares.collect()
}

fn modes(world: &World) -> Vec<Mode> {
    let mode = |r: &Replica| r.standing.mode(at(world.now) + r.ahead);
    world.replicas.values().map(mode).collect()
}

#[tokio::test]
async fn replicas_go_on_with_their_shares_when_the_level_comes_back_empty_after_long() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let mut world = World::new(&server, scripts());
    // One joins while the level is away.
    comes_back_empty(&mut world, |_| (), |world| world.join("r4", 0));
    let quarters = [[WHOLE / 4; 4].as_slice(), &[0]].concat();
    for _ in 0..12 {
        // They go on as before until all have had time to say what they had, and then together.
        assert_eq!(shares(&world), quarters);
        let alone = Mode::Alone(Some(WHOLE / 4));
        assert_eq!(modes(&world)[..4], [alone; 4]);
        pass(&mut world, 250);
    }
    pass(&mut world, 1500);
    assert_eq!(modes(&world)[..4], [Mode::Together; 4]);
    // The one that is new gets its part of theirs.
    assert_eq!(shares(&world), [WHOLE / 5; 5]);
    assert!(world.most <= WHOLE, "{}", world.most);
    assert_eq!(world.resumptions, (4, 0));
    // All of the limit is used together.
    let time = world.level_time();
    let mut together = redis::cmd("EVAL");
    together.arg(&world.together).arg(1).arg(SHARES).arg(time);
    let together: u32 = together.query(&mut world.connection).unwrap();
    assert_eq!(together, WHOLE);
    // The rule that failed: whatever has lapsed is lost with the data.
    let failed = mutant(&[("resumed = unconfirmed and", "resumed = false and")]);
    let mut world = World::new(&server, failed);
    comes_back_empty(&mut world, |_| (), |_| ());
    pass(&mut world, 4500);
    assert_eq!(shares(&world), [0; 4]);
}

/// One is cut off long before the others, which get its share, and returns before or after them.
fn one_was_cut_off_before(world: &mut World, first: bool) {
    let one = |world: &mut World| {
        world.replicas.get_mut("r3").unwrap().cut_off = true;
        pass(world, 14_000);
        assert_eq!(shares(world)[..3], [WHOLE / 3; 3]);
    };
    comes_back_empty(world, one, |_| ());
    let late = |name: &str| (name == "r3") != first;
    for (name, replica) in &mut world.replicas {
        replica.cut_off = late(name);
    }
    pass(world, 1000);
    cut_off(world, false);
    pass(world, 4500);
}

#[tokio::test]
async fn a_lapsed_share_that_others_got_is_not_resumed() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    // Whatever lapsed share is reported is resumed, however many others are.
    let failed = [
        ("and claimed <= 1000000", ""),
        ("and latest - acked <= forget / 2", ""),
        ("and acked - eldest <= forget / 2", ""),
    ];
    for first in [true, false] {
        let mut world = World::new(&server, scripts());
        one_was_cut_off_before(&mut world, first);
        assert!(world.most <= WHOLE, "{}", world.most);
        let all = shares(&world);
        assert!(all.iter().sum::<u32>() >= WHOLE - 3, "{all:?}");
        assert_eq!(world.resumptions, (3, 0));
        let mut world = World::new(&server, mutant(&failed));
        one_was_cut_off_before(&mut world, first);
        assert!(world.most > WHOLE, "{}", world.most);
    }
}

/// The usage of the window that begins while the level is away, which comes back empty.
#[tokio::test]
async fn a_budget_can_be_used_when_the_level_comes_back_empty_after_its_window_began() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let used = |scripts: Scripts| {
        let mut world = World::new(&server, scripts);
        (0..4).for_each(|n| world.join(&format!("r{n}"), 7 * n));
        pass(&mut world, 6000);
        let rest = PERIOD - world.now % PERIOD;
        pass(&mut world, rest + PERIOD - 9500);
        cut_off(&mut world, true);
        pass(&mut world, 10_500);
        let index = world.now / PERIOD;
        assert_eq!(world.take("r0", 100), 100);
        world.run += 1;
        redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
        cut_off(&mut world, false);
        while world.now < (index + 1) * PERIOD - 1000 {
            // What all hold is told before they use it up.
            if world.now % PERIOD > 5500 {
                (0..4).for_each(|n| _ = world.take(&format!("r{n}"), ALLOWED));
            }
            pass(&mut world, 250);
        }
        assert!(world.spoilt.is_empty());
        world.used[&index]
    };
    // But for what cannot be divided by four.
    assert!((ALLOWED - 3..=ALLOWED).contains(&used(scripts())));
    // The rule that failed: what was begun by a share that had lapsed counts as used.
    let failed = mutant(&[("if resumed then held, begins", "if false then held, begins")]);
    assert_eq!(used(failed), 100);
}
