use super::*;

const SECOND: Duration = Duration::from_secs(1);
const USUAL: Duration = Duration::from_millis(50);

fn addresses(n: usize) -> Arc<Addresses> {
    let limits = Limits {
        breaker_failures: 3,
        breaker_open: 10 * SECOND,
        ..Limits::for_tests()
    };
    let url = |i| TargetUrl::parse(&format!("http://host{i}")).unwrap();
    Addresses::new((0..n).map(url).collect(), &limits)
}

fn call(addresses: &Arc<Addresses>, wish: &Wish) -> Option<Chosen> {
    addresses.choose(wish, Instant::now(), USUAL)
}

fn next(addresses: &Arc<Addresses>) -> Option<usize> {
    call(addresses, &Wish::default()).map(|chosen| chosen.index)
}

fn end(addresses: &Arc<Addresses>, verdict: Verdict) -> bool {
    let mut chosen = call(addresses, &Wish::default()).expect("an address");
    chosen.end(verdict, 1_000)
}

fn fails() -> Verdict {
    Verdict::Fails("refused".into())
}

fn busy(after: Option<u64>) -> Verdict {
    Verdict::Busy(after.map(Duration::from_secs), "busy".into())
}

fn outlook(addresses: &Addresses) -> Outlook {
    addresses.outlook(&Wish::default(), Instant::now())
}

#[tokio::test(start_paused = true)]
async fn calls_keep_to_the_first_address_until_it_fails() {
    let all = addresses(2);
    let held: Vec<_> = (0..5).map(|_| call(&all, &Wish::default())).collect();
    assert!(held.iter().flatten().all(|chosen| chosen.index == 0));
    drop(held);
    assert!(end(&all, fails()));
    assert_eq!(next(&all), Some(1), "one that has just failed comes last");
    let tried = Wish {
        tried: Tried::default().with(1),
        ..Wish::default()
    };
    assert_eq!(call(&all, &tried).map(|c| c.index), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_after_failures_in_a_row_and_closes_after_a_good_trial() {
    let all = addresses(1);
    end(&all, fails());
    end(&all, fails());
    end(&all, Verdict::Works);
    for _ in 0..3 {
        assert_eq!(all.open(), 0);
        end(&all, fails());
    }
    let trial = Instant::now() + 10 * SECOND;
    assert_eq!(outlook(&all), Outlook::Open(trial));
    assert_eq!(all.last_failure(), Some((3, "refused".into())));
    assert_eq!(next(&all), None);
    let asked = Wish {
        trial: true,
        ..Wish::default()
    };
    assert!(
        call(&all, &asked).is_some_and(|c| c.trial),
        "Test connection asks"
    );
    tokio::time::advance(10 * SECOND).await;
    let mut trial = call(&all, &Wish::default()).unwrap();
    assert_eq!(next(&all), None, "only one trial");
    trial.end(fails(), 0);
    assert_eq!(outlook(&all), Outlook::Open(Instant::now() + 10 * SECOND));
    tokio::time::advance(10 * SECOND).await;
    drop(call(&all, &Wish::default()).expect("a trial"));
    end(&all, busy(None));
    assert_eq!(all.open(), 1, "a busy answer closes no breaker");
    tokio::time::advance(10 * SECOND).await;
    end(&all, Verdict::Works);
    assert_eq!(all.open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_busy_address_rests_for_half_of_the_time_that_it_has_been_away() {
    let all = addresses(1);
    let mut away = Duration::ZERO;
    for rest in [1.0, 1.0, 1.0, 1.5, 2.25, 3.375, 5.0625, 7.59375, 10.0, 10.0] {
        end(&all, busy(None));
        let rest = Duration::from_secs_f64(rest);
        assert_eq!(
            outlook(&all),
            Outlook::From(Instant::now() + rest),
            "{away:?}"
        );
        tokio::time::advance(rest).await;
        away += rest;
    }
    end(&all, busy(Some(60)));
    assert_eq!(outlook(&all), Outlook::From(Instant::now() + 60 * SECOND));
    tokio::time::advance(60 * SECOND).await;
    end(&all, busy(Some(86_400)));
    assert_eq!(outlook(&all), Outlook::From(Instant::now() + 300 * SECOND));
    tokio::time::advance(300 * SECOND).await;
    end(&all, Verdict::Works);
    tokio::time::advance(SECOND).await;
    end(&all, busy(None));
    assert_eq!(outlook(&all), Outlook::From(Instant::now() + SECOND));
}

#[tokio::test(start_paused = true)]
async fn after_a_rest_one_call_goes_first_and_then_as_many_as_come() {
    let all = addresses(1);
    end(&all, busy(None));
    tokio::time::advance(SECOND).await;
    let mut trial = call(&all, &Wish::default()).unwrap();
    assert_eq!(outlook(&all), Outlook::Later(None));
    trial.end(Verdict::Works, 0);
    let many: Vec<_> = (0..100).map(|_| call(&all, &Wish::default())).collect();
    assert!(many.iter().all(Option::is_some));
    // An outage that comes later is no reason to come back slowly.
    tokio::time::advance(SECOND).await;
    end(&all, busy(None));
    tokio::time::advance(SECOND).await;
    end(&all, Verdict::Works);
    let many: Vec<_> = (0..100).map(|_| call(&all, &Wish::default())).collect();
    assert!(many.iter().all(Option::is_some));
}

#[tokio::test(start_paused = true)]
async fn a_long_call_does_not_delay_the_first_one_after_a_rest() {
    let all = addresses(1);
    let mut long = call(&all, &Wish::default()).unwrap();
    tokio::time::advance(Duration::from_millis(50)).await;
    end(&all, busy(None));
    tokio::time::advance(SECOND).await;
    let mut trial = call(&all, &Wish::default()).expect("a trial");
    assert_eq!(outlook(&all), Outlook::Later(None));
    // It ends, and says nothing about now.
    long.end(Verdict::Works, 0);
    assert_eq!(outlook(&all), Outlook::Later(None));
    trial.end(Verdict::Works, 0);
    assert_eq!(outlook(&all), Outlook::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_rest_of_no_time_is_granted_once() {
    let all = addresses(1);
    end(&all, busy(Some(0)));
    assert_eq!(outlook(&all), Outlook::Ready);
    tokio::time::advance(Duration::from_millis(50)).await;
    end(&all, busy(Some(0)));
    assert_eq!(outlook(&all), Outlook::From(Instant::now() + SECOND));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_refuses_calls_again_at_once_comes_back_slowly() {
    let all = addresses(1);
    end(&all, busy(None));
    tokio::time::advance(SECOND).await;
    end(&all, Verdict::Works);
    end(&all, busy(None));
    tokio::time::advance(SECOND).await;
    // One call, then two, then more.
    for at_once in [1, 2, 3] {
        let mut held: Vec<_> = (0..at_once)
            .map(|_| call(&all, &Wish::default()).unwrap())
            .collect();
        assert_eq!(outlook(&all), Outlook::Later(None));
        held[0].end(Verdict::Works, 0);
    }
    // Refused on the way, it comes back slowly again, however long that takes.
    tokio::time::advance(5 * SECOND).await;
    end(&all, busy(None));
    tokio::time::advance(SECOND).await;
    for at_once in [1, 2] {
        let mut held: Vec<_> = (0..at_once)
            .map(|_| call(&all, &Wish::default()).unwrap())
            .collect();
        assert_eq!(outlook(&all), Outlook::Later(None));
        held[0].end(Verdict::Works, 0);
    }
    for _ in 0..16 {
        end(&all, Verdict::Works);
    }
    let many: Vec<_> = (0..100).map(|_| call(&all, &Wish::default())).collect();
    assert!(many.iter().all(Option::is_some));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_failed_comes_back_slowly() {
    let all = addresses(1);
    for _ in 0..3 {
        end(&all, fails());
    }
    tokio::time::advance(10 * SECOND).await;
    for at_once in [1, 2, 3] {
        let mut held: Vec<_> = (0..at_once)
            .map(|_| call(&all, &Wish::default()).unwrap())
            .collect();
        assert_ne!(outlook(&all), Outlook::Ready);
        held[0].end(Verdict::Works, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_refused_together_are_one_rest() {
    let all = addresses(1);
    let calls: Vec<_> = (0..16)
        .map(|_| call(&all, &Wish::default()).unwrap())
        .collect();
    for mut chosen in calls {
        tokio::time::advance(Duration::from_millis(1)).await;
        chosen.end(busy(None), 0);
    }
    let rests = all.resting().0.unwrap();
    assert!(rests <= SECOND, "{rests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_shows_nothing_of_an_address_that_answers_others() {
    let all = addresses(1);
    let mut slow = call(&all, &Wish::default()).unwrap();
    tokio::time::advance(SECOND).await;
    end(&all, Verdict::Works);
    assert!(!slow.end(Verdict::TimedOut("slow".into()), 0));
    let mut slow = call(&all, &Wish::default()).unwrap();
    tokio::time::advance(SECOND).await;
    assert!(slow.end(Verdict::TimedOut("slow".into()), 0));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_failed_once_is_asked_by_heliostat_itself_while_another_is_well() {
    let all = addresses(1);
    end(&all, fails());
    assert_eq!(all.next_trial(), None, "calls find out themselves");
    let all = addresses(2);
    assert_eq!(all.next_trial(), None);
    end(&all, fails());
    assert_eq!(all.next_trial(), Some(10 * SECOND));
    assert!(all.to_try().is_empty());
    tokio::time::advance(10 * SECOND).await;
    assert_eq!(all.to_try(), [0]);
    let own = Wish {
        trial: true,
        only: Some(0),
        ..Wish::default()
    };
    let mut trial = call(&all, &own).expect("a trial");
    assert!(all.to_try().is_empty(), "it is on the way");
    let about_now = Wish {
        span: Some(TimeRange::new(2_000, 3_000).unwrap()),
        ..Wish::default()
    };
    assert_eq!(call(&all, &about_now).map(|c| c.index), Some(1));
    trial.end(Verdict::Works, 1_500);
    assert_eq!(all.next_trial(), None);
    assert_eq!(call(&all, &about_now).map(|c| c.index), Some(0));
    // One of its own waits for an open breaker, a client's test does not.
    for _ in 0..3 {
        call(&all, &own).expect("a call").end(fails(), 4_000);
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert!(call(&all, &own).is_none());
    let test = Wish {
        only: None,
        tried: Tried::default().with(1),
        ..own
    };
    assert!(call(&all, &test).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_address_that_has_gone_silent_is_asked_last() {
    let all = addresses(2);
    let _silent = call(&all, &Wish::default()).unwrap();
    tokio::time::advance(Duration::from_millis(400)).await;
    assert_eq!(next(&all), Some(0));
    tokio::time::advance(Duration::from_millis(200)).await;
    assert_eq!(next(&all), Some(1));
}

#[tokio::test(start_paused = true)]
async fn what_an_address_missed_is_asked_of_another() {
    let all = addresses(2);
    let ended = |index: usize, verdict, wall| {
        let only = Wish {
            only: Some(index),
            trial: true,
            ..Wish::default()
        };
        call(&all, &only).unwrap().end(verdict, wall);
    };
    ended(0, Verdict::Works, 1_000);
    ended(1, Verdict::Works, 1_000);
    ended(0, fails(), 2_000);
    ended(0, Verdict::Works, 3_000);
    let about = |start, end| Wish {
        span: Some(TimeRange::new(start, end).unwrap()),
        ..Wish::default()
    };
    let asked = |wish| call(&all, &wish).map(|c| (c.index, c.provisional));
    assert_eq!(asked(about(0, 1_000)), Some((0, false)));
    assert_eq!(asked(about(2_000, 2_500)), Some((1, false)));
    assert_eq!(asked(about(3_000, 4_000)), Some((0, false)));
    // While the other cannot be asked, what it says is not final.
    ended(1, busy(Some(60)), 4_000);
    assert_eq!(asked(about(2_000, 2_500)), Some((0, true)));
}

#[tokio::test(start_paused = true)]
async fn calls_are_as_far_apart_as_asked_but_not_for_ever() {
    let all = addresses(1);
    let chosen = call(&all, &Wish::default()).unwrap();
    chosen.advised(1, Duration::from_secs(86_400), Duration::from_secs(86_400));
    drop(chosen);
    assert_eq!(outlook(&all), Outlook::From(Instant::now() + 60 * SECOND));
    tokio::time::advance(60 * SECOND).await;
    for _ in 0..4 {
        drop(call(&all, &Wish::default()).expect("its turn"));
        assert_eq!(next(&all), None);
        tokio::time::advance(60 * SECOND).await;
    }
    // After five minutes the advice is forgotten.
    assert_eq!(outlook(&all), Outlook::Ready);
    let chosen = call(&all, &Wish::default()).unwrap();
    chosen.advised(0, SECOND, 7 * SECOND);
    drop(chosen);
    assert_eq!(outlook(&all), Outlook::From(Instant::now() + 7 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_rest_that_another_replica_was_asked_for_holds_here_and_is_not_told_on() {
    let limits = Limits::for_tests();
    let clock: Arc<dyn crate::clock::Clock> = Arc::new(crate::clock::SystemClock::default());
    let (joint, _asked) = crate::store::joint::JointLimits::new(7, 60 * SECOND, 0.0, clock);
    let limit = joint.limit("way", limits.per_second, limits.burst);
    let [one, other] = [addresses(1), addresses(1)];
    let [tells, hears] = [one.tell(&limit), other.tell(&limit)];
    assert_eq!((tells.told)(), []);
    assert!(!end(&one, busy(None)), "it rests, and did not ask for that");
    assert_eq!((tells.told)(), []);
    tokio::time::advance(2 * SECOND).await;
    assert!(!end(&one, busy(Some(30))));
    assert_eq!((tells.told)(), [(0, 30 * SECOND)]);
    tokio::time::advance(10 * SECOND).await;
    assert_eq!((tells.told)(), [(0, 20 * SECOND)]);

    let now = Instant::now();
    (hears.take)(0, 20 * SECOND);
    assert_eq!(outlook(&other), Outlook::From(now + 20 * SECOND));
    assert_eq!(
        other.last_error().unwrap(),
        "it asked another replica for a pause (Retry-After)"
    );
    assert_eq!((hears.told)(), [], "it would never end");
    // The same again, which took a little longer.
    tokio::time::advance(SECOND).await;
    (hears.take)(0, 19 * SECOND + SECOND / 10);
    assert_eq!(outlook(&other), Outlook::From(now + 20 * SECOND));
    tokio::time::advance(19 * SECOND).await;
    assert_eq!(outlook(&other), Outlook::Ready);
    // One that fails is tried as its breaker says.
    (0..3).for_each(|_| _ = end(&other, fails()));
    let open = outlook(&other);
    assert!(matches!(open, Outlook::Open(_)));
    (hears.take)(0, 20 * SECOND);
    assert_eq!(outlook(&other), open);
    assert_eq!((tells.told)(), []);
}
