//! The attempts of a call: how many there are, and that each has its place in the limits.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A query that is sent as a form.
fn query() -> Exchange<()> {
    let mut query = exchange();
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    query.request.headers = vec![(http::header::CONTENT_TYPE, form)];
    query
}

/// Makes `queries` one after the other, and returns the times of the calls that they took.
async fn times_of(queries: usize, get: u16, limits: Limits) -> Vec<Duration> {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Methods(403, get));
    let upstream = upstream(&hosts, &["a"], limits);
    let begun = Instant::now();
    for _ in 0..queries {
        let answered = upstream.client.run(query(), &call_context()).await;
        assert_eq!(answered.is_ok(), get == 200);
    }
    let calls = hosts.calls.lock().unwrap();
    calls.iter().map(|(_, at)| *at - begun).collect()
}

fn one_a_second() -> Limits {
    Limits {
        per_second: 1.0,
        burst: 1,
        ..Limits::for_tests()
    }
}

#[tokio::test(start_paused = true)]
async fn the_get_after_a_refused_post_is_a_call_of_its_own() {
    let times = times_of(3, 200, one_a_second()).await;
    let seconds: Vec<_> = times.iter().map(|t| t.as_millis() / 1000).collect();
    assert_eq!(seconds, [0, 1, 2, 3], "POST, then GET alone: {times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_both_methods_gets_one_call_for_each_query() {
    let times = times_of(100, 403, one_a_second()).await;
    assert_eq!(times.len(), 102, "a GET each minute");
    let close = times.windows(2).filter(|t| t[1] - t[0] < SECOND / 2);
    assert_eq!(close.count(), 0, "{times:?}");
    let spent = Limits {
        per_hour: Some(1),
        ..Limits::for_tests()
    };
    assert_eq!(times_of(2, 403, spent).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_post_is_no_failure_of_the_address() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Methods(405, 200));
    hosts.set("b", QUICK);
    let limits = Limits {
        breaker_failures: 1,
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a", "b"], limits);
    for _ in 0..2 {
        let answered = upstream.client.run(query(), &call_context()).await;
        assert!(answered.is_ok());
    }
    assert_eq!(hosts.counts(), [times("a", 3)]);
}

#[tokio::test(start_paused = true)]
async fn the_get_after_a_refused_post_goes_before_others_that_wait() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", QUICK);
    let upstream = upstream(&hosts, &["a"], one_a_second());
    let begun = Instant::now();
    call(&upstream).await.unwrap();
    hosts.set("a", Does::Methods(403, 200));
    let calls = (0..3).map(async |_| {
        let answered = upstream.client.run(query(), &call_context()).await;
        assert!(answered.is_ok());
        begun.elapsed().as_secs()
    });
    let ends = futures_util::future::join_all(calls).await;
    assert_eq!(ends, [2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn the_get_after_a_refused_post_goes_to_the_address_that_refused_it() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Never);
    hosts.set("b", QUICK);
    let limits = Limits {
        per_second: 1.0,
        burst: 2,
        timeout: SECOND / 2,
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a", "b"], limits);
    let silent = call(&upstream);
    let refused = async {
        hosts.set("a", Does::Methods(405, 200));
        let answered = upstream.client.run(query(), &call_context()).await;
        assert!(answered.is_ok());
    };
    // The first fails while the GET waits for its turn, so that the other address looks better then.
    let (silent, ()) = tokio::join!(silent, refused);
    assert_eq!(silent, Ok(()));
    assert_eq!(hosts.counts(), [times("a", 3), times("b", 1)]);
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_the_post_says_why_where_both_methods_are_refused() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Methods(405, 403));
    let upstream = upstream(&hosts, &["a"], Limits::for_tests());
    let mut query = query();
    query.read = Arc::new(|response: &Response| {
        Err(Error::new(Kind::UpstreamFailed, response.status.as_str()))
    });
    let error = upstream.client.run(query, &call_context()).await.err();
    assert_eq!(error.unwrap().message, "405");
    assert_eq!(hosts.counts(), [times("a", 2)]);
}

#[tokio::test(start_paused = true)]
async fn slow_attempts_get_others_beside_them_as_far_as_the_budget_of_retries_goes() {
    let hosts = Arc::new(Hosts::default());
    for host in ["a", "b"] {
        hosts.set(host, Does::Answer(4 * SECOND));
    }
    let limits = Limits {
        hedge_after: Some(SECOND),
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a", "b"], limits);
    for _ in 0..100 {
        call(&upstream).await.unwrap();
    }
    let made = hosts.calls.lock().unwrap().len();
    // Ten are saved up, and each five calls allow one more.
    assert!((125..=130).contains(&made), "{made}");
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_leaves_the_other_beside_it() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Never);
    hosts.set("b", Does::Answer(3 * SECOND / 2));
    let limits = Limits {
        timeout: 2 * SECOND,
        hedge_after: Some(SECOND),
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a", "b"], limits);
    let begun = Instant::now();
    call(&upstream).await.unwrap();
    assert_eq!(begun.elapsed().as_millis(), 2500);
    assert_eq!(hosts.counts(), [times("a", 1), times("b", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_attempt_gets_another_beside_it() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", Does::Answer(Duration::from_secs(4)));
    hosts.set("b", QUICK);
    let limits = Limits {
        hedge_after: Some(Duration::from_secs(1)),
        ..Limits::for_tests()
    };
    let upstream = upstream(&hosts, &["a", "b"], limits);
    let begun = Instant::now();
    call(&upstream).await.unwrap();
    assert_eq!(begun.elapsed().as_millis(), 1010);
    assert_eq!(hosts.counts(), [times("a", 1), times("b", 1)]);
    assert_eq!(
        hosts.running.load(Ordering::SeqCst),
        0,
        "the slower one is dropped"
    );
    // A failure beside a slow success is no failure.
    hosts.set("b", Does::Refuse);
    call(&upstream).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_their_turn_get_no_other_beside_them() {
    let hosts = Arc::new(Hosts::default());
    hosts.set("a", QUICK);
    hosts.set("b", QUICK);
    let limits = Limits {
        hedge_after: Some(SECOND / 10),
        ..one_a_second()
    };
    let upstream = upstream(&hosts, &["a", "b"], limits);
    let calls = (0..10).map(|_| call(&upstream));
    let answers = futures_util::future::join_all(calls).await;
    assert_eq!(answers, [Ok(()); 10]);
    assert_eq!(hosts.counts(), [times("a", 10)]);
}

#[test]
fn a_shortage_of_our_own_is_not_counted_as_the_upstreams() {
    let metrics = UpstreamMetrics::new("shortage");
    let trace = crate::telemetry::trace::Trace::default();
    let attempt = attempt::Attempt::begin(&metrics, &trace, attempt::Turn::FIRST);
    let none: Result<(), _> = Err(Error::new(Kind::Overloaded, "no file descriptor"));
    assert_eq!(attempt.end(&none, 0), "overloaded");
    assert_eq!((metrics.totals().calls, metrics.totals().failed), (1, 0));
    assert_eq!(metrics.failure(), None);
}
