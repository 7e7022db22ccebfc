//! Targets that clients name: their limits are those of their hosts.

use super::*;
use crate::model::{Details, Pattern};

fn registry(hosts: &Arc<Hosts>, upstreams: Vec<Arc<Upstream>>, limits: Limits) -> Registry {
    let hosts = hosts.clone();
    let make = move |_, url: TargetUrl, identity, shared| {
        let change = |parts: &mut ClientConfig| {
            parts.urls = vec![url];
            parts.shared = shared;
        };
        let made = upstream_with(&hosts, &[], limits, change);
        let mut made = Arc::into_inner(made).unwrap();
        made.identity = identity;
        Arc::new(made)
    };
    let allow = vec![Pattern::parse("*:*").unwrap()];
    Registry::new(upstreams, String::new(), allow, Box::new(make))
}

fn target(registry: &Registry, url: &str) -> Result<Arc<Upstream>, Error> {
    registry.pick(&Details {
        url: Some(TargetUrl::parse(url).unwrap()),
        ..Details::default()
    })
}

/// Returns whether the target `url` may be called at once.
async fn is_called(registry: &Registry, url: &str) -> bool {
    let upstream = target(registry, url).unwrap();
    let mut context = call_context();
    context.deadline = Instant::now() + Duration::from_secs(1);
    upstream.client.run(exchange(), &context).await.is_ok()
}

/// Limits of `burst` calls at once, and one in 100 seconds.
fn limits(burst: u32) -> Limits {
    Limits {
        per_second: 0.01,
        burst,
        ..Limits::for_tests()
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_has_one_burst_however_many_targets_it_has() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", QUICK);
    let registry = registry(&hosts, Vec::new(), limits(3));
    let mut calls = 0;
    for n in 0..600 {
        calls += usize::from(is_called(&registry, &format!("http://a/{n}")).await);
    }
    assert_eq!(calls, 3);
    tokio::time::advance(Duration::from_secs(300)).await;
    assert!(is_called(&registry, "http://a/0").await);
}

#[tokio::test(start_paused = true)]
async fn limits_of_hosts_are_kept_until_they_are_as_new() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", QUICK);
    let registry = registry(&hosts, Vec::new(), limits(1));
    let named = |from: usize, to: usize| {
        let named = (from..to).map(|n| target(&registry, &format!("http://h{n}")));
        named.filter(Result::is_ok).count()
    };
    assert!(is_called(&registry, "http://a").await);
    // The limits of hosts that were not called are as new at once.
    assert_eq!(named(0, 5000), 5000);
    assert!(!is_called(&registry, "http://a").await);
    tokio::time::advance(Duration::from_secs(100)).await;
    assert!(is_called(&registry, "http://a").await);
}

#[tokio::test(start_paused = true)]
async fn hosts_whose_limits_are_used_are_bounded_in_number() {
    let hosts = Arc::new(Hosts::default());
    let registry = registry(&hosts, Vec::new(), limits(1));
    let mut called = 0;
    let refused = loop {
        let host = format!("h{called}");
        hosts.set(&host, QUICK);
        match target(&registry, &format!("http://{host}")) {
            Ok(target) => assert_eq!(call(&target).await, Ok(())),
            Err(error) => break error,
        }
        called += 1;
        assert!(called < 5000, "no bound");
    };
    assert_eq!((refused.kind, called), (Kind::Overloaded, 1024));
    assert!(refused.message.contains("1024 hosts"), "{refused:?}");
    tokio::time::advance(Duration::from_secs(101)).await;
    assert!(target(&registry, "http://new").is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_successor_has_the_limits_of_now_and_the_data_of_before() {
    let hosts = Arc::new(Hosts::default());
    for host in ["a", "b"] {
        hosts.set(host, QUICK);
    }
    let first = registry(&hosts, Vec::new(), limits(3));
    assert!(is_called(&first, "http://a/x").await);
    assert!(is_called(&first, "http://b/x").await);
    let [a, b] = ["a", "b"].map(|host| target(&first, &format!("http://{host}/x")).unwrap());
    // Its host is that of an upstream now.
    let limited = upstream(&hosts, &["a"], limits(1));
    let second = registry(&hosts, vec![limited], limits(3)).succeeding(&first, true);
    let now = ["a", "b"].map(|host| target(&second, &format!("http://{host}/x")).unwrap());
    assert_eq!((now[0].id(), now[1].id()), (a.id(), b.id()));
    assert!(!Arc::ptr_eq(&now[0], &a) && Arc::ptr_eq(&now[1], &b));
    let mut calls = Vec::new();
    for n in 0..5 {
        for host in ["a", "b"] {
            // The first is the target, the others are new ones.
            if is_called(&second, &format!("http://{host}/{}", ["x", "y"][n % 2])).await {
                calls.push(host);
            }
        }
    }
    assert_eq!(calls, ["a", "b", "b"]);
    // Other settings of targets are no new burst.
    let third = registry(&hosts, Vec::new(), limits(3)).succeeding(&second, false);
    let again = target(&third, "http://b/x").unwrap();
    assert!(again.id() == b.id() && !Arc::ptr_eq(&again, &b));
    assert!(!is_called(&third, "http://b/x").await);
}
