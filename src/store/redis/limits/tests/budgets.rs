//! The leases of budgets.

use super::*;

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
        world.remove("r3");
    };
    assert_eq!(used(leave), ALLOWED);
    // What it used counts once if it starts again and knows of it, and if a beat of before comes late.
    let again = |world: &mut World| {
        world.beat_late("r3", 400);
        leave(world);
        let late = world.late.pop().unwrap().1;
        pass(world, 500);
        let _ = world.send(late);
        pass(world, 3500);
        world.join_with("r3", 0, 0, true);
    };
    assert_eq!(used_after(&server, scripts(), again), ALLOWED);
    let again = |world: &mut World| {
        leave(world);
        world.join_with("r3", 0, 0, true);
    };
    assert_eq!(used_after(&server, scripts(), again), ALLOWED);
    // One that is killed keeps it.
    let kill = |world: &mut World| world.remove("r3");
    let lease = (ALLOWED - 100) / 4;
    assert_eq!(used(kill), ALLOWED - lease);
    // Unless its successor knows what it had used.
    let succeed = |world: &mut World| {
        world.remove("r3");
        pass(world, 3500);
        world.join_with("r3", 0, 0, true);
        assert_eq!(world.replicas["r3"].part.used, 100);
    };
    assert_eq!(used(succeed), ALLOWED);
    let forget = |world: &mut World| {
        world.remove("r3");
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
    let free = ("rest = rest - entry.claim", "rest = rest - entry.used");
    assert!(broken(free, cut_off), "{free:?}");
    assert!(!broken(silent, cut_off), "it is not, whatever is left");
    // After data was lost all is given away anew.
    let lost: fn(&mut World) = |world| {
        world.replicas.get_mut("r3").unwrap().cut_off = true;
        empty(world);
    };
    let anew = (
        "window.known, window.ended = 0, 0, 0",
        "window.known, window.ended = 1000000, 0, 0",
    );
    assert!(broken(anew, lost), "{anew:?}");
    // A window that is new is given away whole, though others may have begun it with their shares.
    let turn: fn(&mut World) = |world| {
        let rest = PERIOD - world.now % PERIOD;
        pass(world, rest - 3000);
        world.replicas.get_mut("r3").unwrap().cut_off = true;
        pass(world, 3100);
        for _ in 0..20 {
            (0..4).for_each(|n| _ = world.take(&format!("r{n}"), ALLOWED));
            pass(world, 250);
        }
    };
    let whole = ("and member.claim > 0 then", "and false then");
    assert!(broken(whole, turn), "{whole:?}");
    assert!(!broken(("now", "now"), turn));
}

/// Returns whether a history under `scripts` exceeds a budget.
fn exceeds(server: &Server, scripts: Scripts, history: impl FnOnce(&mut World)) -> bool {
    let mut world = World::new(server, scripts);
    (0..4).for_each(|n| world.join(&format!("r{n}"), 7 * n));
    pass(&mut world, 6000);
    let tried = std::panic::AssertUnwindSafe(|| history(&mut world));
    std::panic::catch_unwind(tried).is_err()
}

/// Lets all replicas take all that they get, for so long.
fn use_up(world: &mut World, millis: Millis) {
    let end = world.now + millis;
    while world.now < end {
        let names: Vec<_> = world.replicas.keys().cloned().collect();
        names.iter().for_each(|name| _ = world.take(name, ALLOWED));
        pass(world, 250);
    }
}

fn until_next_window(world: &mut World) {
    let rest = PERIOD - world.now % PERIOD;
    pass(world, rest);
}

/// One replica is away for longer than shares are kept, begins a window meanwhile, and returns after all
/// data was lost: what it says that it holds was another's.
fn a_lapsed_lease_that_returns(world: &mut World) {
    let rest = PERIOD - world.now % PERIOD;
    pass(world, rest - 9000);
    world.replicas.get_mut("r3").unwrap().cut_off = true;
    until_next_window(world);
    pass(world, 200);
    // It has used nothing, which the law does not except.
    world.take("r3", 0);
    pass(world, 2000);
    use_up(world, 1000);
    redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
    pass(world, 1000);
    world.replicas.get_mut("r3").unwrap().cut_off = false;
    use_up(world, 4000);
}

/// One replica spends its share of a window while nothing of it arrives, and is killed. Its successor takes
/// its place before anybody tells of the window.
fn a_share_that_is_spent_unseen_and_moves(world: &mut World) {
    let rest = PERIOD - world.now % PERIOD;
    pass(world, rest - 4000);
    // Its clock is ahead of the others'.
    let ahead = world.replicas.get_mut("r3").unwrap();
    (ahead.wall, ahead.cut_off) = (900, true);
    pass(world, 3150);
    assert_eq!(world.take("r3", ALLOWED), ALLOWED / 4);
    world.join("r3", 0);
    use_up(world, 6000);
}

/// Shares grow while a window is noted already, and those who have them begin it unheard.
fn shares_that_grow_after_a_window_was_noted(world: &mut World) {
    let rest = PERIOD - world.now % PERIOD;
    pass(world, rest - 1900);
    // It has begun the window before it is killed.
    world.replicas.get_mut("r0").unwrap().wall = 950;
    pass(world, 1000);
    world.take("r0", ALLOWED);
    world.beat("r0", false, false, 2, false);
    world.take("r0", ALLOWED);
    world.beat("r0", false, false, 2, true);
    world.remove("r0");
    pass(world, 550);
    for replica in world.replicas.values_mut() {
        replica.cut_off = true;
    }
    until_next_window(world);
    use_up(world, 1000);
    for replica in world.replicas.values_mut() {
        replica.cut_off = false;
    }
    use_up(world, 3000);
}

/// Data is lost after it was told who has what of the next window, which is not what shares are worth.
fn a_window_that_was_noted_before_data_was_lost(world: &mut World) {
    let rest = PERIOD - world.now % PERIOD;
    pass(world, rest - 1900);
    world.join("r4", 0);
    pass(world, 1000);
    // Its share has become smaller, and it was told more of the next window.
    world.replicas.get_mut("r3").unwrap().cut_off = true;
    redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
    use_up(world, 6000);
}

/// One is cut off while all data is lost and all others are new, and returns shortly before a window begins
/// that those have divided.
fn one_that_returns_when_all_others_are_new(world: &mut World) {
    let rest = PERIOD - world.now % PERIOD;
    pass(world, rest - 4500);
    world.replicas.get_mut("r0").unwrap().cut_off = true;
    (1..4).for_each(|n| world.remove(&format!("r{n}")));
    redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
    (4..6).for_each(|n| world.join(&format!("r{n}"), 0));
    pass(world, 3500);
    // Something that it sent before arrives late.
    world.beat_late("r0", 0);
    let late = world.late.pop().unwrap().1;
    world.send(late).unwrap();
    world.replicas.get_mut("r0").unwrap().cut_off = false;
    pass(world, 700);
    // It goes on by what it was told.
    world.replicas.get_mut("r0").unwrap().cut_off = true;
    until_next_window(world);
    use_up(world, 3000);
}

/// One is cut off while all data is lost and all others are new, and returns after it was lost once more,
/// when those have said what they hold.
fn one_that_returns_after_all_others_were_new(world: &mut World) {
    returns_after_all_others_were_new(world, false);
}

/// The same, but one of the others is cut off by then.
fn one_that_returns_when_not_all_are_heard(world: &mut World) {
    returns_after_all_others_were_new(world, true);
}

fn returns_after_all_others_were_new(world: &mut World, one_is_cut_off: bool) {
    world.replicas.get_mut("r0").unwrap().cut_off = true;
    (1..4).for_each(|n| world.remove(&format!("r{n}")));
    redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
    (4..6).for_each(|n| world.join(&format!("r{n}"), 0));
    pass(world, 4000);
    for name in ["r4", "r5"] {
        assert!(world.take(name, ALLOWED) > 0);
    }
    pass(world, 5000);
    world.replicas.get_mut("r4").unwrap().cut_off = one_is_cut_off;
    redis::cmd("FLUSHALL").exec(&mut world.connection).unwrap();
    pass(world, 1000);
    world.replicas.get_mut("r0").unwrap().cut_off = false;
    pass(world, 100);
    use_up(world, 500);
}

#[tokio::test]
async fn a_window_is_divided_once_however_shares_move_about_its_beginning() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    type History = fn(&mut World);
    let histories: [History; 7] = [
        a_lapsed_lease_that_returns,
        a_share_that_is_spent_unseen_and_moves,
        shares_that_grow_after_a_window_was_noted,
        a_window_that_was_noted_before_data_was_lost,
        one_that_returns_when_all_others_are_new,
        one_that_returns_after_all_others_were_new,
        one_that_returns_when_not_all_are_heard,
    ];
    for history in histories {
        assert!(!exceeds(&server, scripts(), history));
    }
    // Windows are noted only as they are told of.
    let late = (
        "while start <= now + skew do",
        "while start <= now - skew do",
    );
    let late = mutant(&[late]);
    assert!(exceeds(
        &server,
        late,
        a_share_that_is_spent_unseen_and_moves
    ));
    // Nobody is told what it holds of the next window, and shares count at once.
    let silent = mutant(&[("after = entry.claim", "after = -1")]);
    let at_once = |world: &mut World| {
        for replica in world.replicas.values_mut() {
            replica.standing = Standing::new(FORGET, Duration::ZERO, at(world.now) + replica.ahead);
        }
        pass(world, 500);
        shares_that_grow_after_a_window_was_noted(world);
    };
    assert!(exceeds(&server, silent, at_once));
    // What a share was worth before data was lost counts, though all has been divided.
    let before = mutant(&[("if shared and of ~= state.epoch then", "if false then")]);
    assert!(exceeds(
        &server,
        before,
        one_that_returns_when_all_others_are_new
    ));
    // What is said first is held, whatever others have said.
    let said = ("math.min(held, allowed - window.ended - others)", "held");
    let lapsed = (
        "if lapsed and not resumed then lease",
        "if false then lease",
    );
    assert!(exceeds(
        &server,
        mutant(&[said, lapsed]),
        one_that_returns_after_all_others_were_new
    ));
    // What was leased with a share that has lapsed is held, if those who were given it are not heard.
    assert!(exceeds(
        &server,
        mutant(&[lapsed]),
        one_that_returns_when_not_all_are_heard
    ));
    // What shares are worth counts, whatever was told.
    let worth = "math.floor(believed * tonumber(ARGV[at + 4]) / 1000000)";
    let worth = mutant(&[("tonumber(ARGV[at + 7])", worth)]);
    assert!(exceeds(
        &server,
        worth,
        a_window_that_was_noted_before_data_was_lost
    ));
}

/// Returns whether a budget is exceeded of which one replica, that is heard once, knows from its file that
/// it has been used before anybody shared it, when another has all that is left.
fn exceeds_a_file(server: &Server, scripts: Scripts) -> bool {
    let mut world = World::new(server, scripts);
    // Nobody is at the beginning of a window, or at its end.
    world.now += 3000;
    let index = world.now / PERIOD;
    world.files.insert("r0".into(), (index, 224, [9, 0, 0, 0]));
    world.used.insert(index, 224);
    world.join_with("r0", 0, 0, true);
    world.beat("r0", false, false, 2, false);
    world.replicas.get_mut("r0").unwrap().cut_off = true;
    world.join("r1", 0);
    pass(&mut world, 6000);
    assert_eq!(world.used[&index], 224);
    let taken = std::panic::AssertUnwindSafe(|| world.take("r1", ALLOWED));
    match std::panic::catch_unwind(taken) {
        Ok(taken) => {
            assert_eq!(taken, ALLOWED - 224);
            false
        }
        Err(_) => true,
    }
}

#[tokio::test]
async fn what_a_file_says_of_a_budget_counts_from_the_first_beat() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    assert!(!exceeds_a_file(&server, scripts()));
    // The rule that failed: only what is said again counts.
    let failed = (
        "entry.pending == '0' or window.part >= 1000000",
        "entry.pending == '0'",
    );
    assert!(exceeds_a_file(&server, mutant(&[failed])));
}
