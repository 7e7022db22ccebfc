//! The bucket of a rate.

use super::*;

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
