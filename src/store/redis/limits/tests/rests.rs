//! The rests that an upstream asks one replica for.

use super::*;

/// Returns the rests that a beat of `name` is told, which tells `rests` itself.
fn told(world: &mut World, name: &str, rests: &[(String, Duration)]) -> Vec<(String, i64)> {
    let now = world.now;
    let replica = world.replicas.get_mut(name).unwrap();
    let member = MemberId {
        name,
        instance: replica.instance,
        forget_after: FORGET,
    };
    let report = replica.standing.report(at(now) + replica.ahead);
    let leases = replica.report(now, 0, false);
    let scripts = &world.scripts;
    let command = scripts.beat(&keys(), &member, &report, rests, &leases, false);
    world.send(command).unwrap().5
}

#[tokio::test]
async fn a_rest_that_one_is_asked_for_is_told_to_all_until_it_ends() {
    if !has_server() {
        return;
    }
    let server = Server::start(&[]).await;
    let mut world = World::new(&server, scripts());
    (0..2).for_each(|n| world.join(&format!("r{n}"), 0));
    let rest = |millis| [("a".to_owned(), Duration::from_millis(millis))];
    let left = |millis| vec![("a".to_owned(), millis)];
    assert_eq!(told(&mut world, "r0", &[]), []);
    assert_eq!(told(&mut world, "r0", &rest(3000)), left(3000));
    world.now += 1000;
    assert_eq!(told(&mut world, "r1", &[]), left(2000));
    // What is told again, or by another who has less, changes nothing.
    assert_eq!(told(&mut world, "r0", &rest(2000)), left(2000));
    assert_eq!(told(&mut world, "r1", &rest(500)), left(2000));
    world.now += 1500;
    assert_eq!(told(&mut world, "r1", &[]), left(500));
    world.now += 500;
    assert_eq!(told(&mut world, "r1", &[]), []);
}
