use super::*;

fn limits(per_second: f64, burst: u32, max_concurrency: usize, queue: usize) -> Limits {
    Limits {
        per_second,
        burst,
        max_concurrency,
        queue,
        ..Limits::for_tests()
    }
}

fn caller(n: u8) -> Caller {
    Some(IpAddr::from([10, 0, 0, n]))
}

fn ask(caller: Caller, lane: u64, deadline: Instant) -> Ask {
    let url = crate::model::TargetUrl::parse("http://host").unwrap();
    let addresses = Addresses::new(vec![url], &Limits::for_tests());
    Ask {
        lane,
        ..Ask::new(caller, deadline, &addresses)
    }
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

#[tokio::test(start_paused = true)]
async fn calls_keep_to_the_rate_after_a_burst() {
    let limiter = Limiter::new(&limits(10.0, 5, 100, 100), None);
    let start = Instant::now();
    let mut times = Vec::new();
    for _ in 0..25 {
        drop(limiter.admit(ask(None, 0, later())).await.unwrap());
        times.push(start.elapsed().as_millis());
    }
    assert_eq!(times[4], 0);
    assert!((100..=101).contains(&times[5]), "{times:?}");
    assert!((2000..=2021).contains(&times[24]), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn no_more_run_at_once_than_may_and_no_more_wait() {
    let limiter = Arc::new(Limiter::new(&limits(1000.0, 1000, 2, 3), None));
    let first = limiter.admit(ask(None, 0, later())).await.unwrap();
    let second = limiter.admit(ask(None, 0, later())).await.unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move { limiter.admit(ask(None, 0, later())).await.map(|_| ()) })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(limiter.0.state().queue.len(), 3);
    let refused = limiter
        .admit(ask(None, 0, later()))
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(refused.kind, Kind::UpstreamBudget);
    assert!(refused.retry_after.is_some());
    drop((first, second));
    for task in waiting {
        task.await.unwrap().unwrap();
    }
    let state = limiter.0.state();
    assert_eq!((state.queue.len(), state.running), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_greedy_caller_delays_a_modest_one_by_one_call() {
    let limiter = Arc::new(Limiter::new(&limits(10.0, 1, 1000, 1000), None));
    let start = Instant::now();
    let enter = |who: u8| {
        let limiter = limiter.clone();
        tokio::spawn(async move {
            drop(limiter.admit(ask(caller(who), 0, later())).await.unwrap());
            start.elapsed()
        })
    };
    let greedy: Vec<_> = (0..500).map(|_| enter(1)).collect();
    tokio::task::yield_now().await;
    let modest: Vec<_> = (0..3).map(|_| enter(2)).collect();
    let mut times = Vec::new();
    for task in modest {
        times.push(task.await.unwrap());
    }
    assert!(times[0] <= Duration::from_millis(301), "{times:?}");
    assert!(times[2] <= Duration::from_millis(701), "{times:?}");
    let mut last = Duration::ZERO;
    for task in greedy {
        last = last.max(task.await.unwrap());
    }
    let total = Duration::from_millis(50_200);
    assert!(
        last.abs_diff(total) < Duration::from_millis(200),
        "{last:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lane_with_many_calls_delays_another_by_one() {
    let limiter = Arc::new(Limiter::new(&limits(10.0, 1, 1000, 1000), None));
    let start = Instant::now();
    let enter = |lane: u64| {
        let limiter = limiter.clone();
        tokio::spawn(async move {
            drop(limiter.admit(ask(caller(1), lane, later())).await.unwrap());
            start.elapsed()
        })
    };
    let long: Vec<_> = (0..100).map(|_| enter(1)).collect();
    tokio::task::yield_now().await;
    let short = enter(2);
    assert!(short.await.unwrap() <= Duration::from_millis(201));
    for task in long {
        task.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn clients_go_before_work_of_our_own() {
    let limiter = Arc::new(Limiter::new(&limits(10.0, 1, 1000, 1000), None));
    let start = Instant::now();
    let enter = |who: Caller| {
        let limiter = limiter.clone();
        tokio::spawn(async move {
            drop(limiter.admit(ask(who, 0, later())).await.unwrap());
            start.elapsed()
        })
    };
    let own: Vec<_> = (0..5).map(|_| enter(None)).collect();
    tokio::task::yield_now().await;
    let clients: Vec<_> = (0..5).map(|n| enter(caller(n))).collect();
    let mut last_client = Duration::ZERO;
    for task in clients {
        last_client = last_client.max(task.await.unwrap());
    }
    let mut own_times = Vec::new();
    for task in own {
        own_times.push(task.await.unwrap());
    }
    let after = own_times.iter().filter(|t| **t > last_client).count();
    assert_eq!(after, 4, "all but the one that went before a client came");
}

#[tokio::test(start_paused = true)]
async fn concurrency_adapts_to_what_the_upstream_can_take() {
    let limiter = Limiter::new(
        &Limits {
            adaptive_concurrency: true,
            max_concurrency: 20,
            ..Limits::for_tests()
        },
        None,
    );
    let at_once = || limiter.0.at_once(&limiter.0.state());
    let call = async |failed: bool, millis: u64| {
        let permit = limiter.admit(ask(None, 0, later())).await.unwrap();
        let ended = if failed {
            Ended::Failed
        } else {
            Ended::Answered
        };
        permit.report(ended, Duration::from_millis(millis));
    };
    call(false, 100).await;
    assert_eq!(at_once(), 20);
    call(true, 100).await;
    call(true, 100).await;
    assert_eq!(at_once(), 14, "failures that come together count once");
    for _ in 0..20 {
        tokio::time::advance(Duration::from_secs(2)).await;
        call(false, 1000).await;
    }
    assert!(at_once() < 14, "slow answers lower it too");
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(2)).await;
        call(true, 100).await;
    }
    assert_eq!(at_once(), 1);
    for _ in 0..500 {
        call(false, 100).await;
    }
    assert_eq!(at_once(), 20);
}

#[tokio::test(start_paused = true)]
async fn calls_that_cannot_be_in_time_are_refused_at_once_with_a_time_to_retry() {
    let limiter = Arc::new(Limiter::new(&limits(1.0, 1, 1000, 1000), None));
    for lane in 0..20 {
        let limiter = limiter.clone();
        tokio::spawn(async move {
            limiter
                .admit(ask(caller(1), lane, later()))
                .await
                .map(|_| ())
        });
    }
    tokio::task::yield_now().await;
    let begun = Instant::now();
    let soon = begun + Duration::from_secs(5);
    let refused = limiter
        .admit(ask(caller(1), 99, soon))
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(refused.retry_after, Some(Duration::from_secs(20)));
    // Another caller has a line of its own.
    limiter.admit(ask(caller(2), 0, soon)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_place_in_line_is_given_up_by_leaving() {
    let limiter = Arc::new(Limiter::new(&limits(1.0, 1, 1000, 1000), None));
    drop(limiter.admit(ask(None, 0, later())).await.unwrap());
    let leaving = limiter.admit(ask(None, 0, later()));
    let _ = tokio::time::timeout(Duration::from_millis(10), leaving).await;
    assert_eq!(limiter.0.state().queue.len(), 0);
    let begun = Instant::now();
    drop(limiter.admit(ask(None, 0, later())).await.unwrap());
    assert!(begun.elapsed() <= Duration::from_secs(1));
}
