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
    world.replicas.remove("r0");
    pass(&mut world, 600);
    assert_eq!(world.replicas["r1"].standing.share(), WHOLE);
    assert!(world.most <= WHOLE);
}
