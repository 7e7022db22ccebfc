//! Addresses that are not well: when they are tried, and what waits for them.

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const BUSY: Does = Does::Status(429, &[]);
const RESTS_LONG: Does = Does::Status(429, &[("retry-after", "300")]);

fn limits() -> Limits {
    Limits {
        breaker_failures: 1,
        breaker_open: 10 * SECOND,
        ..Limits::for_tests()
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_rest_of_one_address_does_not_delay_the_trial_of_another() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", RESTS_LONG);
    hosts.set("b", QUICK);
    let upstream = upstream(&hosts, &["a", "b"], limits());
    let _watching = tokio::spawn(watch(Arc::downgrade(&upstream)));
    assert_eq!(call(&upstream).await, Ok(()));
    tokio::time::sleep(20 * SECOND).await;
    hosts.set("b", Does::Refuse);
    assert!(call(&upstream).await.is_err());
    hosts.set("b", QUICK);
    hosts.counts();
    tokio::time::sleep(11 * SECOND).await;
    assert_eq!(hosts.counts(), [times("b", 1)], "its trial");
    assert_eq!(call(&upstream).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_hangs_does_not_delay_that_of_another_address() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Refuse);
    hosts.set("b", Does::Refuse);
    let upstream = upstream(&hosts, &["a", "b"], limits());
    let _watching = tokio::spawn(watch(Arc::downgrade(&upstream)));
    assert!(call(&upstream).await.is_err());
    hosts.set("a", Does::Never);
    hosts.set("b", QUICK);
    hosts.counts();
    tokio::time::sleep(11 * SECOND).await;
    assert_eq!(hosts.counts(), [times("a", 1), times("b", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_goes_to_the_first_address_that_is_ready() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Refuse);
    hosts.set("b", BUSY);
    let limits = Limits {
        timeout: 10 * SECOND,
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a", "b"], limits);
    // One at a time may go to the first now, and the second rests for a second.
    assert!(call(&upstream).await.is_err());
    hosts.set("a", Does::Never);
    hosts.set("b", QUICK);
    let hangs = upstream.clone();
    let _hangs = tokio::spawn(async move { call(&hangs).await });
    tokio::task::yield_now().await;
    hosts.counts();
    let begun = Instant::now();
    assert_eq!(call(&upstream).await, Ok(()));
    assert!(begun.elapsed() < 2 * SECOND, "{:?}", begun.elapsed());
    assert_eq!(hosts.counts(), [times("b", 1)]);
}

#[tokio::test(start_paused = true)]
async fn trials_have_their_turn_under_overload() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Refuse);
    hosts.set("b", QUICK);
    let limits = Limits {
        per_second: 10.0,
        burst: 1,
        ..limits()
    };
    let upstream = upstream(&hosts, &["a", "b"], limits);
    let _watching = tokio::spawn(watch(Arc::downgrade(&upstream)));
    assert_eq!(call(&upstream).await, Ok(()));
    hosts.counts();
    // Five clients with ten calls each: four seconds of work always wait.
    let client = |n: u8| {
        let upstream = upstream.clone();
        tokio::spawn(async move {
            let context = || CallContext {
                caller: Some(std::net::IpAddr::from([10, 0, 0, n / 10])),
                deadline: Instant::now() + 14 * SECOND,
                ..call_context()
            };
            loop {
                let _ = upstream.client.run(exchange(), &context()).await;
            }
        })
    };
    let clients: Vec<_> = (0..50).map(client).collect();
    tokio::time::sleep(35 * SECOND).await;
    let counts = hosts.counts();
    assert_eq!(counts[0], times("a", 3), "ten seconds after each failure");
    assert!(counts[1].1 >= 340, "{counts:?}");
    clients.iter().for_each(tokio::task::JoinHandle::abort);
}
